"""Results to files in the formats a user can name, and what each format cannot hold.

Every format has a writer and a reader: coco `data/coco.py`, labelmap and png `data/labelmaps.py`, yolo `data/yolo.py`,
labelme `data/labelme.py`, masks `data/binaries.py`, npz `data/archives.py`. Original, overlay, sheet and panels are
pictures for people, which can be reduced.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymask.data.archives import write_npz
from anymask.data.binaries import plain_words, write_masks_folder
from anymask.data.coco import UNNAMED, write_coco
from anymask.data.drawing import draw
from anymask.data.images import PathLike, write_image
from anymask.data.labelmaps import write_indexed_png, write_labelmap
from anymask.data.labelme import write_labelme
from anymask.data.panels import draw_panels
from anymask.data.reducing import check_picture_side, fitted, resized_image, resized_masks, resized_prompt
from anymask.data.sheets import MOST_CELLS, draw_sheet
from anymask.data.yolo import class_name, read_classes, write_classes, write_yolo
from anymask.ops import rle
from anymask.types import Image, Masks, Prompt

DEFAULT_FORMATS = ("coco", "overlay")


@dataclass(frozen=True, eq=False)
class Result:
    """The masks of one image and what formats say of it."""

    masks: Masks
    image: Image
    file_name: str
    categories: Sequence[str] = ()
    prompts: Sequence[Prompt] = ()
    settings: Mapping[str, Any] | None = None
    picture_side: int | None = None


@dataclass(frozen=True)
class Format:
    """What follows the stem in the name of the file (of masks: the folder), and the function that writes it."""

    ending: str
    write: Callable[[Path, Result], None]


def save(
    masks: Masks,
    image: Image,
    folder: PathLike,
    stem: str,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    file_name: str | None = None,
    categories: Sequence[str] = (),
    prompts: Sequence[Prompt] = (),
    settings: Mapping[str, Any] | None = None,
    picture_side: int | None = None,
) -> list[Path]:
    """Write `masks` as `folder/stem` + the ending of each format; returns the paths written.

    `file_name` is the picture's name inside COCO and LabelMe files (default: the stem). `categories` fix the class
    numbers of COCO and YOLO files. YOLO's names are in `classes.txt` beside, which grows with the folder. `settings`
    (plain JSON, by default `masks.made_by`) say what made the masks; COCO keeps them in `info`.
    `picture_side` bounds the longer side of pictures for people; what machines read keeps the pixels of the image.
    """
    check_picture_side(picture_side)
    if masks.size != image.size:
        raise ValueError(f"masks must have the size of the image, {image.size} (h, w), got {masks.size}")
    made_by = settings or masks.made_by or None
    result = Result(masks, image, file_name or stem, categories, prompts, made_by, picture_side)
    written = []
    for name, path in output_paths(folder, stem, formats).items():
        FORMATS[name].write(path, result)
        written.append(path)
    return written


def output_paths(folder: PathLike, stem: str, formats: Sequence[str] = DEFAULT_FORMATS) -> dict[str, Path]:
    """The path that `save` writes for each format, for checking before work begins that no input is overwritten."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"a format must be one of {', '.join(FORMATS)}, got {name!r}")
    return {name: Path(folder) / f"{stem}{FORMATS[name].ending}" for name in formats}


def lost_by(masks: Masks, name: str) -> list[str]:
    """What the format `name` cannot hold of these masks, in words fit for one line; empty if nothing is lost."""
    if name not in FORMATS:
        raise ValueError(f"a format must be one of {', '.join(FORMATS)}, got {name!r}")
    return [words for loss, words in _losses(masks).items() if loss in _LOST_BY[name]]


def _losses(masks: Masks) -> dict[str, str]:
    """What there is to lose in these masks; nothing that has its default value."""
    best = masks.best()
    empty = int((masks.areas == 0).sum())
    alternatives = len(masks) - len(best)
    numbered = masks.ids.tolist() == list(range(1, len(masks) + 1))
    overlap = int(best.areas.sum() - rle.areas([rle.merge(best.rles, best.size)]).sum()) if len(best) else 0
    beyond = len(masks) - empty - MOST_CELLS
    present: dict[str, tuple[object, str]] = {
        "scores": ((masks.scores != 1).any(), "scores"),
        "labels": (any(masks.labels), "labels"),
        "spelling": (any(plain_words(label) != label for label in masks.labels), "the spelling of labels"),
        "unlabelled": ("" in masks.labels, f"masks without a label (they become {UNNAMED!r})"),
        "ids": (not numbered, "object ids"),
        "shared ids": (alternatives, f"which {alternatives} masks are alternatives of others"),
        "alternatives": (alternatives, f"{alternatives} alternative masks (the best of each object is kept)"),
        "overlaps": (overlap, f"{overlap} overlapping pixels (the smaller object is on top)"),
        "empty": (empty, f"{empty} empty masks"),
        "stability": (masks.stability is not None, "stability"),
        "clicks": (masks.point_coords is not None, "clicks"),
        "crops": (masks.crop_boxes is not None, "crop boxes"),
        "logits": (masks.logits is not None, "low-resolution logits"),
        "measures": (bool(masks.measures), "measures"),
        "cells": (beyond > 0, f"the {beyond} smallest masks (it has {MOST_CELLS} cells)"),
    }
    return {loss: words for loss, (is_there, words) in present.items() if is_there}


_OF_MODELS = frozenset({"stability", "clicks", "crops", "logits"})
_NO_LABELMAP = _OF_MODELS | {"measures", "scores", "labels", "alternatives", "overlaps", "empty"}
_LOST_BY: Mapping[str, frozenset[str]] = {
    "coco": frozenset({"logits"}),
    "labelmap": _NO_LABELMAP,
    "png": _NO_LABELMAP,
    "yolo": _OF_MODELS | {"measures", "scores", "unlabelled", "ids", "empty"},
    "labelme": _OF_MODELS | {"measures", "unlabelled", "shared ids", "empty"},
    "masks": _OF_MODELS | {"measures", "scores", "spelling"},
    "npz": frozenset(),
    "original": frozenset(),
    "overlay": frozenset(),
    "sheet": frozenset({"empty", "cells"}),
    "panels": frozenset(),
}


def _write_coco(path: Path, result: Result) -> None:
    write_coco(path, [(result.file_name, result.masks)], categories=result.categories, settings=result.settings)


def _write_yolo(path: Path, result: Result) -> None:
    """Names already in the folder's `classes.txt` keep their numbers, so that the files of a run agree."""
    listing = path.with_name("classes.txt")
    known = read_classes(listing) if listing.exists() else []
    names = [class_name(label) for label in (*result.categories, *result.masks.labels)]
    classes = list(dict.fromkeys([*known, *names]))
    if classes != known:
        write_classes(listing, classes)
    write_yolo(path, result.masks, classes)


def _write_picture(path: Path, picture: Image, result: Result) -> None:
    write_image(path, resized_image(picture, fitted(picture.size, result.picture_side)))


def _write_overlay(path: Path, result: Result) -> None:
    """Reduced before it is drawn, so that outlines and words are of the size of the picture."""
    image, size = result.image, fitted(result.image.size, result.picture_side)
    prompts = [resized_prompt(prompt, image.size, size) for prompt in result.prompts]
    write_image(path, draw(resized_image(image, size), resized_masks(result.masks, size), prompts=prompts))


FORMATS: Mapping[str, Format] = {
    "coco": Format(".json", _write_coco),
    "original": Format(".original.png", lambda path, it: _write_picture(path, it.image, it)),
    "overlay": Format(".overlay.png", _write_overlay),
    "sheet": Format(".sheet.png", lambda path, it: _write_picture(path, draw_sheet(it.image, it.masks), it)),
    "panels": Format(".panels.png", lambda path, it: _write_picture(path, draw_panels(it.image, it.masks), it)),
    "masks": Format(".masks", lambda path, it: write_masks_folder(path, it.masks)),
    "labelmap": Format(".labelmap.png", lambda path, it: write_labelmap(path, it.masks)),
    "png": Format(".png", lambda path, it: write_indexed_png(path, it.masks)),
    "yolo": Format(".txt", _write_yolo),
    "labelme": Format(".labelme.json", lambda path, it: write_labelme(path, it.masks, it.file_name)),
    "npz": Format(".npz", lambda path, it: write_npz(path, it.masks)),
}
