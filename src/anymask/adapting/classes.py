"""The images of one class of a case study: those to learn from, to choose by, and those kept for one last look.

A class is a folder with images/ and masks/, paired by file stem, and perhaps train.txt, val.txt and spare.txt: file
stems, one a line. What no list says is drawn by the seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anymask.adapting.known_sets import KNOWN, fetched
from anymask.adapting.lessons import telling
from anymask.data.images import find_images
from anymask.data.pairs import Pairs, read_pairs, read_stems

PARTS = ("train", "val", "spare")


@dataclass(frozen=True)
class ClassFolder:
    """The three parts of a class; `spare` is None where there is neither a spare.txt nor an image left over."""

    name: str
    train: Pairs
    val: Pairs
    spare: Pairs | None = None

    @property
    def failed(self) -> bool:
        """Whether a file could not be used."""
        return any(part.failed for part in self._parts)

    def remarks(self) -> list[str]:
        """What a user should know about files that were left out."""
        return [f"{self.name}: {line}" for part in self._parts for line in part.remarks()]

    @property
    def _parts(self) -> tuple[Pairs, ...]:
        return tuple(part for part in (self.train, self.val, self.spare) if part is not None)


def read_class(
    name: str, place: str, max_train: int = 50, max_val: int = 20, seed: int = 0, cache: Path = Path("sets")
) -> ClassFolder:
    """The class in the folder `place`, or in the well-known set of that name, which is fetched into `cache`.

    Raises FileNotFoundError for a folder that is not there, ValueError for one that cannot be split or whose lists are
    wrong. A single bad file is left out, and told in `remarks`.
    """
    folder = _located(name, place, cache)
    images, masks = folder / "images", folder / "masks"
    lists = {part: read_stems(folder / f"{part}.txt") for part in PARTS if (folder / f"{part}.txt").is_file()}
    stems = [path.stem for path in find_images([images])]
    _check_lists(lists, stems, folder)
    drawn = {path.stem for path in find_images([masks])}
    parts = split_stems([stem for stem in stems if stem in drawn], lists, max_train, max_val, seed)
    count = len(drawn.intersection(stems))
    for part in ("train", "val"):
        if not parts[part]:
            raise ValueError(
                f"the class {name!r} cannot be split: {folder} has {count} image{'s' * (count != 1)} with a mask, and"
                f" none is left for {part}: it takes at least one to learn from and one to judge by"
            )
    read = {part: telling(read_pairs(images, masks, found)) for part, found in parts.items() if found}
    return ClassFolder(name, **read)


def split_stems(
    stems: Sequence[str], lists: Mapping[str, Sequence[str]], max_train: int, max_val: int, seed: int
) -> dict[str, list[str]]:
    """Which images are train, val and spare: the first of each list, or those that the seed draws from the unlisted.

    Where there are too few for `max_train` and `max_val`, both get their share of them. `spare` is the whole list, or
    as many as val.
    """
    listed = {stem for part in lists.values() for stem in part}
    order = np.random.default_rng(seed).permutation(len(stems))
    free = [stems[i] for i in order.tolist() if stems[i] not in listed]
    share = max_val / (max_train + max_val) if "train" not in lists else 1.0
    count = min(max_val, max(1, round(share * len(free))))
    val = list(lists["val"] if "val" in lists else free[:count])[:max_val]
    rest = [stem for stem in free if stem not in val]
    train = list(lists.get("train", rest))[:max_train]
    left = [] if lists else rest[len(train) :][:max_val]
    return {"train": train, "val": val, "spare": list(lists.get("spare", left))}


def _located(name: str, place: str, cache: Path) -> Path:
    """The folder of a class, with images/ and masks/ in it."""
    folder = Path(place)
    if not folder.exists() and place in KNOWN:
        return fetched(place, cache)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the class {name!r} must be a folder with images/ and masks/ or one of the known sets {', '.join(KNOWN)},"
            f" got {place}: " + ("it is a file" if folder.exists() else "there is no such folder")
        )
    for inside in ("images", "masks"):
        if not (folder / inside).is_dir():
            raise FileNotFoundError(
                f"the class {name!r} needs {inside}/ in {folder}, but has none: images/ and masks/ must hold files of"
                " the same stems"
            )
    return folder


def _check_lists(lists: Mapping[str, Sequence[str]], stems: Sequence[str], folder: Path) -> None:
    """Every name is an image, and in one list alone."""
    seen: dict[str, str] = {}
    for part, names in lists.items():
        if unknown := [stem for stem in names if stem not in set(stems)]:
            raise ValueError(f"{folder / part}.txt names images that are not in {folder / 'images'}: {_told(unknown)}")
        if shared := [stem for stem in names if stem in seen]:
            raise ValueError(
                f"{seen[shared[0]]}.txt and {part}.txt in {folder} must not share images, got {_told(shared)} in both"
            )
        seen |= dict.fromkeys(names, part)


def _told(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
