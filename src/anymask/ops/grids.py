"""Where everything mode clicks: grids of points, crops of the image (SAM, section D; segment-anything, `amg.py`)."""

import itertools
import math

import numpy as np
from jaxtyping import Float

CropBox = tuple[int, int, int, int]  # x0 y0 x1 y1, a part of an image


def point_grid(side: int) -> Float[np.ndarray, "n 2"]:
    """`side` x `side` points x y, evenly spread over 0 to 1, half a step from the border, row by row."""
    at = (np.arange(side) + 0.5) / side
    return np.stack([np.tile(at, side), np.repeat(at, side)], axis=1)


def layer_grids(side: int, layers: int, downscale: int) -> list[Float[np.ndarray, "n 2"]]:
    """The grid of the image and of each layer of crops, where a side has `downscale` times fewer points each time."""
    return [point_grid(max(1, side // downscale**layer)) for layer in range(layers + 1)]


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[int, CropBox]]:
    """The whole image (layer 0), then for layer i the 4^i crops of it that overlap; each with its layer.

    `overlap_ratio` is a share of the shorter side in the first layer, half as much in each further one. A thin image
    has fewer: none is empty.
    """
    h, w = size
    boxes = [(0, (0, 0, w, h))]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(h, w) * (2 / n))
        crop_w, crop_h = (math.ceil((overlap * (n - 1) + side) / n) for side in (w, h))
        corners = itertools.product(
            [(crop_w - overlap) * i for i in range(n)], [(crop_h - overlap) * i for i in range(n)]
        )
        crops = dict.fromkeys((x, y, min(x + crop_w, w), min(y + crop_h, h)) for x, y in corners if x < w and y < h)
        boxes += [(layer, crop) for crop in crops]
    return boxes
