"""`anymask everything`: all masks that a grid of clicks finds in photos; COCO, label map, overlay and sheet under `-o`.

The COCO file of a photo says which settings made it: so `--resume` knows what is done, and no file of settings lies
beside the results, where it could be taken for those of a photo.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymask.cli.commands import Command
from anymask.cli.photos import EXIT_CODES, Advance, Work, add_photo_flags, add_result_flags, load_model, run_photos

if TYPE_CHECKING:
    from anymask.automatic import Step
    from anymask.automatic_settings import AutomaticSettings
    from anymask.models.promptable import PromptableModel
    from anymask.types import Image, Masks

DEFAULT_FORMATS = ("coco", "labelmap", "overlay", "sheet")
NOTES = f"""\
The settings have the names and defaults of SamAutomaticMaskGenerator; one without a default takes what suits the model.

results:
  name.jpg gives name.json, name.labelmap.png, name.overlay.png and name.sheet.png under -o. --json prints a row for
  each photo: file, size (h w) and masks, records as of SamAutomaticMaskGenerator (coco_rle) with an id; the id is also
  the value in the label map and the number on the sheet. Photos of one name from two folders in one run are refused.
  {EXIT_CODES}"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Inputs, model, the settings of everything mode, and where results go."""
    from anymask.automatic_settings import AutomaticSettings
    from anymask.cli.flags import add_settings

    add_photo_flags(parser)
    add_settings(parser.add_argument_group("settings"), AutomaticSettings)
    out = add_result_flags(parser, DEFAULT_FORMATS)
    out.add_argument("--resume", action="store_true", help="leave out photos done before with the same settings")


def run(args: argparse.Namespace) -> int:
    """Finds everything in every input; the code says whether all, some or none could be done."""
    from anymask.automatic_settings import AutomaticSettings
    from anymask.cli.flags import read_settings

    settings = read_settings(args, AutomaticSettings)
    if args.resume and args.output is None:
        raise ValueError("--resume needs -o: the folder with the results of the earlier run")
    if args.resume and args.format and "coco" not in args.format:
        raise ValueError("--resume needs --format coco: its files say which settings made the results")
    return run_photos("everything", args, DEFAULT_FORMATS, lambda: _work(args, settings))


def _work(args: argparse.Namespace, settings: "AutomaticSettings") -> Work:
    from anymask.automatic import clickable, collect, everything_steps
    from anymask.data.files import sha256_of

    model = clickable(load_model(args))
    made_with = cache(partial(_made_with, args, model, settings))  # a digest of all weights, only if it is asked for

    def find(image: "Image", advance: Advance) -> "Masks":
        return collect(_followed(everything_steps(image, model, settings), advance), image.size).compact()

    def record(photo: Path) -> dict[str, Any]:
        pictures = {"resize": args.resize} if args.resize else {}
        return {"photo": sha256_of(photo), **made_with(), **pictures}

    def earlier(photo: Path, paths: Mapping[str, Path]) -> "Masks | None":
        return _earlier(paths, record(photo)) if args.resume else None

    return Work(find, _records, record, earlier)


def _made_with(args: argparse.Namespace, model: "PromptableModel", settings: "AutomaticSettings") -> dict[str, Any]:
    """What decides the masks of a photo, as JSON has it: nothing in it is left to a default that may change."""
    from anymask.automatic import settled
    from anymask.models.digests import digest_of_model

    h, w = model.input_size
    of_model = {
        "model": args.model,
        "weights": digest_of_model(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    sizes = {"image_size": f"{h}x{w}", "window_size": args.window_size, "runtime": args.runtime}
    return {**of_model, **sizes, **asdict(settled(settings, model.capabilities.thresholds))}


def _followed(steps: "Iterator[Step]", advance: Advance) -> "Iterator[Step]":
    for step in steps:
        advance(step.done / step.total)
        yield step


def _records(masks: "Masks") -> list[dict[str, Any]]:
    from anymask.automatic import to_records

    if not len(masks):
        return []
    return [{**row, "id": int(i)} for row, i in zip(to_records(masks, "coco_rle"), masks.ids, strict=True)]


def _earlier(paths: Mapping[str, Path], record: dict[str, Any]) -> "Masks | None":
    """The masks of an earlier run with this record of how they were made, if all of its files are there."""
    from anymask.data.coco import read_coco

    if not all(path.exists() for path in paths.values()):
        return None
    try:
        found = read_coco(paths["coco"])
        return found.masks(found.images[0]) if found.info.get("settings") == record else None
    except ValueError:  # somebody else's file of this name
        return None


EVERYTHING = Command(
    description="Every mask in photos: a grid of clicks, of whose answers the sure and stable ones stay.",
    examples=(
        "anymask everything photo.jpg --model pocket -o out/ --json",
        'anymask everything "photos/*.jpg" --points-per-side 16 --exact -o out/',
        "anymask everything photos/ --crop-n-layers 1 --min-mask-region-area 100 -o out/ --resume",
        "anymask everything photo.jpg -o out/ --format coco --format sheet",
    ),
    notes=NOTES,
    add_flags=add_flags,
    run=run,
)
