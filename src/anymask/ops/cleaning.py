"""Clean masks: without specks and pinholes, with smooth edges, and with all that belongs to the object.

- `without_small_regions`: holes and islands below a fixed area (segment-anything, `remove_small_regions`).
- `clean`: all lengths follow the object, so that a bird and a bus are treated alike; legs, poles and tails stay.
- `clean_classic`: the fixed kernel of common notebooks, which rounds small objects away; for comparison.

Areas and lengths are in pixels of the mask, which should be those of the original image.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from anymask.ops import rle
from anymask.ops.rle import Rle

# Of `clean`. Areas are shares of the object's, lengths of the root of its area (benchmarks/cleanup.py measures them).
HOLE, ISLAND = 0.02, 0.03
COMPACT = 0.5  # a hole is filled if it covers this much of the square around it: slits are gaps, and stay
SIGMA, LEAST_SIGMA, MOST_SIGMA = 0.005, 0.3, 8.0
LONG = 2.0  # what smoothing changes stays as it was if it reaches this many times its thickness from the smoothed edge
_MARGIN = 33  # what the blur of MOST_SIGMA sees around a mask


def clean(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask without small holes and islands, its edge smoothed, its thin parts kept; empty only if it was."""
    return _in_its_box(mask, _clean)


def clean_classic(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Opened and closed with a 5 x 5 ellipse, then blurred by a 5 x 5 Gaussian and cut at one half, however large."""
    return _in_its_box(mask, _classic)


Cleanup = Callable[[Bool[np.ndarray, "h w"]], Bool[np.ndarray, "h w"]]
CLEANUPS: Mapping[str, Cleanup] = {"adaptive": clean, "classic": clean_classic}


def clean_rles(rles: Sequence[Rle], cleanup: Cleanup = clean) -> tuple[Rle, ...]:
    """Each mask cleaned in its box: a hundred masks of a large photo are never all decoded."""
    return tuple(_clean_rle(one, box, cleanup) for one, box in zip(rles, rle.boxes(rles).astype(int), strict=True))


def without_small_regions(mask: Bool[np.ndarray, "h w"], area: float) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """The mask without holes, then islands, of fewer than `area` pixels (8-connected), and whether it had any.

    Where all islands are that small the largest stays.
    """
    holes, stats = _parts(~mask)
    small_holes = stats[:, cv2.CC_STAT_AREA] < area
    mask = mask | np.append(False, small_holes)[holes]
    islands, stats = _parts(mask)
    sizes = stats[:, cv2.CC_STAT_AREA]
    small = sizes < area
    changed = bool(small_holes.any() or small.any())
    if len(small) and small.all():
        small[int(sizes.argmax())] = False
    return np.asarray(np.append(False, ~small)[islands]), changed


def _clean(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    whole = _without_islands(_without_holes(mask))
    smooth = _smoothed(whole)
    legs, gaps = _reaching(whole & ~smooth, smooth), _reaching(smooth & ~whole, ~smooth)
    cleaned = (smooth | legs) & ~gaps
    return cleaned if cleaned.any() else whole


def _without_holes(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """What is enclosed on all sides, compact, and small beside the object becomes part of it."""
    holes, stats = _parts(~mask)
    x, y, w, h, area = stats.T
    inside = (x > 0) & (y > 0) & (x + w < mask.shape[1]) & (y + h < mask.shape[0])
    filled = inside & (area < HOLE * np.count_nonzero(mask)) & (area > COMPACT * np.maximum(w, h) ** 2)
    return np.asarray(mask | np.append(False, filled)[holes])


def _without_islands(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The largest part stays, and others that are no specks beside it: what is seen behind a pole has two."""
    islands, stats = _parts(mask)
    area = stats[:, cv2.CC_STAT_AREA]
    return np.asarray(np.append(False, area >= ISLAND * area.max())[islands])


def _smoothed(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The edge without what is narrower than the kernel, which follows the object's size."""
    sigma = float(np.clip(SIGMA * np.sqrt(np.count_nonzero(mask)), LEAST_SIGMA, MOST_SIGMA))
    return _blurred(mask, (0, 0), sigma)


def _blurred(mask: Bool[np.ndarray, "h w"], kernel: tuple[int, int], sigma: float) -> Bool[np.ndarray, "h w"]:
    """A Gaussian blur, cut at one half: where the picture ends the mask goes on."""
    blurred = cv2.GaussianBlur(255 * mask.astype(np.uint8), kernel, sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred > 127)


def _reaching(changed: Bool[np.ndarray, "h w"], edge: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Those parts of `changed` that are longer than thick: they reach far from `edge`, which a rough edge does not."""
    if not changed.any():
        return changed
    parts, stats = _parts(changed)
    reach = _farthest(_distance(~edge), parts, len(stats))
    thickness = 2 * _farthest(_distance(changed), parts, len(stats)) - 1
    return np.asarray(np.append(False, reach >= LONG * thickness)[parts])


def _farthest(distance: Float[np.ndarray, "h w"], parts: Int[np.ndarray, "h w"], n: int) -> Float[np.ndarray, "n"]:
    """The largest distance in each of the parts 1 to n."""
    found = np.zeros(n + 1)
    there = parts > 0
    np.maximum.at(found, parts[there], distance[there])
    return np.asarray(found[1:])


def _distance(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Of every pixel of the mask the distance to what is outside of it."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3))


def _classic(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, kernel)
    return _blurred(np.asarray(closed, bool), (5, 5), 0)


def _in_its_box(mask: Bool[np.ndarray, "h w"], cleanup: Cleanup) -> Bool[np.ndarray, "h w"]:
    """Only the part of the image around the mask is worked on."""
    x0, y0, w, h = cv2.boundingRect(mask.astype(np.uint8))
    if not w:
        return mask
    x0, y0, x1, y1 = _around((x0, y0, x0 + w, y0 + h), mask.shape)
    cleaned = np.zeros_like(mask)
    cleaned[y0:y1, x0:x1] = cleanup(mask[y0:y1, x0:x1])
    return cleaned


def _clean_rle(one: Rle, box: Int[np.ndarray, "4"], cleanup: Cleanup) -> Rle:
    h, w = one["size"]
    x0, y0, x1, y1 = _around(box.tolist(), (h, w))
    return rle.encode_window(cleanup(rle.decode_part(one, (x0, y0, x1, y1))), x0, y0, (h, w))


def _around(box: Iterable[int], size: tuple[int, ...]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    return max(x0 - _MARGIN, 0), max(y0 - _MARGIN, 0), min(x1 + _MARGIN, size[1]), min(y1 + _MARGIN, size[0])


def _parts(mask: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "n 5"]]:
    """The number from 1 on of the connected part that each pixel belongs to, 0 for none, and OpenCV's facts of each."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return parts, stats[1:]
