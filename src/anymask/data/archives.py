"""`.npz` archives: every column of `Masks`, bit for bit, in a file that plain numpy opens without pickle.

Masks that were weighed beside them (`candidates`) are not kept.
"""

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
_MEASURE = "measure "  # before the name of an array of `Masks.measures`


def write_npz(path: PathLike, masks: Masks) -> None:
    """Arrays `size`, `scores`, `ids` and other columns that there are; JSON texts `rles`, `labels` and `made_by`."""
    columns = {name: getattr(masks, name) for name in _COLUMNS}
    arrays: dict[str, Any] = {name: values for name, values in columns.items() if values is not None}
    arrays |= {_MEASURE + name: values for name, values in masks.measures.items()}
    counts = [one["counts"] for one in masks.rles]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        size=np.asarray(masks.size),
        rles=np.asarray(json.dumps(counts)),
        labels=np.asarray(json.dumps(masks.labels)),
        made_by=np.asarray(json.dumps(dict(masks.made_by))),
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
    measures = {name.removeprefix(_MEASURE): arrays[name] for name in arrays if name.startswith(_MEASURE)}
    texts = {"labels": json.loads(str(arrays["labels"])), "made_by": json.loads(str(arrays.get("made_by", "{}")))}
    return Masks.from_rles(packed, (h, w), **columns, **texts, measures=measures)
