"""The masks of all tiles put together to the masks of the whole image.

`seams.py` says which masks are views of one object. Of an object that a tile sees whole the surest such mask stays; of
one that none does the union of its views. A mask with nothing that agrees stays cut: it is dropped where a whole one
covers it, or where another tile sees all of it and beyond its cut, and says otherwise.

A view of the whole image is one more tile, but a coarse one: it is what large objects come from whose pieces did not
come together, it gives way to a whole mask of the tiles, and it never brings two of theirs together.

`join` knows nothing of how masks were made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np
from jaxtyping import Float

from anymask.ops import rle
from anymask.ops.grids import CropBox
from anymask.ops.rle import Rle
from anymask.seams import Group, View, groups_of, views_of
from anymask.types import Masks, Size

AGREES_COARSELY = 0.5  # IoU of an object of the tiles and a view of the whole image, which has fewer pixels for it
COVERED = 0.8  # share of a cut mask that a whole one covers to make it useless


def join(parts: Sequence[tuple[CropBox, Masks]], size: Size, *, drop_cut: bool = False) -> Masks:
    """The masks of all tiles, in pixels of the whole image of `size`, as masks of the whole; ids from 1.

    A part whose crop is the whole image is the coarse view. Only masks of one label are joined. A mask put together has
    the best score of its parts and all else from the surest of them. With `drop_cut` none stays cut: what no tile sees
    whole, nor several together, nor the coarse view, is left out.
    """
    held = [(crop, masks) for crop, masks in parts if len(masks)]
    if not held:
        return Masks.empty(size)
    rows = Masks.concat([masks for _, masks in held])
    views = views_of(rows, [crop for crop, masks in held for _ in range(len(masks))])
    whole = (0, 0, size[1], size[0])
    coarse = [view for view in views if view.crop == whole]
    groups = groups_of([view for view in views if view.crop != whole], size)
    crops = [crop for crop, _ in parts if crop != whole]
    known = [group for group in groups if group.is_whole or not any(group.is_inside(crop) for crop in crops)]
    found = [one for one in _settled(known, coarse, size) if not (drop_cut and one.found is _Found.CUT)]
    found.sort(key=lambda one: min(view.row for view in one.seen))
    surest = [max(one.views, key=lambda view: view.score).row for one in found]
    return replace(
        rows[surest],
        scores=np.asarray([max(view.score for view in one.seen) for one in found], np.float32),
        ids=np.arange(1, len(found) + 1),
        logits=None,
        dense=None,
        packed=tuple(one.mask for one in found),
    )


class _Found(Enum):
    """How an object came to its mask."""

    WHOLE = auto()  # one tile sees all of it
    JOINED = auto()  # tiles see parts that agree
    COARSE = auto()  # in the view of the whole image
    CUT = auto()  # a part of it is missing


@dataclass(frozen=True)
class _Object:
    """What may come out: a mask, the views that it is of, and all views that say that it is there."""

    mask: Rle
    views: tuple[View, ...]
    seen: tuple[View, ...]
    found: _Found

    @classmethod
    def of(cls, group: Group, mask: Rle, coarse: View | None) -> "_Object":
        """The mask of the tiles where it is whole, else that of the coarse view."""
        seen = (*group.views, *([coarse] if coarse else []))
        if group.best:
            return cls(mask, (group.best,), seen, _Found.WHOLE)
        if coarse and not group.is_whole:
            return cls(coarse.mask, (coarse,), seen, _Found.COARSE)
        return cls(mask, tuple(group.views), seen, _Found.JOINED if group.is_whole else _Found.CUT)

    def gives_way_to(self, other: "_Object") -> bool:
        """Whether it is worth nothing within `other`: what a tile saw whole there it would have seen whole too."""
        stronger = {_Found.JOINED: (_Found.WHOLE,), _Found.CUT: (_Found.WHOLE, _Found.JOINED, _Found.COARSE)}
        return self.views[0].label == other.views[0].label and other.found in stronger.get(self.found, ())


def _settled(groups: Sequence[Group], coarse: Sequence[View], size: Size) -> list[_Object]:
    """Of the tiles what is whole, of the coarse view what no tile has whole, and what is cut and in nothing whole."""
    masks = [group.mask(size) for group in groups]
    partners = _partners(groups, masks, coarse, size)
    objects = [_Object.of(*found, partners.get(i)) for i, found in enumerate(zip(groups, masks, strict=True))]
    taken = {view.row for view in partners.values()}
    objects += [_Object(view.mask, (view,), (view,), _Found.COARSE) for view in coarse if view.row not in taken]
    return _uncovered(objects)


def _partners(groups: Sequence[Group], masks: Sequence[Rle], coarse: Sequence[View], size: Size) -> dict[int, View]:
    """For each group (by place) the coarse view of the same object, each of one group only, the best pairs first."""
    if not groups or not coarse:
        return {}
    rows = [_coarse_agreement(*found, coarse, size) for found in zip(groups, masks, strict=True)]
    agreement, partners = np.stack(rows), dict[int, View]()
    for i, j in zip(*np.unravel_index(np.argsort(-agreement, axis=None), agreement.shape), strict=True):
        if agreement[i, j] < AGREES_COARSELY:
            break
        if i not in partners and coarse[j] not in partners.values():
            partners[int(i)] = coarse[j]
    return partners


def _coarse_agreement(group: Group, mask: Rle, coarse: Sequence[View], size: Size) -> Float[np.ndarray, "n"]:
    """IoU of an object with every coarse view; of a cut one in its tiles only, which see no more."""
    theirs = [view.mask for view in coarse]
    if group.is_whole:
        shared = rle.intersections([mask], theirs)[0]
        union = rle.areas([mask])[0] + rle.areas(theirs) - shared
    else:
        shared, union = np.zeros(len(coarse)), np.zeros(len(coarse))
        for view in group.views:
            both = rle.intersections([view.mask], theirs)[0]
            shared, union = shared + both, union + view.area + rle.areas(rle.crop(theirs, view.crop, size)) - both
    return np.where([view.label == group.views[0].label for view in coarse], shared / union, 0.0)


def _uncovered(objects: Sequence[_Object]) -> list[_Object]:
    """Without what is cut and lies in something whole, and what is put together and lies in what a tile saw whole."""
    kept = []
    for one in objects:
        over = [other.mask for other in objects if one.gives_way_to(other)]
        shared = rle.intersections([one.mask], over)
        if not over or shared.max() < COVERED * rle.areas([one.mask])[0]:
            kept.append(one)
    return kept
