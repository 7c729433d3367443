"""A photo with all of its masks, be they hundreds: translucent fills, thin outlines, neighbours in unlike colours.

Painted from the map of which mask is on top where: the time goes by the pixels, hardly by the number of masks. Fill and
outline are one layer, whose premultiplied colours are smoothed before they cover the photo: that takes the stairs away.
"""

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from anymask.ops import colours, rle
from anymask.types import Image, Masks

# Neighbours are sought in a map of about this many pixels a side, in which gaps of so many pixels are none.
_SIDE, _GAP = 512, 4


def draw_mosaic(image: Image, masks: Masks, opacity: float = 0.45) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of `image` under `masks`, of each object the best, the largest at the back."""
    best = masks.best()
    top = rle.topmost(best.rles, best.scores, best.size)
    unit = max(1.0, float(np.sqrt(top.size)) / 600)
    alpha = _alpha(top, opacity, unit)
    table = np.concatenate([np.zeros((1, 3), np.uint8), _apart(image, best, top)])
    layer = _times(table[top], alpha)
    smooth = 0.5 * unit
    layer, alpha = cv2.GaussianBlur(layer, (0, 0), smooth), cv2.GaussianBlur(alpha, (0, 0), smooth)
    return np.asarray(cv2.add(_times(image.pixels, 255 - alpha), layer))


def mosaic_shades(image: Image, masks: Masks) -> UInt8[np.ndarray, "n 3"]:
    """The colour of each row in a mosaic, where no two have one id: unlike its neighbours, and the photo under it."""
    return _apart(image, masks, rle.topmost(masks.rles, masks.scores, masks.size))


def _apart(image: Image, masks: Masks, top: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "n 3"]:
    """Colours by what lies side by side in `top`; large ones choose first."""
    step = max(1, max(top.shape) // _SIDE)
    order = np.argsort(-masks.areas, kind="stable")
    place = np.argsort(order)
    small = top[::step, ::step]
    grounds = _grounds(image.pixels[::step, ::step], small, len(masks))
    return colours.apart(place[_neighbours(small)], grounds[order])[place]


def _grounds(pixels: UInt8[np.ndarray, "h w 3"], top: Int[np.ndarray, "h w"], n: int) -> Float[np.ndarray, "n 3"]:
    """The mean colour of the photo where each row is on top."""
    rows = top.reshape(-1)
    sums = [np.bincount(rows, pixels[:, :, channel].reshape(-1), n + 1) for channel in range(3)]
    return np.stack(sums, axis=1)[1:] / np.maximum(np.bincount(rows, minlength=n + 1)[1:, None], 1)


def _alpha(top: Int[np.ndarray, "h w"], opacity: float, unit: float) -> UInt8[np.ndarray, "h w"]:
    """How much of the layer covers the photo: all of it along outlines, `opacity` inside of them."""
    alpha = opacity + (1 - opacity) * np.clip(1.1 * unit - _to_border(top), 0, 1)
    return np.asarray(np.where(top > 0, np.round(255 * alpha), 0), np.uint8)


def _to_border(top: Int[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Pixels to the nearest pixel that lies beside another object; the picture's own edge is no border."""
    inner = np.ones(top.shape, np.uint8)
    across, along = top[:, 1:] == top[:, :-1], top[1:] == top[:-1]
    inner[:, 1:] &= across
    inner[:, :-1] &= across
    inner[1:] &= along
    inner[:-1] &= along
    return np.asarray(cv2.distanceTransform(inner, cv2.DIST_L2, cv2.DIST_MASK_5))


def _neighbours(top: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "k 2"]:
    """The pairs of rows (from 0) that lie side by side, each once."""
    pairs = []
    for reach in (1, _GAP):
        for one, other in ((top[:, reach:], top[:, :-reach]), (top[reach:], top[:-reach])):
            met = (one != other) & (one > 0) & (other > 0)
            pairs.append(np.stack([one[met], other[met]], axis=1))
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0) - 1


def _times(pixels: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(cv2.multiply(pixels, cv2.merge([alpha, alpha, alpha]), scale=1 / 255))
