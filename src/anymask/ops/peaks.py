"""Objects in a map of probabilities: its peaks, and the region around each, split where two of them meet.

A peak counts where the way to any higher one leads through lower ground (persistence: Edelsbrunner et al. 2002), so
that noise on a plateau is one object and two blobs that touch are two. Ground is looked at in levels, each `STEP` of
the one above, so that the cost depends on the size of the map and not on what is in it.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

SHARE = 0.5  # of a peak that its own region reaches down to
WHOLE_SHARE = 0.35  # and the ground around it that may hold other peaks
STEP = 0.98  # from one level to the next; a peak must stand alone one level further down than where it came up


class Peak(NamedTuple):
    """Where it is (x y of its cell), how high, and boxes x0 y0 x1 y1 in cells, end exclusive.

    `box` is that of its own region, `whole` that of all the ground around it: several peaks may be parts of one object.
    """

    point: tuple[int, int]
    value: float
    box: tuple[int, int, int, int]
    whole: tuple[int, int, int, int]


def find_peaks(values: Float[np.ndarray, "h w"], floor: float, most: int = 64) -> list[Peak]:
    """Peaks of at least `floor` (above 0), the highest first."""
    levels = _levels(float(values.max()), floor)
    points = _standing(values, levels)[:most]
    owners = _split(values, points, levels)
    found = list[Peak]()
    for owner, (y, x) in enumerate(points, start=1):
        value = float(values[y, x])
        own, whole = (owners == owner) & (values >= SHARE * value), values >= WHOLE_SHARE * value
        found.append(Peak((x, y), value, _box_around((y, x), own), _box_around((y, x), whole)))
    return found


def _levels(top: float, floor: float) -> Float[np.ndarray, "l"]:
    """Downwards from the top of the map to the floor; none of a map that does not reach it."""
    if top < floor:
        return np.zeros(0)
    count = int(np.log(floor / top) / np.log(STEP)) + 1
    return np.append(top * STEP ** np.arange(count), floor)


def _standing(values: Float[np.ndarray, "h w"], levels: Float[np.ndarray, "l"]) -> list[tuple[int, int]]:
    """Cells y x of the peaks, the highest first."""
    standing, young = list[tuple[int, int]](), list[tuple[int, int]]()
    for level in levels:
        count, parts = cv2.connectedComponents((values >= level).astype(np.uint8), connectivity=8)
        taken = {int(parts[cell]) for cell in standing}
        for cell in young:
            if int(parts[cell]) not in taken:
                standing.append(cell)
                taken.add(int(parts[cell]))
        fresh = [_highest(values, parts == part) for part in range(1, count) if part not in taken]
        young = sorted(fresh, key=lambda cell: -values[cell])  # of two that meet at once the higher one stands
    return sorted(standing + young, key=lambda cell: -values[cell])


def _split(
    values: Float[np.ndarray, "h w"], points: list[tuple[int, int]], levels: Float[np.ndarray, "l"]
) -> Int[np.ndarray, "h w"]:
    """Whose each cell is, counted from 1, 0 below the floor: level by level, new ground goes to what is nearest."""
    owners = np.zeros(values.shape, np.int32)
    for level in levels if points else ():
        for owner, cell in enumerate(points, start=1):
            if values[cell] >= level and owners[cell] == 0:
                owners[cell] = owner
        _, parts = cv2.connectedComponents((values >= level).astype(np.uint8), connectivity=8)
        fresh = (parts > 0) & (owners == 0)
        owners[fresh] = _sole_owners(parts, owners)[parts[fresh]]
        contested = fresh & (owners == 0)
        if contested.any():
            owners[contested] = _nearest(owners)[contested]
    return owners


def _sole_owners(parts: Int[np.ndarray, "h w"], owners: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "p"]:
    """Of each part whose it is, 0 where there is none or more than one."""
    owned = owners > 0
    first, last = np.full((2, parts.max() + 1), [[np.iinfo(np.int32).max], [0]], np.int32)
    np.minimum.at(first, parts[owned], owners[owned])
    np.maximum.at(last, parts[owned], owners[owned])
    return np.where(first == last, last, 0)


def _nearest(owners: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Whose cell is nearest to each cell."""
    _, places = cv2.distanceTransformWithLabels(
        (owners == 0).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    owner_of = np.zeros(int(places.max()) + 1, np.int32)
    owner_of[places[owners > 0]] = owners[owners > 0]
    return owner_of[places]


def _highest(values: Float[np.ndarray, "h w"], part: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    y, x = np.unravel_index(int(np.where(part, values, -1).argmax()), values.shape)
    return int(y), int(x)


def _box_around(cell: tuple[int, int], ground: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Of what is connected to the cell."""
    _, parts, boxes, _ = cv2.connectedComponentsWithStats(ground.astype(np.uint8), connectivity=8)
    x0, y0, w, h = (int(side) for side in boxes[parts[cell]][:4])
    return x0, y0, x0 + w, y0 + h
