"""The detector that needs no detector: a scorer looks through windows of several sizes, and peaks of its map are boxes.

Each scale has a map of the image, the mean of the windows that see a place, those that see it in their middle first.
Objects are sought in the map of each scale and in the mean of all maps: a small one stands out in small windows alone,
a large one in the whole image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from anymask.data.reducing import fitted
from anymask.grounding.protocol import Detections, DetectionThresholds, ScoreMaps, Scorer
from anymask.ops.boxes import distinct
from anymask.ops.grids import CropBox
from anymask.ops.peaks import find_peaks
from anymask.tiling import SMALLEST, tiles
from anymask.types import Image, Size

THRESHOLDS = DetectionThresholds(box=0.15)  # text is for detectors of phrases
OVERLAP = 4  # windows share a quarter of their side
LONG_SIDE = 96  # cells of a map
MOST = 64  # boxes a name
SAME = 0.8  # IoU of two boxes of a name from which on they are one
GLIMPSE = 0.7  # as a share of the threshold
RIM = 0.02  # weight of the rim of a window beside 1 in its middle


@dataclass(frozen=True, eq=False)
class WindowDetector:
    """Windows as wide as the long side, a half of it, and so on (`scales`), behind the `Detector` protocol.

    A scorer that sees a window as a whole (CLIP) tells places apart by windows alone, and gains from a third scale.
    """

    scorer: Scorer
    scales: tuple[int, ...] = (1, 2)
    thresholds: DetectionThresholds = THRESHOLDS

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales are 1 for the whole image, 2 for halves and so on, got {self.scales}")

    @property
    def name(self) -> str:
        """What looks through the windows."""
        return f"windows of {self.scorer.name}"

    def detect(self, image: Image, names: Sequence[str], thresholds: DetectionThresholds | None = None) -> Detections:
        """Boxes around each peak of each name's maps, their score the peak's.

        Around a peak among others there are two: of its own part of the ground, and of all of it.
        """
        floor = (thresholds or self.thresholds).box
        if not 0 < floor <= 1:
            raise ValueError(f"the box threshold of {self.name} must be above 0 and at most 1, got {floor:g}")
        maps = self._maps(image, names, floor * GLIMPSE)
        overall = [np.mean(some, axis=0) for some in maps]
        several = [[mean, *some] if len(some) > 1 else some for mean, some in zip(overall, maps, strict=True)]
        nearest = {name: float(max(one.max() for one in some)) for name, some in zip(names, several, strict=True)}
        found = [_boxes(some, floor, image.size) for some in several]
        labels = [name for name, rows in zip(names, found, strict=True) for _ in rows]
        rows = np.concatenate(found)
        order = np.argsort(-rows[:, 4], kind="stable")
        return Detections(
            rows[order, :4],
            rows[order, 4],
            tuple(labels[i] for i in order),
            nearest,
            maps=ScoreMaps(tuple(names), np.stack(overall)),
            notes=self.scorer.notes,
        )

    def _maps(self, image: Image, names: Sequence[str], glimpse: float) -> list[list[Float[np.ndarray, "mh mw"]]]:
        """Of each name those of the scales that it was sought in.

        Where a scorer tells places within a window apart, a name is sought in smaller windows only if the first scale
        shows a glimpse of it: each window is a further chance of a false alarm, and names cost time.
        """
        first, *finer = windows_of(image.size, self.scales)
        grids = self.scorer.score_windows(image, first, names)
        sees_places = grids[0][0].size > 1
        maps = [[one] for one in _blend(first, grids, image.size)]
        again = [k for k, [one] in enumerate(maps) if one.max() >= glimpse or not sees_places]
        for windows in finer if again else ():
            grids = self.scorer.score_windows(image, windows, [names[k] for k in again])
            for k, one in zip(again, _blend(windows, grids, image.size), strict=True):
                maps[k].append(one)
        return maps


def windows_of(size: Size, scales: Sequence[int]) -> list[list[CropBox]]:
    """The windows of each scale; a scale whose windows would be smaller than 64 pixels is left out, the first never."""
    sides = [-(-max(size) // scale) for scale in scales]
    large = [side for i, side in enumerate(sides) if side >= SMALLEST or i == 0]
    return [
        [(0, 0, size[1], size[0])] if side >= max(size) else tiles(size, max(side, SMALLEST), side // OVERLAP)
        for side in large
    ]


def _blend(
    windows: Sequence[CropBox], grids: Sequence[Float[np.ndarray, "k _ _"]], size: Size
) -> Float[np.ndarray, "k mh mw"]:
    """One map of the image: where windows overlap, their mean by how near their middle the place is."""
    mh, mw = fitted(size, LONG_SIDE)
    total, weights = np.zeros((len(grids[0]), mh, mw), np.float32), np.zeros((mh, mw), np.float32)
    for (x0, y0, x1, y1), grid in zip(windows, grids, strict=True):
        left, right = _cells(x0, x1, size[1], mw)
        top, bottom = _cells(y0, y1, size[0], mh)
        weight = np.outer(_tent(bottom - top), _tent(right - left))
        for k, probs in enumerate(grid):
            total[k, top:bottom, left:right] += weight * _resized(probs, (bottom - top, right - left))
        weights[top:bottom, left:right] += weight
    return total / weights


def _cells(start: int, stop: int, side: int, cells: int) -> tuple[int, int]:
    """The cells of a map that a window lies on, one at least."""
    first = min(cells - 1, round(start * cells / side))
    return first, max(first + 1, round(stop * cells / side))


def _tent(n: int) -> Float[np.ndarray, "n"]:
    """1 in the middle, falling to the rim."""
    places = (np.arange(n, dtype=np.float32) + 0.5) / n
    tent: np.ndarray = RIM + (1 - RIM) * (1 - np.abs(2 * places - 1))
    return tent


def _resized(probs: Float[np.ndarray, "gh gw"], size: Size) -> Float[np.ndarray, "mh mw"]:
    shrinks = probs.shape[0] > size[0] and probs.shape[1] > size[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.asarray(probs, np.float32), (size[1], size[0]), interpolation=interpolation)


def _boxes(maps: Sequence[Float[np.ndarray, "mh mw"]], floor: float, size: Size) -> Float[np.ndarray, "n 5"]:
    """Rows of box, in pixels, and score; of boxes nearly the same the one of the highest peak."""
    mh, mw = maps[0].shape
    across, down = size[1] / mw, size[0] / mh
    to_pixels = np.asarray([across, down, across, down, 1])
    rows = [
        (*box, peak.value)
        for probs in maps
        for peak in find_peaks(probs, floor, MOST)
        for box in (peak.box, peak.whole)
    ]
    found = (np.asarray(rows, np.float64).reshape(-1, 5) * to_pixels).astype(np.float32)
    kept: np.ndarray = found[distinct(found[:, :4], found[:, 4], SAME)[:MOST]]
    return kept
