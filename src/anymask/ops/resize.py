"""Between a model's low-resolution frame and the pixels of the original image."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

OUTSIDE = -32.0  # logit of pixels that a crop does not cover


def around_crop(
    logits: Float[Tensor, "n ch cw"], size: tuple[int, int], crop_box: tuple[int, int, int, int]
) -> Float[Tensor, "n h w"]:
    """Logits of a crop in an image of `size`, `OUTSIDE` around it."""
    x0, y0, x1, y1 = crop_box
    if (y1 - y0, x1 - x0) == size:
        return logits
    return functional.pad(logits, (x0, size[1] - x1, y0, size[0] - y1), value=OUTSIDE)


def sample(
    logits: Float[Tensor, "lh lw"], rows: Float[Tensor, "h"], columns: Float[Tensor, "w"]
) -> Float[Tensor, "h w"]:
    """Logits at every pair of the given places (in cells, the first centre at 0), bilinearly; the border goes on."""
    across = _between(logits.T, columns).T.contiguous()
    return _between(across, rows)


def _between(values: Float[Tensor, "n m"], places: Float[Tensor, "k"]) -> Float[Tensor, "k m"]:
    places = places.clamp(0, len(values) - 1)
    before = places.long()
    after = (before + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[before], values[after], (places - before).to(values.dtype)[:, None])


def cover(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "lh lw"]:
    """The share of each low-resolution cell that a mask covers."""
    return cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)


def stretch(pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[Tensor, "3 ih iw"]:
    """An image stretched to another size: averaged when both sides shrink, else bilinear."""
    shrinks = pixels.shape[0] > size[0] and pixels.shape[1] > size[1]
    stretched = cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return torch.from_numpy(np.ascontiguousarray(stretched.transpose(2, 0, 1)))


def cover_logits(logits: Float[np.ndarray, "lh lw"], size: tuple[int, int]) -> Float[np.ndarray, "mh mw"]:
    """Low-resolution logits of an earlier result at the size a model expects (bilinear when they differ)."""
    if logits.shape == size:
        return logits
    return cv2.resize(np.asarray(logits, np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
