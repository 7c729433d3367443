"""What a box alone gives, without any weights: the floor that a model has to beat."""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from jaxtyping import Bool, Float

from anymask.types import Image

Baseline = Callable[[Image, np.ndarray], np.ndarray]

GRABCUT_ITERATIONS = 5


def whole_box(image: Image, boxes: Float[np.ndarray, "n 4"]) -> Bool[np.ndarray, "n h w"]:
    """Every pixel whose centre lies in the box."""
    h, w = image.size
    x, y = np.arange(w) + 0.5, np.arange(h) + 0.5
    x0, y0, x1, y1 = boxes.T[:, :, None]
    columns, rows = (x0 <= x) & (x < x1), (y0 <= y) & (y < y1)
    return np.asarray(rows[:, :, None] & columns[:, None, :])


def grabcut(image: Image, boxes: Float[np.ndarray, "n 4"]) -> Bool[np.ndarray, "n h w"]:
    """GrabCut (Rother et al. 2004) of OpenCV, started from the box: all outside of it is background for certain."""
    found = [_grabcut(image, inside) for inside in whole_box(image, boxes)]
    return np.asarray(found, bool).reshape(-1, *image.size)


BASELINES: Mapping[str, Baseline] = {"whole_box": whole_box, "grabcut": grabcut}


def _grabcut(image: Image, inside: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    if inside.all() or not inside.any():
        return inside  # without background or without foreground there is nothing to learn colours from
    cv2.setRNGSeed(0)
    guess = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(image.pixels[:, :, ::-1])
    cv2.grabCut(bgr, guess, (0, 0, 0, 0), background, foreground, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return np.asarray((guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD))
