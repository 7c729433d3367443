"""`.npz` archives: every column of `Masks`, bit for bit, in a file that plain numpy opens without pickle."""

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from anymask.data.files import write_whole
from anymask.data.images import PathLike
from anymask.ops import rle
from anymask.ops.rle import Rle
from anymask.types import Masks

_COLUMNS = ("scores", "ids", "stability", "logits", "point_coords", "crop_boxes")
_BROKEN = (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
_REQUIRED = ("size", "rles", "labels", "scores", "ids")


def write_npz(path: PathLike, masks: Masks) -> None:
    """Arrays `size`, `scores`, `ids` and the other columns that there are; JSON texts `rles` and `labels`."""
    columns = {name: getattr(masks, name) for name in _COLUMNS}
    arrays: dict[str, Any] = {name: values for name, values in columns.items() if values is not None}
    counts = [one["counts"] for one in masks.rles]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        size=np.asarray(masks.size),
        rles=np.asarray(json.dumps(counts)),
        labels=np.asarray(json.dumps(masks.labels)),
        **arrays,
    )
    with write_whole(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_npz(path: PathLike) -> Masks:
    """Masks written by `write_npz`; any other or damaged file is a `ValueError` that names it."""
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _masks_of(arrays)
    except _BROKEN as error:
        raise ValueError(f"{path} must be an archive of masks written by anymask: {error}") from error


def _masks_of(arrays: dict[str, np.ndarray]) -> Masks:
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    h, w = (int(side) for side in arrays["size"])
    packed = [Rle(size=[h, w], counts=counts) for counts in json.loads(str(arrays["rles"]))]
    for one in packed:
        rle.run_lengths(one)
    columns = {name: arrays.get(name) for name in _COLUMNS}
    return Masks.from_rles(packed, (h, w), labels=json.loads(str(arrays["labels"])), **columns)
