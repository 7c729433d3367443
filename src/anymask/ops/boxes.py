"""Boxes x0 y0 x1 y1 in pixels, end exclusive."""

import numpy as np
from jaxtyping import Float


def jittered(
    boxes: Float[np.ndarray, "n 4"], amount: float, size: tuple[int, int], rng: np.random.Generator
) -> Float[np.ndarray, "n 4"]:
    """Boxes as a hasty user draws them: each edge moved by a normal with `amount` of the box's side as its deviation.

    Kept inside an image of `size` (h, w) and at least one pixel wide and high (SAM, section A, has 0.1).
    """
    h, w = size
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + rng.normal(size=boxes.shape) * amount * sides
    limits = np.asarray([w, h], np.float64)
    first = np.clip(moved[:, :2], 0, limits - 1)
    last = np.clip(moved[:, 2:], first + 1, limits)
    return np.concatenate([first, last], axis=1).astype(boxes.dtype)
