"""Simulated clicks: where a user would click next (as RITM and SAM's section D.2 evaluate)."""

import cv2
import numpy as np
from jaxtyping import Bool, Float


def first_click(target: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    """The pixel of `target` farthest from its border (x, y at the pixel's centre). `target` must not be empty."""
    return _deepest(target)


def next_click(predicted: Bool[np.ndarray, "h w"], target: Bool[np.ndarray, "h w"]) -> tuple[float, float, int] | None:
    """A click in the middle of the largest error region: label 1 where `target` was missed, 0 where it was overrun.

    None when there is no error left.
    """
    regions = [
        (region, label) for label in (1, 0) if (region := _largest(_errors(predicted, target, label))) is not None
    ]
    if not regions:
        return None
    region, label = max(regions, key=lambda found: int(found[0].sum()))
    return (*_deepest(region), label)


def drawn_click(cells: Float[np.ndarray, "h w"], rng: np.random.Generator) -> tuple[float, float]:
    """x y of a first click for training on a soft mask: half of the time the deepest point, else anywhere on it."""
    inside = cells > min(0.5, 0.99 * float(cells.max()))
    if rng.random() < 0.5:
        return first_click(inside)
    ys, xs = np.nonzero(inside)
    pick = int(rng.integers(len(ys)))
    return float(xs[pick] + rng.random()), float(ys[pick] + rng.random())


def _errors(predicted: Bool[np.ndarray, "h w"], target: Bool[np.ndarray, "h w"], label: int) -> Bool[np.ndarray, "h w"]:
    return np.asarray(target & ~predicted if label == 1 else predicted & ~target)


def _largest(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"] | None:
    """The largest 8-connected component."""
    count, component, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    return np.asarray(component == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def _deepest(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    padded = np.pad(mask.astype(np.uint8), 1)  # the image border counts as a border of the mask
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(x) + 0.5, float(y) + 0.5
