"""What a phrase learns from: pictures with masks of one class, those held out to judge it, and pictures without it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anymask.adapting.settings import InversionSettings
from anymask.data.images import find_images, read_image
from anymask.data.pairs import Pair, Pairs, read_coco_pairs, read_objects, read_pairs, read_stems, split
from anymask.types import Masks


@dataclass(frozen=True)
class Lessons:
    """Pictures to learn from, pictures held out, and pictures without the thing."""

    learn: Pairs
    held_out: Pairs = Pairs(())
    without: tuple[Pair, ...] = ()

    @property
    def failed(self) -> dict[str, str]:
        """Files that could not be read, and why."""
        return {**self.learn.failed, **self.held_out.failed}

    def remarks(self) -> list[str]:
        """What there is, and what was left out."""
        n, m = len(self.learn), len(self.held_out)
        about = f"{n} image{'s' * (n != 1)} to learn from, {m} held out"
        if self.without:
            about += f", {len(self.without)} without the thing"
        return list(dict.fromkeys([about, *self.learn.remarks(), *self.held_out.remarks()]))


def read_lessons(sources: InversionSettings) -> Lessons:
    """Reads and checks all of it. Raises ValueError where nothing is left to learn from."""
    if sources.image is not None and sources.images is None:
        _check_used(sources)
        learn, held_out = Pairs((read_pair(sources.image, sources.mask),)), Pairs(())
    elif sources.images is not None and sources.image is None:
        _check_used(sources)
        learn, held_out = _folders(sources.images, sources)
    else:
        raise ValueError("give what to learn from once: --image and --mask, or --images and --masks")
    if not learn.rows:
        raise ValueError("no image is left to learn from: all are held out to judge by")
    if sources.negatives is None:
        return Lessons(learn, held_out)
    without, failed = _without(sources.negatives)
    shown = {pair.image.resolve() for pair in (*learn.rows, *held_out.rows)}
    if both := [pair.image.name for pair in without if pair.image.resolve() in shown]:
        raise ValueError(f"--negatives must be images without the thing, got {both[0]}, which has a mask")
    return Lessons(replace(learn, failed={**learn.failed, **failed}), held_out, without)


def read_pair(image: Path, mask: Path | None) -> Pair:
    """One picture with its mask. Raises ValueError for a mask of another size, of nothing, or of everything."""
    if mask is None:
        raise ValueError(f"{image} needs its mask: give --mask FILE, a picture that is black beside the object")
    size, objects = read_image(image).size, read_objects(mask)
    if objects.size != size:
        (h, w), (mh, mw) = size, objects.size
        raise ValueError(f"{image} is {w} x {h} pixels, its mask {mask} {mw} x {mh}: they must be alike")
    objects = objects[objects.areas > 0]
    if not len(objects):
        raise ValueError(f"the mask {mask} is all black: it must be white on the object, and black beside it")
    if _is_everything(objects):
        raise ValueError(f"the mask {mask} is all white: it must be black beside the object")
    return Pair(image, objects.compact())


def telling(pairs: Pairs) -> Pairs:
    """Without masks of everything, which are named among the failures: they tell nothing."""
    whole = [pair for pair in pairs.rows if _is_everything(pair.masks)]
    why = {
        pair.image.name: f"{pair.image}: its mask is all white, it must be black beside the object" for pair in whole
    }
    kept = tuple(pair for pair in pairs.rows if pair not in whole)
    if not kept and why:
        raise ValueError(next(iter(why.values())))
    return replace(pairs, rows=kept, failed={**pairs.failed, **why})


def _check_used(sources: InversionSettings) -> None:
    """Raises ValueError for a setting that would have no effect."""
    folders = ("masks", "annotations", "val_images", "val_masks", "train_list", "val_list")
    unused = [name for name in (*folders, "category") if sources.image is not None and getattr(sources, name)]
    unused += ["mask"] if sources.images is not None and sources.mask is not None else []
    unused += ["category"] if sources.category and sources.annotations is None else []
    if unused:
        of = "one image" if sources.image is not None else "this folder of images"
        raise ValueError(f"--{unused[0].replace('_', '-')} would have no effect on {of}: leave it out")
    if (sources.val_images is None) != (sources.val_masks is None):
        raise ValueError("--val-images and --val-masks go together: the images held out, and the folder of their masks")


def _folders(images: Path, sources: InversionSettings) -> tuple[Pairs, Pairs]:
    """Held out is what a folder or a list of its own says, or else a share; no image is in both."""
    learn = _read(images, sources, sources.train_list)
    if sources.val_images is not None and sources.val_masks is not None:
        stems = None if sources.val_list is None else read_stems(sources.val_list)
        held_out = telling(read_pairs(sources.val_images, sources.val_masks, stems))
    elif sources.val_list is None:
        return split(learn, sources.val_share, sources.seed)
    else:
        held_out = _read(images, sources, sources.val_list)
    kept = {pair.image.resolve() for pair in held_out.rows}
    return replace(learn, rows=tuple(pair for pair in learn.rows if pair.image.resolve() not in kept)), held_out


def _read(images: Path, sources: InversionSettings, stems: Path | None) -> Pairs:
    names = None if stems is None else read_stems(stems)
    if sources.masks is not None and sources.annotations is None:
        return telling(read_pairs(images, sources.masks, names))
    if sources.annotations is None or sources.masks is not None:
        raise ValueError(f"give the masks of the images in {images} once: --masks, or a COCO file")
    return telling(_of_category(read_coco_pairs(images, sources.annotations, names), sources.category))


def _of_category(pairs: Pairs, category: str | None) -> Pairs:
    """The objects of one category, in pictures that have some."""
    known = sorted({label for pair in pairs.rows for label in pair.masks.labels})
    if category not in known:
        raise ValueError(f"--category must be one of {', '.join(known)}, got {category!r}")
    mine = [(pair, np.flatnonzero(pair.masks.rows_named(category))) for pair in pairs.rows]
    return replace(pairs, rows=tuple(Pair(pair.image, pair.masks[rows]) for pair, rows in mine if len(rows)))


def _without(folder: Path) -> tuple[tuple[Pair, ...], dict[str, str]]:
    """Pictures without an object, and why others could not be read."""
    rows, failed = list[Pair](), dict[str, str]()
    for file in find_images([folder]):
        try:
            rows.append(Pair(file, Masks.empty(read_image(file).size)))
        except (ValueError, OSError) as error:
            failed[file.name] = " ".join(str(error).split())
    if not rows:
        raise ValueError(next(iter(failed.values()), f"{folder} must hold images without the thing, but has none"))
    return tuple(rows), failed


def _is_everything(masks: Masks) -> bool:
    return bool(masks.masks.any(axis=0).all())
