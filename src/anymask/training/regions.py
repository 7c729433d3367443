"""Regions that nobody labelled, as further things to box: the wall, the sleeve, the patch of sky.

Labels name objects; people also box parts and stuff, and a model that saw only objects answers those boxes with the
nearest object. Graph-based segmentation (Felzenszwalb & Huttenlocher 2004, through scikit-image) at two scales gives
regions with real edges; kept are those that stand out from what surrounds them and are no labelled object.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from anymask.ops import rle

SIDE = 256  # longer side at which regions are sought
SCALES = (120, 500)  # of the graph-based segmentation: small and large regions
AREA = (0.003, 0.5)  # least and most of the image
FILLED = 0.3  # least share of the region's own box
CONTRAST = 12.0  # least distance in CIELAB between the inner and the outer border
MOST = 16  # regions an image
_KERNEL, _BORDER = np.ones((3, 3), np.uint8), np.ones((7, 7), np.uint8)

Region = Bool[np.ndarray, "h w"]


def find_regions(pixels: UInt8[np.ndarray, "h w 3"], labelled: Bool[np.ndarray, "n h w"]) -> tuple[rle.Rle, ...]:
    """Up to `MOST` regions, those with the strongest edges; none overlaps a labelled object with IoU over 0.5."""
    h, w = pixels.shape[:2]
    scale = min(1.0, SIDE / max(h, w))
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    size = (small.shape[1], small.shape[0])
    known = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for mask in labelled]
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    found: list[tuple[float, Region]] = []
    for mask in _candidates(small):
        contrast = _contrast(lab, mask)
        seen = [one for _, one in found]
        if contrast >= CONTRAST and not _repeats(mask, known, 0.5) and not _repeats(mask, seen, 0.7):
            found.append((contrast * float(mask.sum()) ** 0.25, mask))
    found.sort(key=lambda pair: -pair[0])
    return rle.encode(np.stack([_enlarged(mask, (w, h)) for _, mask in found[:MOST]])) if found else ()


def _candidates(small: UInt8[np.ndarray, "h w 3"]) -> Iterator[Region]:
    """The largest part of every segment, with smooth edges, if it is neither too small, too large nor too thin."""
    from skimage.segmentation import felzenszwalb

    least, most = (share * small.shape[0] * small.shape[1] for share in AREA)
    for scale in SCALES:
        segments = felzenszwalb(small, scale=scale, sigma=0.8, min_size=int(least))
        for segment in range(int(segments.max()) + 1):
            mask = (segments == segment).astype(np.uint8)
            if not least <= mask.sum() <= most:
                continue
            smooth = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, _KERNEL), cv2.MORPH_CLOSE, _KERNEL)
            count, parts, stats, _ = cv2.connectedComponentsWithStats(smooth)
            if count < 2:
                continue
            largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
            area, box = stats[largest, cv2.CC_STAT_AREA], stats[largest, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
            if area >= max(least, FILLED * box.prod()):
                grown = cv2.dilate((parts == largest).astype(np.uint8), _KERNEL)  # segments end a pixel before the edge
                yield grown.astype(bool)


def _contrast(lab: Float[np.ndarray, "h w 3"], mask: Region) -> float:
    """Distance between the mean colours just inside and just outside of the edge."""
    filled = mask.astype(np.uint8)
    outside = cv2.dilate(filled, _BORDER).astype(bool) & ~mask
    inside = mask & ~cv2.erode(filled, _BORDER).astype(bool)
    if not (outside.any() and inside.any()):
        return 0.0
    return float(np.linalg.norm(lab[outside].mean(axis=0) - lab[inside].mean(axis=0)))


def _repeats(mask: Region, others: list[Region], most: float) -> bool:
    return any((mask & other).sum() > most * (mask | other).sum() for other in others)


def _enlarged(mask: Region, size: tuple[int, int]) -> Region:
    """At the size (w, h) of the image, with its steps smoothed away."""
    large = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.GaussianBlur(large, (0, 0), 1.0) > 0.5)
