"""Box and 1-click mIoU of several models on images with masks: docs/finetuning.md quotes the table this prints.

    python benchmarks/finetune_scores.py --data ../shared/data/concepts/polyps --list val --list spare \
        --model pocket --model run-decoder/model --model run-all/model --output docs/finetune_scores.json

DATA holds `images/`, `masks/` and the lists of file stems `val.txt`, `spare.txt`. Prompts are those of the validation
of `anymask train promptable`: the tight box of each object, and a click at its deepest point.
"""

import argparse
from functools import partial
from pathlib import Path

import anymask
from anymask.data.files import write_json
from anymask.data.pairs import Pair, read_pairs, read_stems
from anymask.models.protocol import Model
from anymask.training.scoring import Scorer
from anymask.types import Features


def main() -> None:
    """Scores every model on every list, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--list", action="append", required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.model:
        model = anymask.load(name, device="cpu")
        for folder in args.data:
            for chosen in args.list:
                stems = read_stems(folder / f"{chosen}.txt")
                pairs = read_pairs(folder / "images", folder / "masks", stems)
                scores = Scorer(pairs.rows).score(model, partial(features_of, model))
                rows.append({"model": name, "images": f"{folder.name}/{chosen}.txt", **scores})
                print(f"{name:24s} {folder.name}/{chosen}.txt", *(f"{k} {v:.3f}" for k, v in scores.items()))
    if args.output is not None:
        write_json(args.output, rows, indent=1)


def features_of(model: Model, pair: Pair) -> Features:
    """Of one image."""
    return model.encode([anymask.read_image(pair.image)])[0]


if __name__ == "__main__":
    main()
