"""How good masks are: IoU, boundary IoU, pixel precision and recall, number of clicks, and intervals of their means.

All functions take masks row by row: row i of `predicted` is scored against row i of `target`. Where a value is not
defined (the precision of an empty mask) it is NaN; means pass over NaN.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def iou(predicted: Bool[np.ndarray, "n h w"], target: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "n"]:
    """Intersection over union; 1 where both masks are empty."""
    _check_shapes(predicted, target)
    overlap = _areas(predicted & target)
    union = _areas(predicted) + _areas(target) - overlap
    return np.where(union > 0, overlap / np.maximum(union, 1), 1.0)


def boundary_iou(
    predicted: Bool[np.ndarray, "n h w"], target: Bool[np.ndarray, "n h w"], dilation_ratio: float = 0.02
) -> Float[np.ndarray, "n"]:
    """IoU of the two inner boundaries, each `dilation_ratio` of the image diagonal wide (Cheng et al. 2021, eq. 2).

    Small masks are all boundary: for these it equals the IoU. Distances are the larger of those in x and in y, and the
    image border counts as a border of the mask, both as in the authors' code (`boundary_iou_api`).
    """
    _check_shapes(predicted, target)
    width = max(1, round(dilation_ratio * float(np.hypot(*target.shape[1:]))))
    inner = [np.asarray([inner_boundary(mask, width) for mask in masks], bool) for masks in (predicted, target)]
    return iou(*(boundaries.reshape(target.shape) for boundaries in inner))


def inner_boundary(mask: Bool[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    """The pixels of `mask` with a pixel outside of it (or of the image) at most `width` away in x and in y."""
    side = 2 * width + 1
    sums = np.pad(mask, ((width + 1, width), (width + 1, width))).astype(np.int32).cumsum(axis=0).cumsum(axis=1)
    window = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    inner: np.ndarray = mask & (window < side * side)
    return inner


def precision_recall(
    predicted: Bool[np.ndarray, "n h w"], target: Bool[np.ndarray, "n h w"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The share of predicted pixels that are right, and of target pixels that were found; NaN where there are none."""
    _check_shapes(predicted, target)
    overlap = _areas(predicted & target)
    return _share(overlap, _areas(predicted)), _share(overlap, _areas(target))


def clicks_to_reach(ious: Float[np.ndarray, "n clicks"], threshold: float, maximum: int) -> Int[np.ndarray, "n"]:
    """NoC: the first click after which the IoU is at least `threshold`; `maximum` where none of the first ones is.

    Column k of `ious` is the IoU after click k + 1 (Sofiiuk et al. 2021, RITM, where `maximum` is 20).
    """
    reached = ious[:, :maximum] >= threshold
    first = np.argmax(reached, axis=1) + 1 if reached.shape[1] else np.ones(len(ious), np.int64)
    return np.where(reached.any(axis=1), first, maximum)


def roc_auc(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float:
    """The chance that a positive scores above a negative, ties counting half; NaN without both kinds."""
    held, asked = np.sort(scores[~positive]), scores[positive]
    if not len(held) or not len(asked):
        return float("nan")
    below, upto = np.searchsorted(held, asked, "left"), np.searchsorted(held, asked, "right")
    return float((below + upto).mean() / 2 / len(held))


def reliability(
    predicted: Float[np.ndarray, "n"], real: Float[np.ndarray, "n"], bins: int = 10
) -> list[tuple[float, int, float, float]]:
    """Of each bin of predictions (0 to 1) that has any: lower edge, count, mean prediction, mean of what came."""
    rows = []
    place = np.clip((predicted * bins).astype(np.int64), 0, bins - 1)
    for one in np.unique(place):
        inside = place == one
        rows.append((one / bins, int(inside.sum()), float(predicted[inside].mean()), float(real[inside].mean())))
    return rows


def calibration_error(predicted: Float[np.ndarray, "n"], real: Float[np.ndarray, "n"], bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): how far predictions are off, bin by bin. NaN without any."""
    rows = reliability(predicted, real, bins)
    total = sum(count for _, count, _, _ in rows)
    return sum(count * abs(said - came) for _, count, said, came in rows) / total if total else float("nan")


def bootstrap_interval(
    per_image: Sequence[Float[np.ndarray, "_"]], *, seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over all values when the images are drawn anew (Efron 1979).

    An image brings all its values or none, because the masks of one image are not independent. NaN without a value.
    """
    sums = np.asarray([np.nansum(values) for values in per_image])
    counts = np.asarray([np.count_nonzero(~np.isnan(values)) for values in per_image])
    sums, counts = sums[counts > 0], counts[counts > 0]
    if not len(counts):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(counts), (draws, len(counts)))
    return percentile_interval(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))


def bootstrap_weights(images: int, *, seed: int = 0, draws: int = 1000) -> Float[np.ndarray, "b n"]:
    """How often each image comes in each of `draws` sets of as many images, drawn from all with replacement."""
    drawn = np.random.default_rng(seed).integers(0, images, (draws, images))
    return np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.float64)


def percentile_interval(values: Float[np.ndarray, "b"]) -> tuple[float, float]:
    """The 95 % interval of a measure over bootstrap draws, of those that have it; NaN where none has."""
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _areas(masks: Bool[np.ndarray, "n h w"]) -> Int[np.ndarray, "n"]:
    """Row by row: `count_nonzero` of a whole bool array is many times as fast as a sum along axes."""
    return np.asarray([np.count_nonzero(mask) for mask in masks], np.int64)


def _share(part: Int[np.ndarray, "n"], whole: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _check_shapes(predicted: np.ndarray, target: np.ndarray) -> None:
    if predicted.shape != target.shape or predicted.ndim != 3:
        raise ValueError(
            f"predicted and target must be bool (n, h, w) of one shape, got {predicted.shape} and {target.shape}"
        )
