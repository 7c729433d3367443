"""The floors to beat: what a box alone gives without any weights, and a score map alone without a mask decoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import Bool, Float

from anymask.models.protocol import Grounded, Model
from anymask.ops import rle
from anymask.prompting import place
from anymask.types import Features, Image, Masks, Prompt

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


def score_map_instances(model: Model, image: Image, names: Sequence[str], presence: float | None = None) -> Masks:
    """Of a model that knows text, the connected parts of each name's score map above 0 as its instances.

    A part's score is the presence of the name times the mean probability of its pixels. A name whose presence is below
    `presence` (the model's own threshold) has none: with 0 more objects are found, and more names that are not there.
    """
    least = model.capabilities.thresholds.presence if presence is None else presence
    [features] = model.encode([image])
    grounded = model.ground(features, model.encode_text([Prompt.text(name) for name in names]), instances=False)
    there = [pair for pair in zip(names, grounded, strict=True) if pair[1].presence >= least]
    parts = [_parts_of(name, found, features) for name, found in there]
    masks = Masks.concat([Masks.empty(image.size), *parts])
    return replace(masks, ids=np.arange(1, len(masks) + 1))


def _parts_of(name: str, found: Grounded, features: Features) -> Masks:
    logits = place(found.semantic_logits[None], features.frame)[0].float().cpu()
    above = (logits > 0).numpy().astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    sums = np.bincount(parts.ravel(), weights=logits.sigmoid().numpy().ravel())
    rles = [
        rle.encode_window(parts[y : y + h, x : x + w] == i, x, y, features.frame.size)
        for i, (x, y, w, h, _) in enumerate(stats[1:].tolist(), start=1)
    ]
    scores = found.presence * sums[1:] / stats[1:, cv2.CC_STAT_AREA]
    return Masks.from_rles(rles, features.frame.size, scores=scores, labels=[name] * len(rles))


def _grabcut(image: Image, inside: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    if inside.all() or not inside.any():
        return inside  # without background or without foreground there is nothing to learn colours from
    cv2.setRNGSeed(0)
    guess = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(image.pixels[:, :, ::-1])
    cv2.grabCut(bgr, guess, (0, 0, 0, 0), background, foreground, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return np.asarray((guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD))
