"""Well-known sets of one class by name: fetched once with Hugging Face's `datasets`, kept as images/ and masks/.

The files are written as they lie in the set, byte by byte. `datasets` keeps its own cache and obeys HF_HUB_OFFLINE.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from PIL import Image as PillowImage

from anymask.data.files import write_whole_folder

OTHERWISE = "put its pictures into DIR/images and DIR/masks, and give NAME=DIR"


class KnownSet(NamedTuple):
    """Where a set lies on the hub, and which of its columns hold the pictures."""

    hub_id: str
    image: str
    mask: str


KNOWN: Mapping[str, KnownSet] = {
    "camo": KnownSet("PassbyGrocer/CAMO", "image", "gt"),  # Le et al. 2019, Anabranch network
    "cod10k": KnownSet("nobg/COD10K", "image", "mask"),  # Fan et al. 2020, Camouflaged object detection
    "kvasir-seg": KnownSet("kowndinya23/Kvasir-SEG", "image", "annotation"),  # Jha et al. 2020
}


def fetched(name: str, cache: Path) -> Path:
    """The folder of a known set; what is in `cache` already is not fetched again.

    Raises ImportError without `datasets`, and OSError where the set cannot be had, both with what to do.
    """
    folder = cache / name
    if not folder.is_dir():
        rows = _rows(name, _datasets(name))
        with write_whole_folder(folder) as temporary:
            for index, row in enumerate(rows):
                for inside, column in (("images", KNOWN[name].image), ("masks", KNOWN[name].mask)):
                    _write_picture(temporary / inside, f"{index:05}", row[column])
    return folder


def _datasets(name: str) -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} is fetched with datasets, not installed here: pip install 'anymask[study]', or {OTHERWISE}"
        ) from error
    module: ModuleType = datasets
    return module


def _rows(name: str, datasets: ModuleType) -> Any:
    """The training part, its pictures as bytes."""
    known = KNOWN[name]
    try:
        rows = datasets.load_dataset(known.hub_id, split="train")
        for column in (known.image, known.mask):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    except (OSError, KeyError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"cannot fetch {name} ({known.hub_id}): {reason}; go online, or {OTHERWISE}") from error
    return rows


def _write_picture(folder: Path, stem: str, entry: Mapping[str, Any]) -> None:
    """The bytes of a picture, or those of the file that it is a path of, under the suffix of its format."""
    content = entry["bytes"] or Path(entry["path"]).read_bytes()
    with PillowImage.open(io.BytesIO(content)) as picture:
        suffix = str(picture.format).lower()
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}.{suffix}").write_bytes(content)
