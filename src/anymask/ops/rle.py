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
    columns = np.pad(window.T, ((0, 0), (1, 1)))
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    borders = (column + x0) * size[0] + row + y0  # where runs start and stop, in turn
    return _from_borders(borders[::2], borders[1::2], size)


def decode(rles: Sequence[Rle], size: tuple[int, int]) -> Bool[np.ndarray, "n h w"]:
    """The dense masks of `rles`, all of `size` (h, w); `ValueError` for one whose runs do not fill it."""
    h, w = size
    dense = np.empty((len(rles), h, w), dtype=bool)
    for mask, one in zip(dense, rles, strict=True):
        mask[...] = decode_part(one, (0, 0, w, h))
    return dense


def decode_part(one: Rle, box: tuple[int, int, int, int]) -> Bool[np.ndarray, "h w"]:
    """The mask within `box` (x0 y0 x1 y1, inside the image), without making the rest; `ValueError` as `decode`."""
    x0, y0, x1, y1 = box
    h = one["size"][0]
    ends = np.clip(np.cumsum(run_lengths(one)), x0 * h, x1 * h)
    runs = np.diff(ends, prepend=x0 * h)
    columns: np.ndarray = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(x1 - x0, h)
    return columns.T[y0:y1]


def topmost(rles: Sequence[Rle], scores: Float[np.ndarray, "n"], size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """Which of `rles` is on top where, counted from 1, 0 for none (int32).

    The largest lie lowest, of equally large ones that of the lowest score; one is decoded at a time, in its box.
    """
    canvas, corners = np.zeros(size, np.int32), boxes(rles).astype(int).tolist()
    for row in np.lexsort((scores, -areas(rles))).tolist():
        x0, y0, x1, y1 = corners[row]
        canvas[y0:y1, x0:x1][decode_part(rles[row], (x0, y0, x1, y1))] = row + 1
    return canvas


def areas(rles: Sequence[Rle]) -> Int[np.ndarray, "n"]:
    """Pixels in each mask. One at a time: pycocotools 2.0.11 refuses more than 255 at once."""
    return np.asarray([coco_mask.area(cast(Any, rle)) for rle in rles], dtype=np.int64)


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


def distinct(rles: Sequence[Rle], iou_threshold: float) -> Int[np.ndarray, "k"]:
    """Rows that non-maximum suppression leaves, where earlier ones are better: none with an IoU above the threshold."""
    left: list[int] = []
    for row, one in enumerate(rles):
        if iou([one], [rles[i] for i in left]).max(initial=0) <= iou_threshold:
            left.append(row)
    return np.asarray(left, np.int64)


def merge(rles: Sequence[Rle], size: tuple[int, int]) -> Rle:
    """The union of `rles`; of none, the empty mask of `size`."""
    if not rles:
        return encode(np.zeros((1, *size), dtype=bool))[0]
    return _to_text(coco_mask.merge([cast(Any, rle) for rle in rles]))


def intersections(first: Sequence[Rle], second: Sequence[Rle]) -> Int[np.ndarray, "n m"]:
    """Pixels that every mask of `first` shares with every mask of `second`."""
    if not first or not second:
        return np.zeros((len(first), len(second)), dtype=np.int64)
    # Against a "crowd", COCO divides by the area of the first mask alone.
    shares = coco_mask.iou(cast(Any, list(first)), cast(Any, list(second)), [1] * len(second))
    shares = np.asarray(shares, dtype=np.float64).reshape(len(first), -1)
    return np.asarray(np.rint(shares * areas(first)[:, None]), np.int64)


def crop(rles: Sequence[Rle], box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[Rle, ...]:
    """What lies within `box` (x0 y0 x1 y1) of each mask, still of `size` (h, w)."""
    (x0, y0, x1, y1), h = box, size[0]
    tops = np.arange(x0, x1) * h
    frame = _from_borders(tops + y0, tops + y1, size)
    return tuple(_to_text(coco_mask.merge([cast(Any, one), cast(Any, frame)], intersect=True)) for one in rles)


def placed(one: Rle, corner: tuple[int, int], size: tuple[int, int]) -> Rle:
    """A mask of a part of an image as one of the whole, which is of `size` (h, w); `corner` is the part's x0 y0."""
    (x0, y0), (h, w), (part_h, part_w) = corner, size, one["size"]
    if x0 + part_w > w or y0 + part_h > h:
        raise ValueError(f"a mask of {part_w} x {part_h} pixels at {x0},{y0} leaves the image of {w} x {h}")
    changes = np.cumsum(run_lengths(one))
    starts, stops = changes[:-1:2], changes[1::2]
    tops = np.arange(1, part_w) * part_h  # a run may go on in the next column: where it does, it is cut in two
    cuts = tops[np.searchsorted(starts, tops, "left") > np.searchsorted(stops, tops, "right")]
    starts, stops = np.append(starts, cuts), np.append(stops, cuts)
    starts = starts + starts // part_h * (h - part_h) + x0 * h + y0
    stops = stops + (stops - 1) // part_h * (h - part_h) + x0 * h + y0
    return _from_borders(starts, stops, size)


def resized(one: Rle, size: tuple[int, int]) -> Rle:
    """The mask stretched to `size` (h, w): pixels that it covers by half; if there are none, those that it touches."""
    (h, w), (x0, y0, x1, y1) = one["size"], boxes([one])[0].astype(int).tolist()
    if x1 == x0:
        return merge([], size)
    # The new pixels that the box touches; their borders lie at xs and ys of the old ones.
    left, right, top, bottom = x0 * size[1] // w, -(-x1 * size[1] // w), y0 * size[0] // h, -(-y1 * size[0] // h)
    xs, ys = np.arange(left, right + 1) * w / size[1], np.arange(top, bottom + 1) * h / size[0]
    runs = run_lengths(one)
    ends, on = np.cumsum(np.append(0, runs)), np.cumsum(np.append(0, runs * (np.arange(len(runs)) % 2)))
    # What the mask covers up to a place down the columns is linear between its runs: no pixel need be made.
    columns = np.diff(np.interp(np.arange(x0, x1)[:, None] * h + ys, ends, on), axis=1)
    places = np.clip(xs, x0, x1) - x0
    whole = np.minimum(places.astype(int), x1 - x0 - 1)
    before = np.cumsum(np.pad(columns, ((1, 0), (0, 0))), axis=0)[whole] + (places - whole)[:, None] * columns[whole]
    cover = np.diff(before, axis=0).T * (size[0] * size[1] / (h * w))
    kept = cover > 0.5 - 1e-9  # half, however it was summed
    return encode_window(kept if kept.any() else cover > 0, left, top, size)


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


def from_run_lengths(runs: Sequence[int] | Int[np.ndarray, "k"], size: tuple[int, int]) -> Rle:
    """The RLE with these run lengths, off first, down each column; `ValueError` unless they fill `size` (h, w)."""
    values = np.asarray(runs)
    if values.ndim != 1 or not (np.issubdtype(values.dtype, np.integer) or len(values) == 0):
        raise ValueError("its counts must be whole numbers")
    _check_runs(values, size)
    return _to_text(coco_mask.frPyObjects({"size": list(size), "counts": values.tolist()}, *size))


def _from_borders(starts: Int[np.ndarray, "k"], stops: Int[np.ndarray, "k"], size: tuple[int, int]) -> Rle:
    """From where runs start and stop, in any order; one that stops where another starts is one run with it."""
    runs = np.diff(np.setxor1d(starts, stops), prepend=0)
    rest = size[0] * size[1] - int(runs.sum())
    return from_run_lengths(np.append(runs, rest) if rest or not len(runs) else runs, size)


def _check_runs(runs: Int[np.ndarray, "k"], size: Sequence[int]) -> None:
    h, w = size
    if ((runs < 0) | (runs > h * w)).any() or int(runs.sum()) != h * w:
        raise ValueError(f"its runs must be positive and cover {h} x {w} = {h * w} pixels, got {int(runs.sum())}")


def _to_text(rle: Any) -> Rle:
    return Rle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))
