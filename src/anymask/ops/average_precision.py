"""COCO's average precision of masks, for any number of bootstrap draws of the images at once.

As in pycocotools' `COCOeval` with `iouType="segm"` and areas of any size: at each IoU threshold the detections of a
name take, the surest first, the object they overlap most that is still free; precision is interpolated at 101 recalls,
and the mean is over recalls, thresholds and the names that any image has an object of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from anymask.ops import rle
from anymask.ops.rle import Rle

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100  # of one name in one image: the surest
_MOST_NUMBERS = 1_000_000  # in one array


@dataclass(frozen=True, eq=False)
class Matched:
    """The detections of one name in one image, the surest first: which are right or wrong at each IoU threshold.

    One that is neither lies on a crowd. `objects` is how many there were to find.
    """

    scores: Float[np.ndarray, "d"]
    right: Bool[np.ndarray, "t d"]
    wrong: Bool[np.ndarray, "t d"]
    objects: int


def match(
    detections: Sequence[Rle], scores: Float[np.ndarray, "d"], objects: Sequence[Rle], crowds: Sequence[Rle] = ()
) -> Matched:
    """Give each detection an object, or none. What is mostly on one of `crowds` does not count (COCO's `iscrowd`)."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")[:MOST_DETECTIONS]
    surest = [detections[row] for row in order]
    overlaps = _iou(surest, objects)
    on_crowds = _share(surest, crowds).max(axis=1, initial=0)
    right = np.stack([_greedy(overlaps, threshold) for threshold in IOU_THRESHOLDS])
    wrong = ~right & (on_crowds[None] < IOU_THRESHOLDS[:, None])
    return Matched(np.asarray(scores, np.float64)[order], right, wrong, len(objects))


def average_precision(
    images: Sequence[Mapping[str, Matched]], weights: Float[np.ndarray, "b n"] | None = None
) -> Float[np.ndarray, "b t"]:
    """AP at each of `IOU_THRESHOLDS`, the mean over names; each image holds the names that it was asked for.

    Row b counts image i `weights[b, i]` times (without weights there is one row, every image once). NaN where no object
    was to be found.
    """
    counts = np.ones((1, len(images))) if weights is None else weights
    names = dict.fromkeys(name for image in images for name in image)
    total, known = np.zeros((len(counts), len(IOU_THRESHOLDS))), np.zeros((len(counts), 1))
    for name in names:
        rows = [i for i, image in enumerate(images) if name in image]
        matched, weight = [images[i][name] for i in rows], counts[:, rows]
        objects = weight @ np.asarray([one.objects for one in matched], np.float64)
        drawn = objects > 0
        total[drawn] += _of_name(matched, weight[drawn], objects[drawn])
        known[drawn] += 1
    return np.where(known > 0, total / np.maximum(known, 1), np.nan)


def _of_name(
    matched: Sequence[Matched], weights: Float[np.ndarray, "b m"], objects: Float[np.ndarray, "b"]
) -> Float[np.ndarray, "b t"]:
    """AP of one name, some draws at a time: many draws of many detections at once would fill the memory."""
    order = np.argsort(-np.concatenate([one.scores for one in matched]), kind="stable")
    image = np.repeat(np.arange(len(matched)), [len(one.scores) for one in matched])[order]
    right = np.concatenate([one.right for one in matched], axis=1)[:, order]
    wrong = np.concatenate([one.wrong for one in matched], axis=1)[:, order]
    step = max(1, _MOST_NUMBERS // max(right.size, 1))
    found = np.zeros((len(weights), len(IOU_THRESHOLDS)))
    for start in range(0, len(weights), step):
        weight = weights[start : start + step, None, image]
        hits, misses = (right * weight).cumsum(axis=2), (wrong * weight).cumsum(axis=2)
        recall, precision = hits / objects[start : start + step, None, None], hits / np.maximum(hits + misses, 1)
        found[start : start + step] = _interpolated(recall, precision)
    return found


def _interpolated(
    recall: Float[np.ndarray, "b t d"], precision: Float[np.ndarray, "b t d"]
) -> Float[np.ndarray, "b t"]:
    """The mean over `RECALLS` of the best precision at that recall or a higher one."""
    best = np.zeros((*recall.shape[:2], len(RECALLS) + 1))
    reached = np.searchsorted(RECALLS, recall, side="right")  # how many of RECALLS the detections so far reach
    later = np.maximum.accumulate(precision[..., ::-1], axis=2)
    # From the last detection to the first: of those that reach as many, what the first sees after it stays.
    np.put_along_axis(best, reached[..., ::-1], later, axis=2)
    envelope = np.maximum.accumulate(best[..., ::-1], axis=2)[..., ::-1]
    return np.asarray(envelope[..., 1:].mean(axis=2))


def _greedy(overlaps: Float[np.ndarray, "d m"], threshold: float) -> Bool[np.ndarray, "d"]:
    """Which detections get an object: each the free one that it overlaps most, of equal ones the last."""
    free = overlaps.copy()
    right = np.zeros(len(free), bool)
    for row in np.flatnonzero((overlaps >= threshold).any(axis=1)):
        best = free.shape[1] - 1 - int(free[row, ::-1].argmax())
        if free[row, best] >= threshold:
            right[row], free[:, best] = True, -1
    return right


def _iou(first: Sequence[Rle], second: Sequence[Rle]) -> Float[np.ndarray, "n m"]:
    """As `rle.iou`, in float64: an IoU of exactly 0.55 counts as that."""
    overlap = rle.intersections(first, second)
    union = rle.areas(first)[:, None] + rle.areas(second)[None] - overlap
    return np.asarray(overlap / np.maximum(union, 1))


def _share(first: Sequence[Rle], second: Sequence[Rle]) -> Float[np.ndarray, "n m"]:
    """How much of every mask of `first` lies on every mask of `second`."""
    overlap: Int[np.ndarray, "n m"] = rle.intersections(first, second)
    return np.asarray(overlap / np.maximum(rle.areas(first), 1)[:, None])
