"""Images and the masks of their objects, paired: from two folders by file stem, or from a COCO instance file.

A mask file holds one picture of one channel (three equal ones count as one):
- one value beside 0: a binary mask, one object, whatever its parts;
- several values: a label map, each value an object; in an indexed PNG 255 is none (PASCAL VOC's unsure border);
- several values of 8-bit grey up to 255: a mask with soft edges, which counts from half of 255 on, as every JPEG does
  from half of its brightest value on.

One bad file stops nothing: it is recorded by name, and the rest is paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from anymask.data.coco import CocoImage, CocoSet, read_coco
from anymask.data.images import PathLike, find_images, opened, read_image
from anymask.data.labelmaps import from_labelmap
from anymask.types import Masks, Size

FULL = 255


@dataclass(frozen=True)
class Pair:
    """An image file and its objects, one row each, held as RLE."""

    image: Path
    masks: Masks


@dataclass(frozen=True)
class Pairs:
    """What could be paired, in the order of the files, and what could not: `failed` says why of each file."""

    rows: tuple[Pair, ...]
    lone_images: tuple[str, ...] = ()
    lone_masks: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def remarks(self) -> list[str]:
        """What a user should know about files that were left out, a line for each kind and each failure."""
        kinds = (("without a mask", self.lone_images), ("without an image", self.lone_masks), ("empty", self.empty))
        lines = [f"{len(names)} {kind}, left out: {_first(names)}" for kind, names in kinds if names]
        return lines + [f"failed: {reason}" for reason in self.failed.values()]


def read_pairs(images: PathLike, masks: PathLike, stems: Sequence[str] | None = None) -> Pairs:
    """The pictures in the folder `images` with those of the same file stem in `masks`; only `stems`, if given."""
    failed: dict[str, str] = {}
    pictures, drawn = (_by_stem(_folder(one), failed) for one in (images, masks))
    if not pictures:
        raise ValueError(f"{images} must hold images, but has none")
    if not drawn:
        raise ValueError(f"{masks} must hold a mask for each image, a PNG or TIFF of the same file stem, but is empty")
    wanted = list(pictures) if stems is None else list(dict.fromkeys(stems))
    failed |= {stem: f"{stem}: no image of that stem in {images}" for stem in wanted if stem not in pictures}
    both = [stem for stem in wanted if stem in pictures and stem in drawn]
    readers = {pictures[stem].name: partial(_read_pair, pictures[stem], drawn[stem]) for stem in both}
    pairs = _collect(readers, failed)
    lone = [pictures[stem].name for stem in wanted if stem in pictures and stem not in drawn]
    strange = [path.name for stem, path in drawn.items() if stem not in pictures] if stems is None else []
    found = replace(pairs, lone_images=tuple(lone), lone_masks=tuple(strange))
    if not found.rows:
        example = f", as {lone[0]} with {Path(lone[0]).stem}.png" if lone else ""
        raise ValueError(f"no image in {images} has a mask in {masks}: {_why(found, f'names must agree{example}')}")
    return found


def read_coco_pairs(images: PathLike, annotations: PathLike, stems: Sequence[str] | None = None) -> Pairs:
    """The pictures of a COCO instance file with their annotations, save crowd regions; only `stems`, if given."""
    dataset = read_coco(annotations, _folder(images))
    by_stem = {Path(entry.file_name).stem: entry for entry in dataset.images}
    failed = {stem: f"{stem}: no image of that stem in {annotations}" for stem in stems or () if stem not in by_stem}
    wanted = by_stem if stems is None else set(stems)
    chosen = [entry for entry in dataset.images if Path(entry.file_name).stem in wanted]
    named = [entry for entry in chosen if dataset.annotations.get(entry.id)]
    found = _collect({entry.file_name: partial(_coco_pair, dataset, entry) for entry in named}, failed)
    lone = tuple(entry.file_name for entry in chosen if not dataset.annotations.get(entry.id))
    if not found.rows:
        raise ValueError(f"no image of {annotations} has a mask: {_why(found, 'it must hold annotations')}")
    return replace(found, lone_images=lone)


def read_objects(path: PathLike) -> Masks:
    """The objects of a binary mask or a label map, as the head of this file says; none in an empty one."""
    with opened(path) as picture:
        values, indexed = np.array(picture), picture.mode == "P"
        lossy = picture.format in ("JPEG", "MPO")
    values = _one_channel(values, path)
    reaches_full = values.dtype == np.uint8 and values.max() == FULL and len(np.unique(values)) > 2
    if indexed and reaches_full:
        values = np.where(values == FULL, 0, values)
    elif lossy or reaches_full:
        values = values > values.max() / 2
    return from_labelmap(values.astype(np.int64))


def read_stems(path: PathLike) -> list[str]:
    """The file stems in a text file, one a line."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    stems = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not any(stems):
        raise ValueError(f"{path} must name at least one image, a file stem a line, but is empty")
    return [stem for stem in stems if stem]


def split(pairs: Pairs, share: float, seed: int = 0) -> tuple[Pairs, Pairs]:
    """Pairs to learn from and pairs to validate on: `share` of them, at least one, drawn by the seed."""
    if not 0 <= share < 1:
        raise ValueError(f"the share of validation images must be at least 0 and below 1, got {share}")
    count = 0 if share == 0 or len(pairs) < 2 else min(len(pairs) - 1, max(1, round(share * len(pairs))))
    held = set(np.random.default_rng(seed).permutation(len(pairs))[:count].tolist())
    learned = tuple(row for i, row in enumerate(pairs.rows) if i not in held)
    return replace(pairs, rows=learned), Pairs(tuple(row for i, row in enumerate(pairs.rows) if i in held))


def _collect(readers: Mapping[str, Callable[[], Pair]], failed: Mapping[str, str]) -> Pairs:
    rows, empty, wrong = list[Pair](), list[str](), dict(failed)
    for name, read in readers.items():
        try:
            pair = read()
        except (ValueError, OSError) as error:
            wrong[name] = " ".join(str(error).split())
            continue
        if len(pair.masks):
            rows.append(pair)
        else:
            empty.append(name)
    return Pairs(tuple(rows), empty=tuple(empty), failed=wrong)


def _read_pair(image: Path, mask: Path) -> Pair:
    return _checked(image, read_objects(mask), mask)


def _coco_pair(dataset: CocoSet, entry: CocoImage) -> Pair:
    return _checked(dataset.path(entry), dataset.masks(entry), dataset.file)


def _checked(image: Path, masks: Masks, origin: Path) -> Pair:
    """The pair, if the picture can be read and is as large as its masks; empty masks are left out."""
    size = read_image(image).size
    if masks.size != size:
        raise ValueError(f"{image} is {_shown(size)}, its mask in {origin} {_shown(masks.size)}: they must be alike")
    return Pair(image, masks[masks.areas > 0].compact())


def _folder(path: PathLike) -> Path:
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise ValueError(f"{folder} must be a folder, but is a file")
    return folder


def _by_stem(folder: Path, failed: dict[str, str]) -> dict[str, Path]:
    """Pictures of a folder by stem; of two with one stem the first stays, and the other is said to have failed."""
    found: dict[str, Path] = {}
    for path in find_images([folder]):
        if path.stem in found:
            failed[path.name] = f"{path}: {found[path.stem].name} has the same stem, so this one was left out"
        else:
            found[path.stem] = path
    return found


def _one_channel(values: Shaped[np.ndarray, "..."], path: PathLike) -> Shaped[np.ndarray, "h w"]:
    if values.ndim == 3:
        colours = values[:, :, :1] if values.shape[2] == 2 else values[:, :, :3]
        if (colours != colours[:, :, :1]).any():
            raise ValueError(f"{path} is coloured: a mask must have one channel, a value for each object")
        seen = values[:, :, -1] > 0 if values.shape[2] in (2, 4) else True
        values = np.where(seen, colours[:, :, 0], 0).astype(values.dtype)
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            raise ValueError(f"{path} must hold whole numbers, a value for each object, got fractions")
        return np.asarray(values, np.int64)
    return values.astype(np.uint8) if values.dtype == bool else values


def _why(found: Pairs, otherwise: str) -> str:
    if found.failed:
        return next(iter(found.failed.values()))
    return f"{len(found.empty)} masks are empty ({_first(found.empty)})" if found.empty else otherwise


def _shown(size: Size) -> str:
    return f"{size[1]} x {size[0]} pixels"


def _first(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
