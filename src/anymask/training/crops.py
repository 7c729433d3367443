"""Crops of annotated pictures and what augmentation does to them: copy-paste, colour."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from anymask.data.coco import UNNAMED

REGION = "(a region)"  # stands for the name of a mask that nobody labelled


@dataclass
class Crop:
    """A sample in the making."""

    pixels: UInt8[np.ndarray, "s s 3"]
    targets: Float[np.ndarray, "n q q"]
    names: list[str]
    absent: set[str]
    exhaustive: bool
    source: str


def paste(rng: np.random.Generator, crop: Crop, donor: Crop) -> Crop:
    """An object of `donor` pasted over `crop` (Ghiasi et al. 2021, simple copy-paste), shrunk and moved at random."""
    side, quarter = crop.pixels.shape[0], crop.targets.shape[1]
    areas = donor.targets.mean(axis=(1, 2))
    labelled = np.asarray([name != REGION for name in donor.names])
    choices = np.flatnonzero((areas > 0.01) & (areas < 0.5) & labelled)
    if not len(choices):
        return crop
    row = int(rng.choice(choices))
    scale = float(rng.uniform(0.4, 1.0))
    ys, xs = np.nonzero(donor.targets[row] > 0.5)
    if not len(ys):
        return crop
    centre = np.asarray([xs.mean() + 0.5, ys.mean() + 0.5]) * 4
    to = rng.uniform(0.2, 0.8, 2) * side
    warp = np.asarray([[scale, 0, to[0] - scale * centre[0]], [0, scale, to[1] - scale * centre[1]]])
    alpha_s = cv2.resize(donor.targets[row], (side, side), interpolation=cv2.INTER_LINEAR)
    alpha_s = (cv2.warpAffine(alpha_s, warp, (side, side)) > 0.5).astype(np.float32)
    moved = cv2.warpAffine(donor.pixels, warp, (side, side))
    alpha = cv2.GaussianBlur(alpha_s, (3, 3), 0)[..., None]
    pixels = (crop.pixels * (1 - alpha) + moved * alpha).astype(np.uint8)
    target = soft(alpha_s, quarter)
    left = np.minimum(crop.targets, 1 - target)
    name = donor.names[row]
    speakable = crop.exhaustive and (name in crop.absent or name in crop.names)
    names = [*crop.names, name if speakable else UNNAMED]
    return Crop(pixels, np.concatenate([left, target[None]]), names, crop.absent - {name}, crop.exhaustive, crop.source)


def random_crop_box(rng: np.random.Generator, size: tuple[int, int], smallest: float) -> tuple[int, int, int, int]:
    """x0 y0 x1 y1 of a crop whose sides are at least the share `smallest` of the image's, a little stretched."""
    h, w = size
    share = rng.uniform(smallest, 1.0)
    stretch = float(np.exp(rng.uniform(-0.25, 0.25)))
    ch, cw = (int(min(side, max(16, side * share * by))) for side, by in ((h, stretch), (w, 1 / stretch)))
    y0, x0 = int(rng.integers(0, h - ch + 1)), int(rng.integers(0, w - cw + 1))
    return x0, y0, x0 + cw, y0 + ch


def interpolation(shape: tuple[int, ...], side: int) -> int:
    """OpenCV's filter for resizing to a square of `side`: averaging downwards, linear upwards."""
    return cv2.INTER_AREA if min(shape[:2]) > side else cv2.INTER_LINEAR


def soft(mask: np.ndarray, quarter: int) -> Float[np.ndarray, "q q"]:
    """The share of each cell that the mask covers."""
    return cv2.resize(np.ascontiguousarray(mask, np.float32), (quarter, quarter), interpolation=cv2.INTER_AREA)


def recolour(rng: np.random.Generator, pixels: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
    """Brightness, contrast and saturation changed a little; one in ten becomes grey."""
    work = pixels.astype(np.float32)
    grey = work.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0.6, 1.4)
    work = grey + (work - grey) * saturation
    work = (work - work.mean()) * rng.uniform(0.7, 1.3) + work.mean() * rng.uniform(0.75, 1.25)
    return np.asarray(np.clip(work, 0, 255), np.uint8)
