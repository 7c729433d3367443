"""Masks to polygons and back without losing a pixel: several parts, holes, diagonal neighbours.

The outlines run along the edges between pixels, so their corners are whole numbers and COCO's rasteriser
(`maskApi.c`, `rleFrPoly`: even-odd, sampled at pixel centres) gives back exactly the mask they came from. A COCO
polygon has no holes: a hole is joined to the outline by a bridge, two equal lines walked in opposite directions, which
enclose nothing and cancel in every even-odd fill.
"""

from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from pycocotools import mask as coco_mask

from anymask.ops import rle
from anymask.ops.rle import Rle
from anymask.types import Size

_TRIED_CORNERS = 10_000


def polygons_of(mask: Bool[np.ndarray, "h w"]) -> list[Float[np.ndarray, "_ 2"]]:
    """One polygon (x y of its corners) for each part of `mask`, holes joined by bridges; none for an empty mask.

    Parts are 4-connected: pixels that touch at a corner only are two parts.
    """
    grid = np.pad(mask, 1).astype(np.uint8)
    parts = cv2.connectedComponents(grid, connectivity=4)[1]
    rings: dict[int, list[Int[np.ndarray, "_ 2"]]] = {}
    for ring in sorted(_rings(grid), key=lambda corners: (corners[0][1], corners[0][0])):
        x, y = ring[0]
        # The pixel below and right of a ring's topmost corner is the part itself, or else the hole under the part.
        part = parts[y + 1, x + 1] or parts[y, x + 1]
        rings.setdefault(int(part), []).append(ring)
    return [_joined(of_part).astype(np.float64) for of_part in rings.values()]


def polygon_of(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "k 2"]:
    """The whole mask as one polygon, its parts joined by bridges too (YOLO has one polygon a row); (0, 2) if empty."""
    parts = polygons_of(mask)
    return _joined(parts) if parts else np.zeros((0, 2))


def from_polygons(polygons: Sequence[Float[np.ndarray, "_ 2"]], size: Size) -> Rle:
    """The union of `polygons` as COCO rasterises it, cut to `size` (h, w); of none, the empty mask.

    Raises `ValueError` for a polygon of fewer than 3 points or with a coordinate that is not finite.
    """
    for corners in polygons:
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
            raise ValueError(f"a polygon must have at least 3 points x y, got an array {corners.shape}")
        if not np.isfinite(corners).all() or np.abs(corners).max() > 1e6:
            raise ValueError("a polygon must have finite coordinates below a million")
    flat = [np.asarray(corners, np.float64).reshape(-1).tolist() for corners in polygons]
    if not flat:
        return rle.merge([], size)
    united: Any = coco_mask.merge(cast(Any, coco_mask.frPyObjects(cast(Any, flat), *size)))
    return Rle(size=list(size), counts=united["counts"].decode("ascii"))


def _rings(grid: UInt8[np.ndarray, "h w"]) -> list[Int[np.ndarray, "_ 2"]]:
    """The closed outlines of a padded mask as corners x y (in the unpadded frame), each from its topmost left corner.

    Where four pixels meet, an odd number of them makes one corner and a diagonal pair two. Along every grid line the
    corners pair up: first with second, third with fourth. Walking pairs along rows and columns in turn closes a ring.
    """
    x, y, second, falling = _corners(grid)
    along_row = _partners(np.lexsort((second, x, y)))
    along_column = _partners(np.lexsort((second ^ falling, y, x)))
    points = np.stack([x, y], axis=1)
    seen = np.zeros(len(x), bool)
    rings = []
    for start in np.lexsort((second, x, y)):
        if not seen[start]:
            walk = _walk(int(start), along_row, along_column)
            seen[walk] = True
            rings.append(points[walk])
    return rings


def _corners(grid: UInt8[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y of every corner; whether it is the second one at its place; whether the pair there falls to the left.

    The first corner of a diagonal pair ends the line from the left, the second begins the line to the right. If the
    top-left and bottom-right pixels are on, the first one belongs to the line from above; otherwise the second does.
    So each pixel of the pair keeps its own corner.
    """
    top_left, top_right, low_left, low_right = grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]
    single = (top_left ^ top_right ^ low_left ^ low_right).astype(bool)
    diagonal = (top_left == low_right) & (top_right == low_left) & (top_left != top_right)
    y1, x1 = np.nonzero(single)
    y2, x2 = np.nonzero(diagonal)
    falling = np.concatenate([np.zeros(len(x1), bool), np.tile(top_right[y2, x2].astype(bool), 2)])
    second = np.zeros(len(x1) + 2 * len(x2), bool)
    second[len(x1) + len(x2) :] = True
    return np.concatenate([x1, x2, x2]), np.concatenate([y1, y2, y2]), second, falling


def _partners(order: Int[np.ndarray, "k"]) -> list[int]:
    partner = np.empty_like(order)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return cast(list[int], partner.tolist())


def _walk(start: int, along_row: list[int], along_column: list[int]) -> list[int]:
    walk = [start, along_row[start]]
    while (corner := along_column[walk[-1]]) != start:
        walk += [corner, along_row[corner]]
    return walk


def _joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One closed path through all `rings`: each begins at its topmost corner, bridged to the nearest one before.

    Any bridge is exact; of a very long path only some corners are tried, to keep the time linear.
    """
    path = rings[0]
    for ring in rings[1:]:
        step = 1 + len(path) // _TRIED_CORNERS
        near = step * int(np.square(path[::step] - ring[0]).sum(axis=1).argmin())
        path = np.concatenate([path[: near + 1], ring, ring[:1], path[near:]])
    return _without_repeats(path)


def _without_repeats(path: np.ndarray) -> np.ndarray:
    """No point twice in a row: COCO's rasteriser divides by the length of each line."""
    moves = np.any(np.diff(path, axis=0) != 0, axis=1)
    return np.asarray(path[np.concatenate([[True], moves])])
