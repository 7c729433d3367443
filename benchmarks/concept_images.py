"""Textual inversion of single images: how well a frozen model finds what one mask shows, from three beginnings.

    python benchmarks/concept_images.py --images DIR --masks DIR --list val.txt --output docs/concept_images.json

The first images of a list, each learned from the seed phrase, from a wrong phrase and from noise. The peak is the
highest IoU at full size, judged every ten steps on the image that was learned: what the model can be made to find.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import anymask
from anymask.adapting.inversion import Inversion
from anymask.adapting.records import grid, panel, save_figure
from anymask.adapting.settings import InversionSettings
from anymask.data.files import write_json
from anymask.data.images import read_image
from anymask.data.pairs import read_stems
from anymask.evaluation import reports


def main() -> None:
    """Parses, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--list", type=Path, required=True, help="text file of file stems")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--seed-text", default="camouflaged animal")
    parser.add_argument("--wrong-text", default="kitchen table")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    model = anymask.load(args.model, runtime="eager")
    files = {path.stem: path for path in args.images.iterdir()}
    rows, pictures = [], []
    for stem in read_stems(args.list)[: args.count]:
        of_image = []
        for start in (args.seed_text, args.wrong_text, "noise"):
            row, target, found = learn(model, files[stem], args.masks / f"{stem}.png", start, args)
            rows.append(row)
            of_image.append((f"from {start}: {row['start']:.2f} to {row['peak']:.2f}", found))
            print(row, flush=True)
        pictures.append([(stem, panel(read_image(files[stem]), None)), ("target", target), *of_image])
    summary = {
        "runs": len(rows),
        "runs that rise": sum(row["peak"] > row["start"] for row in rows),
        "mean start": round(statistics.mean(row["start"] for row in rows), 4),
        "mean peak": round(statistics.mean(row["peak"] for row in rows), 4),
        "least peak": min(row["peak"] for row in rows),
        "median seconds": statistics.median(row["seconds"] for row in rows),
    }
    print(reports.piped([summary]))
    if args.output:
        told = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
        about = {"settings": told, "machine": reports.machine(), "versions": reports.versions()}
        write_json(args.output, {"summary": summary, "rows": rows, **about}, indent=1)
    if args.figure:
        save_figure(args.figure, grid(pictures))


def learn(
    model: Any, image: Path, mask: Path, start: str, args: argparse.Namespace
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """One run: its row, and pictures of the target and of what was found."""
    with tempfile.TemporaryDirectory() as folder:
        settings = InversionSettings(
            image=image, mask=mask, output=Path(folder), seed_text=args.seed_text, start=start, steps=args.steps,
            model=args.model, tokens=3, validate_every=10, patience=0,
        )  # fmt: skip
        run, began = Inversion(settings, model=model), time.perf_counter()
        for _ in run.steps():
            pass
        seconds, at, picture = time.perf_counter() - began, run.standing, read_image(image)
        target, found = (panel(picture, one) for one in (run.learn.truth(0), run.learn.mask(0, run.best)))
    row = {"image": image.stem, "start from": start, "start": round(at.before, 4), "peak": round(at.best, 4)}
    return {**row, "best step": at.best_step, "seconds": round(seconds, 1)}, target, found


if __name__ == "__main__":
    main()
