"""COCO run-length encoding: a mask in a few bytes, column by column (COCO API, `maskApi.c`)."""

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask


class Rle(TypedDict):
    """A compressed COCO mask: `size` [h, w] and `counts`, an ASCII string."""

    size: list[int]
    counts: str


def encode(masks: Bool[np.ndarray, "n h w"]) -> tuple[Rle, ...]:
    """One RLE per mask."""
    n, h, w = masks.shape
    if n == 0 or h == 0 or w == 0:
        return tuple(Rle(size=[h, w], counts="") for _ in range(n))
    columns_first = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))
    return tuple(_to_text(rle) for rle in coco_mask.encode(columns_first))


def encode_window(window: Bool[np.ndarray, "wh ww"], x0: int, y0: int, size: tuple[int, int]) -> Rle:
    """The RLE of an image of `size` (h, w) that is empty but for `window`, whose corner lies at x0 y0."""
    h, w = size
    columns = np.pad(window.T, ((0, 0), (1, 1)))
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    turns = (column + x0) * h + row + y0  # where runs begin and end, in turn, down the columns of the image
    seams = np.flatnonzero(np.diff(turns) == 0)  # a run that goes on at the top of the next column
    turns = np.delete(turns, np.append(seams, seams + 1))
    runs = np.diff(turns, prepend=0, append=h * w)
    return from_run_lengths(runs[: len(runs) - int(runs[-1] == 0)].tolist(), size)


def decode(rles: Sequence[Rle], size: tuple[int, int]) -> Bool[np.ndarray, "n h w"]:
    """The dense masks of `rles`, all of `size` (h, w); `ValueError` for one whose runs do not fill it."""
    h, w = size
    dense = np.empty((len(rles), h, w), dtype=bool)
    for mask, one in zip(dense, rles, strict=True):
        runs = run_lengths(one)
        mask[...] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(w, h).T
    return dense


def areas(rles: Sequence[Rle]) -> Int[np.ndarray, "n"]:
    """Pixels in each mask."""
    if not rles:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(coco_mask.area([cast(Any, rle) for rle in rles])).astype(np.int64).reshape(-1)


def boxes(rles: Sequence[Rle]) -> Float[np.ndarray, "n 4"]:
    """Tight boxes x0 y0 x1 y1 (end exclusive); an empty mask has the box 0 0 0 0."""
    if not rles:
        return np.zeros((0, 4), dtype=np.float32)
    xywh = np.asarray(coco_mask.toBbox([cast(Any, rle) for rle in rles]), dtype=np.float32).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def iou(first: Sequence[Rle], second: Sequence[Rle]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every mask of `first` with every mask of `second`."""
    if not first or not second:
        return np.zeros((len(first), len(second)), dtype=np.float32)
    overlaps = coco_mask.iou(cast(Any, list(first)), cast(Any, list(second)), [0] * len(second))
    return np.asarray(overlaps, dtype=np.float32).reshape(len(first), -1)


def merge(rles: Sequence[Rle], size: tuple[int, int]) -> Rle:
    """The union of `rles`; of none, the empty mask of `size`."""
    if not rles:
        return encode(np.zeros((1, *size), dtype=bool))[0]
    return _to_text(coco_mask.merge([cast(Any, rle) for rle in rles]))


def run_lengths(one: Rle) -> Int[np.ndarray, "k"]:
    """The lengths of the runs of an RLE, off first, down each column; `ValueError` unless they fill its size.

    pycocotools reads memory that is not its own when they do not: every RLE from outside must pass here first.
    """
    symbols = np.frombuffer(one["counts"].encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((symbols & 32) == 0)
    if ((symbols < 0) | (symbols > 63)).any() or (len(symbols) and (len(ends) == 0 or ends[-1] != len(symbols) - 1)):
        raise ValueError("its counts are no compressed RLE")
    lengths = np.diff(ends, prepend=-1)
    if (lengths > 7).any():
        raise ValueError("its counts hold a number beyond 32 bits")
    starts = ends - lengths + 1
    place = np.arange(len(symbols)) - np.repeat(starts, lengths)
    digits = (symbols & 31) << (5 * place)
    values = np.add.reduceat(digits, starts) if len(starts) else np.zeros(0, np.int64)
    values -= np.where(symbols[ends] & 16, 1 << (5 * lengths), 0)
    # From the fourth number on, each is stored as its difference from the one two before it.
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    _check_runs(values, one["size"])
    return values


def from_run_lengths(runs: Sequence[int], size: tuple[int, int]) -> Rle:
    """The RLE with these run lengths, off first, down each column; `ValueError` unless they fill `size` (h, w)."""
    values = np.asarray(runs)
    if values.ndim != 1 or not (np.issubdtype(values.dtype, np.integer) or len(values) == 0):
        raise ValueError("its counts must be whole numbers")
    _check_runs(values, size)
    return _to_text(coco_mask.frPyObjects({"size": list(size), "counts": values.tolist()}, *size))


def _check_runs(runs: Int[np.ndarray, "k"], size: Sequence[int]) -> None:
    h, w = size
    if ((runs < 0) | (runs > h * w)).any() or int(runs.sum()) != h * w:
        raise ValueError(f"its runs must be positive and cover {h} x {w} = {h * w} pixels, got {int(runs.sum())}")


def _to_text(rle: Any) -> Rle:
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))
