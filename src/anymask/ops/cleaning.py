"""Small holes and islands of masks, their areas in pixels of the mask (segment-anything, `remove_small_regions`)."""

import cv2
import numpy as np
from jaxtyping import Bool, Int


def without_small_regions(mask: Bool[np.ndarray, "h w"], area: float) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """The mask without holes, then islands, of fewer than `area` pixels (8-connected), and whether it had any.

    Where all islands are that small the largest stays.
    """
    holes, sizes = _parts(~mask)
    small_holes = sizes < area
    mask = mask | np.append(False, small_holes)[holes]
    islands, sizes = _parts(mask)
    small = sizes < area
    changed = bool(small_holes.any() or small.any())
    if len(small) and small.all():
        small[int(sizes.argmax())] = False
    return np.append(False, ~small)[islands], changed


def _parts(mask: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "n"]]:
    """The number from 1 on of the connected part that each pixel belongs to, 0 for none, and the area of each part."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return parts, stats[1:, cv2.CC_STAT_AREA]
