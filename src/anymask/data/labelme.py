"""LabelMe JSON, both ways: polygons that a person can go on editing (github.com/wkentaro/labelme, `label_file.py`).

Parts of one object share a `group_id`; holes are joined to the outline by bridges (`data/polygons.py`), so every mask
comes back exactly. `score` is written beside the fields LabelMe knows, which it keeps on saving. What it cannot hold
says `exports.lost_by`.
"""

import base64
import binascii
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anymask.data.coco import UNNAMED
from anymask.data.files import read_json, write_json
from anymask.data.images import PathLike, read_mask
from anymask.data.polygons import from_polygons, polygons_of
from anymask.ops import rle
from anymask.ops.rle import Rle
from anymask.types import Masks, Size


def write_labelme(path: PathLike, masks: Masks, file_name: str) -> None:
    """A LabelMe file for the picture `file_name` (relative to `path`), which is not embedded."""
    unique = len(set(masks.ids.tolist())) == len(masks)
    groups = masks.ids.tolist() if unique else range(1, len(masks) + 1)
    shapes = [
        _shape_of(row, group, corners)
        for row, group in zip(masks, groups, strict=True)
        for corners in polygons_of(row.masks[0])
    ]
    h, w = masks.size
    head = {"version": "5.5.0", "flags": {}}
    tail = {"imagePath": file_name, "imageData": None, "imageHeight": h, "imageWidth": w}
    write_json(path, {**head, "shapes": shapes, **tail}, indent=1)


def read_labelme(path: PathLike) -> Masks:
    """The objects of a LabelMe file: polygons, rectangles, circles and masks; shapes without an area are refused."""
    content = read_json(path)
    try:
        size = (int(content["imageHeight"]), int(content["imageWidth"]))
        groups = _groups_of(content["shapes"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a LabelMe file with imageHeight, imageWidth and shapes: {error!r}") from error
    try:
        packed = [rle.merge([_rle_of(shape, size) for shape in shapes], size) for shapes in groups]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    first = [shapes[0] for shapes in groups]
    ids = [shape.get("group_id") for shape in first]
    own_ids = len(set(ids)) == len(ids) and all(isinstance(i, int) and i > 0 for i in ids)
    return Masks.from_rles(
        packed,
        size,
        scores=[1.0 if shape.get("score") is None else float(shape["score"]) for shape in first],
        labels=[str(shape.get("label", "")) for shape in first],
        ids=ids if own_ids else None,
    )


def _shape_of(row: Masks, group: int, corners: Float[np.ndarray, "k 2"]) -> dict[str, Any]:
    return {
        "label": row.labels[0] or UNNAMED,
        "points": corners.tolist(),
        "group_id": group,
        "description": "",
        "shape_type": "polygon",
        "flags": {},
        "mask": None,
        "score": float(str(row.scores[0])),
    }


def _groups_of(shapes: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Shapes of one label and group belong to one object; a shape without a group is one by itself."""
    groups: dict[object, list[Mapping[str, Any]]] = {}
    for i, shape in enumerate(shapes):
        group = shape.get("group_id")
        groups.setdefault(("alone", i) if group is None else (shape.get("label"), group), []).append(shape)
    return list(groups.values())


def _rle_of(shape: Mapping[str, Any], size: Size) -> Rle:
    kind = shape.get("shape_type") or "polygon"
    what = f"the {kind} {str(shape.get('label', ''))!r}"
    try:
        points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
        if kind == "mask":
            return _pasted(shape["mask"], points, size)
        if kind not in _OUTLINES:
            raise ValueError(f"it has no area: only {', '.join(_OUTLINES)} and mask can be read")
        return from_polygons([_OUTLINES[kind](points)], size)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


def _rectangle(points: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "4 2"]:
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return np.asarray([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _circle(points: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "128 2"]:
    """Its centre and a point on it, as LabelMe stores a circle."""
    centre, edge = points
    angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    return np.asarray(centre + np.hypot(*(edge - centre)) * np.stack([np.cos(angle), np.sin(angle)], axis=1))


_OUTLINES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "polygon": np.asarray,
    "rectangle": _rectangle,
    "circle": _circle,
}


def _pasted(png: str, points: Float[np.ndarray, "k 2"], size: Size) -> Rle:
    """A LabelMe mask: a PNG in base64, whose first pixel lies at the first point."""
    try:
        crop = read_mask(io.BytesIO(base64.b64decode(png, validate=True)))
    except binascii.Error as error:
        raise ValueError("its mask must be a PNG in base64") from error
    x, y = (int(value) for value in points[0])
    canvas = np.zeros((1, *size), bool)
    if x < 0 or y < 0 or x + crop.shape[1] > size[1] or y + crop.shape[0] > size[0]:
        raise ValueError(f"its mask of {crop.shape} at {x}, {y} must lie within the image of {size}")
    canvas[0, y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return rle.encode(canvas)[0]
