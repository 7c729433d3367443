"""What every detector does before and after its network: names checked; boxes clipped, made distinct, sorted."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from anymask.grounding.protocol import Detections
from anymask.ops.boxes import distinct
from anymask.types import Size

SAME_OBJECT = 0.7  # IoU from which on two boxes of one name are one object


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names as given, each once. Raises ValueError for none and for an empty one."""
    if isinstance(names, str) or not names:
        raise ValueError(f"names must be a list of one or more names, got {names!r}: pass [name]")
    for name in names:
        if not name.strip():
            raise ValueError(f"every name must name something, got an empty one among {len(names)}")
    return tuple(dict.fromkeys(names))


def corners(boxes: Float[np.ndarray, "n 4"], size: Size) -> Float[np.ndarray, "n 4"]:
    """Centre and size, from 0 to 1 of an area of `size` (h, w), as x0 y0 x1 y1 in its pixels."""
    half = boxes[:, 2:] / 2
    ends = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    placed: np.ndarray = ends * np.tile(np.asarray(size[::-1], ends.dtype), 2)
    return placed


def detections(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, "n"],
    rows: Int[np.ndarray, "n"],
    names: tuple[str, ...],
    size: Size,
    nearest: dict[str, float],
    notes: tuple[str, ...] = (),
) -> Detections:
    """Boxes in pixels of an image of `size`, `rows` of `names` their labels, as the protocol has them.

    What lies outside the image goes, and so do boxes of one name that show an object once more.
    """
    boxes = np.clip(boxes, 0, np.tile(size[::-1], 2)).astype(np.float32)
    there = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    boxes, scores, rows = boxes[there], scores[there].astype(np.float32), rows[there]
    kept = [
        own[distinct(boxes[own], scores[own], SAME_OBJECT)]
        for own in (np.flatnonzero(rows == row) for row in np.unique(rows))
    ]
    order = np.concatenate([np.zeros(0, np.int64), *kept])
    order = order[np.argsort(-scores[order], kind="stable")]
    return Detections(boxes[order], scores[order], tuple(names[row] for row in rows[order]), nearest, notes=notes)
