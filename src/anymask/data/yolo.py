"""YOLO-seg text files: a line for each object, its class and one polygon in fractions of the image (Ultralytics).

A line holds one polygon, so parts and holes are joined by bridges (`data/polygons.py`): read back here, every mask is
exact. What a line cannot hold says `exports.lost_by`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anymask.data.coco import UNNAMED
from anymask.data.files import write_whole
from anymask.data.images import PathLike
from anymask.data.polygons import from_polygons, polygon_of
from anymask.ops.rle import Rle
from anymask.types import Masks, Size


def write_yolo(path: PathLike, masks: Masks, classes: Sequence[str]) -> None:
    """A line for each mask that is not empty; the class is the index of its label in `classes`."""
    index = {class_name(name): i for i, name in enumerate(classes)}
    lines = []
    for row in masks:
        label, corners = class_name(row.labels[0]), polygon_of(row.masks[0])
        if label not in index:
            raise ValueError(f"classes must hold every label, got no {label!r} among {', '.join(classes)}")
        if len(corners):
            fractions = corners / (masks.size[1], masks.size[0])
            lines.append(" ".join([str(index[label]), *(f"{value:.9g}" for value in fractions.reshape(-1))]) + "\n")
    with write_whole(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_yolo(path: PathLike, size: Size, classes: Sequence[str]) -> Masks:
    """The objects of an image of `size` (h, w), labelled with the names in `classes`."""
    packed: list[Rle] = []
    labels: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.split():
            continue
        try:
            label, polygon = _object_of(line.split(), classes)
            packed.append(from_polygons([polygon * (size[1], size[0])], size))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        labels.append(label)
    return Masks.from_rles(packed, size, labels=labels)


def class_name(label: str) -> str:
    """A label as a line of text: single blanks, and "object" where there is none."""
    return " ".join(label.split()) or UNNAMED


def write_classes(path: PathLike, classes: Sequence[str]) -> None:
    """The class names, one a line; the first names class 0."""
    with write_whole(path) as temporary:
        temporary.write_text("".join(f"{class_name(name)}\n" for name in classes), encoding="utf-8")


def read_classes(path: PathLike) -> list[str]:
    """The class names in a file of one a line."""
    return [line.strip() for line in _lines(path) if line.strip()]


def _lines(path: PathLike) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file in UTF-8") from error


def _object_of(words: list[str], classes: Sequence[str]) -> tuple[str, np.ndarray]:
    if len(words) == 5:
        raise ValueError("it holds a box (YOLO detection): a mask needs a polygon of at least 3 points")
    if len(words) < 7 or len(words) % 2 == 0:
        raise ValueError(f"it must hold a class and x y of at least 3 points, got {len(words)} numbers")
    if not words[0].isdecimal() or int(words[0]) >= len(classes):
        raise ValueError(f"its class must be from 0 to {len(classes) - 1}, got {words[0]}")
    return classes[int(words[0])], np.asarray([float(word) for word in words[1:]]).reshape(-1, 2)
