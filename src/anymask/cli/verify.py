"""`anymask models verify`: our path against transformers' own, on the weights that the user has."""

import argparse
from dataclasses import asdict
from typing import Any

from anymask.cli.commands import DONE, SOME_FAILED, Command, say, show_json, table


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, on which pictures."""
    parser.add_argument("model", metavar="MODEL", help="catalogue name, hub id, folder or file")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a photo (repeat; default: three drawn pictures)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Prints how far the two paths are apart for each prompt; exit code 1 if that is more than rounding."""
    from anymask.cli.progress import Progress
    from anymask.data.images import read_image
    from anymask.evaluation.parity import KNOWN, verify, within_tolerance
    from anymask.models.load import load

    images = [read_image(path) for path in args.image]
    model = load(args.model, args.device, runtime="eager")
    rows = []
    with Progress("prompt") as progress:
        for difference in verify(model, images):
            rows.append(difference)
            progress.show(len(rows), 5 * (len(images) or 3), f"{difference.picture}: {difference.prompt}")
    same = all(within_tolerance(row) for row in rows)
    known = KNOWN.get(type(getattr(model, "network", None)).__name__)
    if args.json:
        show_json({"model": args.model, "same": same, "known": known, "differences": [asdict(row) for row in rows]})
        return DONE if same else SOME_FAILED
    print(table([_described(asdict(row)) for row in rows]))
    print(f"{args.model}: {'both paths give the same' if same else 'the paths differ'}")
    if known and not same:
        say(f"anymask models verify: {known}")
    return DONE if same else SOME_FAILED


def _described(row: dict[str, Any]) -> dict[str, Any]:
    """Differences as powers of ten, the IoU as it is."""
    small = ("logits", "predicted_iou", "resized_logits")
    named = {key: f"{value:.0e}" if key in small else value for key, value in row.items()}
    return {key.replace("_", " "): value for key, value in named.items()}


VERIFY = Command(
    description="Compares our path with transformers' stock path (processor, forward, post-processing) on one model.",
    examples=(
        "anymask models verify mobile_sam.pt",
        "anymask models verify facebook/sam2.1-hiera-tiny --image photo.jpg",
    ),
    notes="""\
Points, boxes and masks are compared, in float32; names and exemplars of SAM 3 are in the tests alone.
columns: the largest difference of the mask logits and of the predicted IoU from the same resized pixels (at most 0.001
passes, in float32); of the logits when each path resizes the photo itself; the IoU of those masks in original pixels.
exit code 0: the same; 1: they differ; 2: the model cannot be had or compared""",
    add_flags=add_flags,
    run=run,
)
