r"""Everything in a photo beside segment-anything-py, transformers and ultralytics: time, memory, the same masks.

    python benchmarks/everything.py --json
    python benchmarks/everything.py --cache out/everything/results.json --output docs/everything.json \
        --document docs/everything.md --figure docs/images/everything_speed.png

Prints tables, or with `--json` the whole report. One SAM ViT-B of random weights (everything_weights.py) for all, the
same photo, points, thresholds and threads; each measurement runs in a process of its own, one after another, in turning
order (everything_jobs.py says what is timed and how memory is counted). Thresholds are set so that 5, 20 and 100 % of
the prompts keep at least one candidate mask before duplicates are removed: at 5 and 20 % the stability threshold is
SAM's 0.95 and `pred_iou_thresh` is chosen from the scores, at 100 % both are 0. Pocket is measured with its own
thresholds. All of it takes about an hour on two cores: with `--cache` what was measured is kept as it comes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anymask.data.files import read_json, write_json
from anymask.evaluation.reports import read_report, to_json, write_report
from anymask.types import Report
from everything_report import (
    OURS,
    PEERS,
    REFERENCE,
    SURVIVALS,
    TARGET_SURVIVAL,
    as_markdown,
    as_text,
    assemble,
    thresholds,
)

BEGIN, END = "<!-- benchmarks/everything.py begins -->", "<!-- ends -->"
POINTS_CURVE = (8, 16, 24, 32, 48)
MEGAPIXELS_CURVE = (0.25, 1, 3, 12)
PHOTO_SIDE, LARGE_MEGAPIXELS, POCKET_SIDE = 1024, 12, 720  # the photo is 3:2, so that 720 is 720 x 480
PEER_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PHOTOS = (
    "astronaut.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)  # of scikit-image: as in pocket_photos.py

Job = dict[str, Any]


def main() -> None:
    """Measures what the cache does not hold, or reads an earlier report; prints it."""
    args = arguments()
    report = read_report(args.report) if args.report else measured(args)
    if args.output:
        write_report(args.output, report)
    if args.document:
        fill(args.document, as_markdown(report))
    if args.figure:
        from everything_figure import draw

        draw(report, args.figure)
    print(json.dumps(to_json(report)) if args.json else as_text(report))


def measured(args: argparse.Namespace) -> Report:
    """Runs the jobs; without `--cache` nothing of them stays."""
    with tempfile.TemporaryDirectory() as temporary:
        cache = Cache(args.cache or Path(temporary) / "results.json", args.only, args.threads)
        return assemble(measure(args, cache), settings_of(args))


def fill(document: Path, tables: str) -> None:
    """Puts the tables between the two marks of a Markdown file."""
    before, first, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, last, after = rest.partition(END)
    if not first or not last:
        raise SystemExit(f"{document} must hold {BEGIN} and after it {END}, where the tables go")
    document.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--output", type=Path, help="write the report")
    parser.add_argument("--report", type=Path, help="measure nothing: read this report, for the options that follow")
    parser.add_argument("--document", type=Path, help="put the tables into this Markdown file, between its marks")
    parser.add_argument("--figure", type=Path, help="draw times and curves (needs matplotlib)")
    parser.add_argument("--cache", type=Path, help="keep results here, and go on from them; the weights lie beside it")
    parser.add_argument("--only", action="append", help="measure only what has this in its name, again if it is cached")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="which of them")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--large-points-per-side", type=int, default=16, help="on the 12-megapixel photo")
    parser.add_argument("--repeats", type=int, default=1, help="rounds over all contenders, of which the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=Path, help="folder of photos for recall (default: nine of scikit-image)")
    parser.add_argument("--limit", type=int, help="this many of them, evenly spaced")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Cache:
    """Results by the name of the job, in a file that is written after each."""

    def __init__(self, path: Path, only: Sequence[str] | None, threads: int) -> None:
        self.path, self.only, self.threads = path, only, threads
        self.entries: dict[str, Any] = read_json(path) if path.exists() else {}
        self.weights = path.with_name("sam_vit_b.pth").resolve()

    def get(self, name: str, job: Job, needed: bool = False) -> Mapping[str, Any] | None:
        """The result, kept or measured now; None for one that `--only` leaves out. What failed is tried again."""
        job = {"weights": os.fspath(self.weights), **job, "threads": self.threads}
        kept = self.entries.get(name)
        usable = kept is not None and kept["job"] == job and "error" not in kept["result"]
        chosen = self.only is None or any(part in name for part in self.only)
        if usable and (needed or self.only is None or not chosen):
            return kept["result"]
        if not chosen and not needed:
            return None
        print(f"{name} ...", file=sys.stderr)
        result = run(job)
        print(f"{name}: {told(result)}", file=sys.stderr)
        self.entries[name] = {"job": job, "result": result}
        write_json(self.path, self.entries)
        return result


def run(job: Job) -> dict[str, Any]:
    """One job in a new process, held to as many cores as it has threads."""
    environment = os.environ | dict.fromkeys(PEER_THREADS, str(job["threads"]))
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "result.json"
        write_json(asked, job)
        command = [sys.executable, Path(__file__).with_name("everything_jobs.py"), asked, answered]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answered.exists():
            return read_json(answered)
    if ended.returncode < 0:
        return {"error": f"ended by signal {-ended.returncode}, as when memory is out"}
    return {"error": (ended.stderr.strip() or "no word").splitlines()[-1]}


def measure(args: argparse.Namespace, cache: Cache) -> dict[str, Mapping[str, Any]]:
    """All results by name. Weights and scores come first: the thresholds depend on them."""
    grid = {"side": PHOTO_SIDE, "points_per_side": args.points_per_side}
    made = cache.get("weights", {"kind": "weights", "side": PHOTO_SIDE, "seed": args.seed}, needed=True)
    if made is None or "error" in made:
        raise SystemExit(f"no weights to measure with: {made}")
    scores = cache.get("scores", {"kind": "scores", **grid}, needed=True)
    if scores is None or "error" in scores:
        raise SystemExit(f"no scores to choose thresholds by: {scores}")
    found = {name: cache.get(name, job) for name, job in plan(args, thresholds(scores, SURVIVALS)).items()}
    return {"scores": scores, **{name: result for name, result in found.items() if result is not None}}


def plan(args: argparse.Namespace, chosen: Mapping[int, Mapping[str, float]]) -> dict[str, Job]:
    """Every job by name, in the order of measuring."""
    contenders = [*args.peers, *OURS]
    return {
        **everything_jobs(args, contenders, chosen),
        **memory_jobs(args, contenders, chosen[TARGET_SURVIVAL]),
        **encode_jobs(),
        **pocket_jobs(),
        "recall": {"kind": "recall", "model": "pocket", "weights": "pocket", "images": photos(args.images, args.limit)},
    }


def everything_jobs(
    args: argparse.Namespace, contenders: Sequence[str], chosen: Mapping[int, Mapping[str, float]]
) -> dict[str, Job]:
    """Every contender at every survival; masks are kept once."""
    jobs = {}
    for number in range(args.repeats):
        for survival in SURVIVALS:
            for contender in contenders[:: -1 if number % 2 else 1]:
                settings = {"points_per_side": args.points_per_side, **chosen[survival]}
                job = {"kind": "everything", "contender": contender, "side": PHOTO_SIDE, "settings": settings}
                jobs[f"everything/{contender}/{survival}/{number}"] = {**job, "keep_masks": number == 0}
    return jobs


def memory_jobs(args: argparse.Namespace, contenders: Sequence[str], chosen: Mapping[str, float]) -> dict[str, Job]:
    """Fewer points, since that leaves the peak as it is: it is that of one batch."""
    settings = {"points_per_side": args.large_points_per_side, **chosen}
    job = {"kind": "everything", "side": side_of(LARGE_MEGAPIXELS), "settings": settings, "keep_masks": False}
    return {f"memory/{contender}": {**job, "contender": contender} for contender in contenders}


def encode_jobs() -> dict[str, Job]:
    """Transformers' default, and ours: PyTorch, OpenVINO (which auto takes for many photos), exported in int8."""
    loading = {
        "transformers": {},
        "anymask eager": {"runtime": "eager"},
        "anymask fp32": {"runtime": "openvino"},
        "anymask int8": {"format": "openvino", "dtype": "int8"},
    }
    job = {"kind": "encode", "side": PHOTO_SIDE, "repeats": 3}
    return {f"encode/{name}": {**job, "contender": name, "loading": given} for name, given in loading.items()}


def pocket_jobs() -> dict[str, Job]:
    """Its time on a small photo, and for growing grids and photos."""
    cases: dict[str, list[Any]] = {
        "pocket": [[POCKET_SIDE, {}]],
        "curve/points": [[POCKET_SIDE, {"points_per_side": side}] for side in POINTS_CURVE],
        "curve/megapixels": [[side_of(size), {}] for size in MEGAPIXELS_CURVE],
    }
    return {
        f"{name}/{contender}": {"kind": "curve", "weights": "pocket", "contender": contender, "cases": given}
        for name, given in cases.items()
        for contender in OURS
    }


def side_of(megapixels: float) -> int:
    """The longest side of a 3:2 photo."""
    return round(math.sqrt(1.5e6 * megapixels))


def photos(folder: Path | None, limit: int | None) -> list[str]:
    """The files for recall."""
    if folder is None:
        import skimage.data

        there = [Path(skimage.data.__file__).with_name(name) for name in PHOTOS]
    else:
        there = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not there:
        raise SystemExit(f"{folder} must hold photos (.jpg, .png), and holds none")
    chosen = np.linspace(0, len(there) - 1, min(limit or len(there), len(there))).round().astype(int)
    return [os.fspath(there[i].resolve()) for i in chosen]


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the report says of how it was made."""
    names = ("points_per_side", "large_points_per_side", "repeats", "threads", "seed", "limit")
    given = {name: getattr(args, name) for name in names}
    curves = {"points_curve": list(POINTS_CURVE), "megapixels_curve": list(MEGAPIXELS_CURVE)}
    images = "scikit-image" if args.images is None else args.images.name
    return {**given, "survivals": list(SURVIVALS), **curves, "images": images, "reference": REFERENCE}


def told(result: Mapping[str, Any]) -> str:
    """A line on a result."""
    if "error" in result:
        return str(result["error"])
    shown: dict[str, Callable[[Any], str]] = {
        "seconds": lambda value: (
            f"{value:.2f} s" if isinstance(value, float) else f"{[round(one, 2) for one in value]} s"
        ),
        "masks": lambda value: f"{value} masks",
        "peak_mb": lambda value: f"{value:.0f} MB",
    }
    return ", ".join(show(result[key]) for key, show in shown.items() if key in result) or "done"


if __name__ == "__main__":
    main()
