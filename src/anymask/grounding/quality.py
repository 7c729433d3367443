"""How good a mask looks before anybody has seen the truth: four criteria from 0 to 1, and their weighted mean.

| criterion | formula | 0 | 1 |
|---|---|---|---|
| `text` | the scorer's probability that the mask shows the name | another thing | the name |
| `compactness` | 4 pi area / perimeter^2 (Polsby, Popper 1991), all parts and holes together | crumbs | a disk |
| `size` | 1 between the shares of the image in `best_size`, straight to 0 at none and at all | nothing | usual |
| `smoothness` | shorter by longer perimeter, before and after opening and closing by a disk | frayed | smooth |

The perimeter is that of the outline through pixel centres grown by half a pixel; the disk's diameter is a twentieth of
the square root of the area, at least 3 pixels. All but `text` need no model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float

CRITERIA = ("text", "compactness", "size", "smoothness")
DISK = 0.05  # diameter of the disk of `smoothness`, as a share of the square root of the area


@dataclass(frozen=True)
class QualityWeights:
    """What each criterion counts, and between which shares of the image an object is of usual size."""

    text: float = 0.6
    compactness: float = 0.2
    size: float = 0.1
    smoothness: float = 0.1
    best_size: tuple[float, float] = field(default=(0.05, 0.5))

    def __post_init__(self) -> None:
        weights = self.weights
        if not np.isfinite(weights).all() or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"weights must be at least 0, and one of them more, got {weights}")
        low, high = self.best_size
        if not 0 <= low <= high <= 1:
            raise ValueError(f"best_size must be two shares of the image, 0 <= least <= most <= 1, got {low}, {high}")

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of `CRITERIA`."""
        return tuple(float(asdict(self)[name]) for name in CRITERIA)


def measure_quality(
    masks: Bool[np.ndarray, "n h w"], text: Float[np.ndarray, "n"], weights: QualityWeights
) -> dict[str, Float[np.ndarray, "n"]]:
    """Each criterion of each mask by name, and `quality`, their weighted mean; all 0 for an empty mask."""
    shapes = [_shape_of(mask, weights.best_size) for mask in masks]
    columns = np.asarray(shapes, np.float32).reshape(-1, 3)
    there = masks.any(axis=(1, 2))
    found = {"text": np.where(there, text, 0).astype(np.float32)}
    found |= {name: columns[:, i] for i, name in enumerate(CRITERIA[1:])}
    return found | {"quality": weigh(found, weights)}


def weigh(criteria: Mapping[str, Float[np.ndarray, "n"]], weights: QualityWeights) -> Float[np.ndarray, "n"]:
    """The weighted mean of the criteria."""
    columns = np.stack([criteria[name] for name in CRITERIA], axis=-1)
    return np.asarray(columns @ np.asarray(weights.weights, np.float32) / sum(weights.weights), np.float32)


def compactness(mask: Bool[np.ndarray, "h w"]) -> float:
    """How round: 1 for a disk, pi / 4 for a square, near 0 for threads and crumbs."""
    length = _perimeter(mask)
    return min(1.0, 4 * np.pi * np.count_nonzero(mask) / length**2) if length else 0.0


def size_prior(share: float, best_size: tuple[float, float]) -> float:
    """How usual it is for an object to cover this share of the image: 1 in between, falling to 0 at none and at all."""
    low, high = best_size
    if share < low:
        return share / low
    return (1 - share) / (1 - high) if share > high else 1.0


def smoothness(mask: Bool[np.ndarray, "h w"]) -> float:
    """How little the perimeter changes when opening and closing take off what is frayed."""
    side = _disk_of(mask)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disk)  # to OpenCV the image's edge is no border
    smooth = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, disk)
    before, after = _perimeter(mask), _perimeter(smooth.astype(bool))
    return min(before, after) / max(before, after) if before else 0.0


def _shape_of(mask: Bool[np.ndarray, "h w"], best_size: tuple[float, float]) -> tuple[float, float, float]:
    """Compactness, size and smoothness."""
    x0, y0, w, h = cv2.boundingRect(mask.astype(np.uint8))
    if not w:
        return 0.0, 0.0, 0.0
    side = _disk_of(mask)
    part = mask[max(y0 - side, 0) : y0 + h + side, max(x0 - side, 0) : x0 + w + side]
    return compactness(part), size_prior(np.count_nonzero(part) / mask.size, best_size), smoothness(part)


def _disk_of(mask: Bool[np.ndarray, "h w"]) -> int:
    """The diameter, odd."""
    return max(3, 2 * round(DISK * np.count_nonzero(mask) ** 0.5 / 2) + 1)


def _perimeter(mask: Bool[np.ndarray, "h w"]) -> float:
    """Of all outlines, outer and of holes: through the centres of border pixels, and half a pixel further out."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return sum(cv2.arcLength(outline, True) + np.pi for outline in outlines)


def parse_weights(text: str) -> QualityWeights:
    """Weights as `text=0.6,compactness=0.2,best_size=0.05-0.5`; what is not said keeps its default."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = (side.strip() for side in part.partition("="))
        try:
            values[name] = tuple(map(float, value.rsplit("-", 1))) if name == "best_size" else float(value)
        except ValueError:
            name = ""
        if name not in (*CRITERIA, "best_size") or (name == "best_size" and len(values[name]) != 2):
            form = f"a list like text=0.6,best_size=0.05-0.5 of {', '.join(CRITERIA)}, best_size"
            raise ValueError(f"quality must be {form}, got {text!r}")
    return QualityWeights(**values)
