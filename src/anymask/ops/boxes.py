"""Boxes x0 y0 x1 y1 in pixels, end exclusive."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torchvision.ops import box_iou, nms

from anymask.ops.grids import CropBox


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


def iou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every box with every other; 0 where both are empty."""
    return np.asarray(box_iou(torch.from_numpy(first), torch.from_numpy(second)).nan_to_num())


def distinct(
    boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], iou_threshold: float
) -> Int[np.ndarray, "k"]:
    """Rows that non-maximum suppression leaves, the highest score first; of equal scores the first row goes first."""
    tensors = torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(scores.astype(np.float32))
    return np.asarray(nms(*tensors, iou_threshold))


def near_crop_edge(
    boxes: Float[np.ndarray, "n 4"], crop_box: CropBox, size: tuple[int, int], tolerance: float = 20.0
) -> Bool[np.ndarray, "n"]:
    """Boxes with a side near the crop's that is not the image's (`size` h w): their object goes on outside the crop.

    20 pixels as in segment-anything, `is_box_near_crop_edge`.
    """
    near_crop = np.abs(boxes - np.asarray(crop_box)) <= tolerance
    near_image = np.abs(boxes - np.asarray((0, 0, size[1], size[0]))) <= tolerance
    return np.asarray((near_crop & ~near_image).any(axis=1))
