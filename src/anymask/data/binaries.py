"""A folder of binary masks: one 8-bit PNG an object, 0 and 255, of the size of the photo, as most tools take them.

`001_red-car.png` is the object of id 1 with the label "red car", `001_red-car.2.png` an alternative of it. Overlaps are
kept, and so are empty masks. Of labels it keeps plain words (`exports.lost_by`).
"""

import re
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from anymask.data.files import write_whole_folder
from anymask.data.images import PathLike, opened
from anymask.ops import rle
from anymask.ops.rle import Rle
from anymask.types import Masks

_LONGEST = 60  # letters of a label in a file name
_NAME = re.compile(r"(\d+)(?:_([a-z0-9-]+))?(?:\.(\d+))?\.png")


def write_masks_folder(folder: PathLike, masks: Masks) -> None:
    """A PNG for each mask; the folder is written whole, and takes the place of one that is there already."""
    held = masks.compact()
    with write_whole_folder(Path(folder), replace=True) as temporary:
        for name, one, box in zip(_file_names(held), held.rles, held.boxes.astype(int).tolist(), strict=True):
            x0, y0, x1, y1 = box
            pixels = np.zeros(held.size, np.uint8)
            pixels[y0:y1, x0:x1] = np.uint8(255) * rle.decode_part(one, (x0, y0, x1, y1))
            PillowImage.fromarray(pixels).save(temporary / name, compress_level=3)  # as all our PNGs


def read_masks_folder(folder: PathLike) -> Masks:
    """The masks of a folder by id, alternatives in their order; hidden files are passed over, others refused by name.

    A folder without any mask does not tell the size of its image: it is refused too.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"no such folder of masks: {folder}")
    found = sorted(_parsed(file) for file in path.iterdir() if not file.name.startswith("."))
    if not found:
        raise ValueError(f"{folder} must hold a PNG for each mask, named as 001_red-car.png, but is empty")
    packed = [_read(file) for _, _, _, file in found]
    size = (packed[0]["size"][0], packed[0]["size"][1])
    for one, (_, _, _, file) in zip(packed, found, strict=True):
        if tuple(one["size"]) != size:
            raise ValueError(f"the masks in {folder} must be of one size, {size} (h, w), got {one['size']} in {file}")
    labels = [label for _, _, label, _ in found]
    return Masks.from_rles(packed, size, labels=labels, ids=[number for number, _, _, _ in found])


def plain_words(label: str) -> str:
    """What a file name keeps of a label: its plain ASCII letters and figures without accents, as lower-case words."""
    letters = unicodedata.normalize("NFKD", label.casefold())
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.findall("[a-z0-9]+", bare))[:_LONGEST].strip()


def _file_names(masks: Masks) -> list[str]:
    """One for each row; no two are alike, because alternatives of an id are counted."""
    seen: dict[int, int] = {}
    names = []
    for number, label in zip(masks.ids.tolist(), masks.labels, strict=True):
        seen[number] = seen.get(number, 0) + 1
        words = plain_words(label).replace(" ", "-")
        alternative = f".{seen[number]}" if seen[number] > 1 else ""
        names.append(f"{number:03d}{'_' if words else ''}{words}{alternative}.png")
    return names


def _parsed(file: Path) -> tuple[int, int, str, Path]:
    """Id, number of the alternative and label from the name of a file."""
    match = _NAME.fullmatch(file.name)
    if match is None or int(match[1]) < 1:
        raise ValueError(f"{file} must be a mask with its id in front, as 001_red-car.png")
    return int(match[1]), int(match[3] or 1), (match[2] or "").replace("-", " "), file


def _read(file: Path) -> Rle:
    with opened(file) as picture:
        values = np.array(picture)
    if values.ndim != 2 or not np.isin(np.unique(values), (0, 1) if values.dtype == bool else (0, 255)).all():
        raise ValueError(f"{file} must be a binary mask, one channel of 0 and 255")
    return rle.encode(values.astype(bool)[None])[0]
