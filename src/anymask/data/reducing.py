"""A photo, its masks and prompts together at another size, for pictures that people look at.

Masks go from RLE to RLE one at a time (`rle.resized`), so that a large photo with hundreds needs little memory.
"""

from dataclasses import replace

import cv2
import numpy as np

from anymask.ops import rle
from anymask.types import Image, Masks, Prompt, Size

LEAST_SIDE = 64  # less is no picture


def check_picture_side(longest: int | None) -> None:
    """`ValueError` for a longer side that no picture can be drawn in."""
    if longest is not None and longest < LEAST_SIDE:
        raise ValueError(f"the longer side of pictures must be at least {LEAST_SIDE} pixels, got {longest}")


def fitted(size: Size, longest: int | None) -> Size:
    """The size (h, w) reduced, in proportion, to a longer side of at most `longest`; never enlarged."""
    if longest is None or max(size) <= longest:
        return size
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resized_image(image: Image, size: Size) -> Image:
    """Areas are averaged where the picture becomes smaller; the same picture where nothing is to be done."""
    if size == image.size:
        return image
    how = cv2.INTER_AREA if size[0] < image.size[0] or size[1] < image.size[1] else cv2.INTER_CUBIC
    return Image(np.asarray(cv2.resize(image.pixels, size[::-1], interpolation=how)), image.name)


def resized_masks(masks: Masks, size: Size) -> Masks:
    """The rows with what drawing asks for: scores, labels, ids and clicks. What is not empty stays so."""
    if size == masks.size:
        return masks
    clicks = masks.point_coords
    columns = {"scores": masks.scores, "labels": masks.labels, "ids": masks.ids}
    if clicks is not None:
        columns["point_coords"] = clicks * _scale(masks.size, size)
    return Masks.from_rles([rle.resized(one, size) for one in masks.rles], size, **columns)


def resized_prompt(prompt: Prompt, before: Size, after: Size) -> Prompt:
    """Points and box of a prompt on an image of size `before`, on the same image of size `after`."""
    x, y = _scale(before, after)
    box = prompt.box_coords and tuple(np.multiply(prompt.box_coords, (x, y, x, y)).tolist())
    return replace(prompt, point_coords=prompt.point_coords * np.asarray((x, y), np.float32), box_coords=box)


def _scale(before: Size, after: Size) -> np.ndarray:
    """In x and in y."""
    return np.asarray((after[1] / before[1], after[0] / before[0]), np.float32)
