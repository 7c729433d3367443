"""Label maps: one integer a pixel, the id of its object, 0 for the background. 16-bit PNG, 32-bit TIFF, or indexed PNG.

A label map has no overlaps: of each id its best row is drawn, the largest first, so that small objects stay on top of
large ones, and of equally large ones the higher score. It holds no labels and no scores either (`exports.lost_by`).
"""

from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer, UInt8
from PIL import Image as PillowImage

from anymask.data.files import write_whole
from anymask.data.images import PathLike, opened
from anymask.ops import rle
from anymask.ops.rle import Rle
from anymask.types import Masks

_LARGEST = {".png": 2**16 - 1, ".tif": 2**31 - 1, ".tiff": 2**31 - 1}


def to_labelmap(masks: Masks) -> Int[np.ndarray, "h w"]:
    """The ids of the objects where they are seen, as int32."""
    _check_ids(masks, 2**31 - 1, "an int32 label map")
    best = masks.best()
    ids = np.append(0, best.ids).astype(np.int32)
    return np.asarray(ids[rle.topmost(best.rles, best.scores, best.size)])


def from_labelmap(labelmap: Integer[np.ndarray, "h w"]) -> Masks:
    """One row for each value above 0, which is its id."""
    if labelmap.ndim != 2 or not np.issubdtype(labelmap.dtype, np.integer):
        raise ValueError(f"a label map must hold integers (h, w), got {labelmap.dtype} {labelmap.shape}")
    if labelmap.size and labelmap.min() < 0:
        raise ValueError(f"a label map must not hold negative ids, got {labelmap.min()}")
    down_columns = labelmap.T.reshape(-1)
    starts = np.flatnonzero(np.diff(down_columns, prepend=-1 - int(down_columns[0])))
    ends = np.append(starts[1:], len(down_columns))
    values = down_columns[starts]
    order = np.argsort(values, kind="stable")
    ids, first = np.unique(values[order], return_index=True)
    rows = np.split(order, first[1:])
    packed = [_rle_of(starts[runs], ends[runs], labelmap.shape) for runs, i in zip(rows, ids, strict=True) if i]
    return Masks.from_rles(packed, (labelmap.shape[0], labelmap.shape[1]), ids=ids[ids > 0])


def write_labelmap(path: PathLike, masks: Masks) -> None:
    """A label map as 16-bit PNG or 32-bit TIFF, after the suffix of `path`."""
    suffix = Path(path).suffix.lower()
    if suffix not in _LARGEST:
        raise ValueError(f"a label map is written as {', '.join(_LARGEST)}, got {path}")
    _check_ids(masks, _LARGEST[suffix], f"a {suffix} label map")
    labelmap = to_labelmap(masks)
    picture = PillowImage.fromarray(labelmap.astype(np.uint16) if suffix == ".png" else labelmap)
    with write_whole(path) as temporary:
        picture.save(temporary, compression=None if suffix == ".png" else "tiff_adobe_deflate")


def write_indexed_png(path: PathLike, masks: Masks) -> None:
    """A label map as a PNG of 8-bit palette indices, in the colours of PASCAL VOC and DAVIS; ids up to 255."""
    _check_ids(masks, 255, "an indexed PNG")
    picture = PillowImage.fromarray(to_labelmap(masks).astype(np.uint8))
    picture.putpalette(voc_palette().reshape(-1).tolist())
    with write_whole(path) as temporary:
        picture.save(temporary, format="PNG")


def read_labelmap(path: PathLike) -> Masks:
    """The objects of a label map in any format of one integer channel; an indexed PNG is read by its indices."""
    with opened(path) as picture:
        values = np.array(picture)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{path} must be a label map, one integer channel, got a picture of mode {picture.mode}")
    return from_labelmap(values)


def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """The colours of PASCAL VOC, which DAVIS uses too: the bits of the index dealt out to red, green and blue."""
    index = np.arange(256)[:, None]
    bits = index >> (3 * np.arange(8)[:, None, None] + np.arange(3)) & 1
    return np.asarray((bits << (7 - np.arange(8)[:, None, None])).sum(axis=0)).astype(np.uint8)


def _rle_of(starts: Int[np.ndarray, "k"], ends: Int[np.ndarray, "k"], shape: tuple[int, ...]) -> Rle:
    """The RLE whose runs begin and end at these places of the pixels taken down the columns."""
    bounds = np.stack([starts, ends], axis=1).reshape(-1)
    runs = np.diff(bounds, prepend=0, append=shape[0] * shape[1])
    return rle.from_run_lengths(runs[: len(runs) - int(runs[-1] == 0)].tolist(), (shape[0], shape[1]))


def _check_ids(masks: Masks, largest: int, what: str) -> None:
    if len(masks) and masks.ids.max() > largest:
        raise ValueError(f"{what} holds ids up to {largest}, got {masks.ids.max()}: use another format")
