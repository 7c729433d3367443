"""Which masks of overlapping tiles are views of one object.

A mask that ends at an inner border of its tile is cut, and one that does not is whole. What one tile says of an object
is compared with what another says in the part that both see, because there they must agree:

- a whole mask and a cut one that agree are one object, and so are whole masks, which saw it twice;
- cut masks that agree are one object, over as many tiles as it takes. They stay cut where one ends at its tile's border
  and the others do not have most of that end, too: their union would end straight there.

Nothing is put together because it is near or touches, and never two masks that one tile holds apart while they touch.
Everything is done on RLEs; dense pixels are made of a few windows in the overlap of two tiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations, product

import cv2
import numpy as np
from jaxtyping import Float, Int

from anymask.ops import rle
from anymask.ops.grids import CropBox
from anymask.ops.rle import Rle
from anymask.types import Masks, Size

NEAR = 1 / 64  # share of a tile's side: a mask that ends so near its border is cut, as masks are coarse there
AGREES = 0.6  # IoU of two views of one object, in what both tiles see
TIE = 0.05  # IoUs that differ by less say nothing about which of two candidates is meant
PIECE = 0.1  # share of a mask, in what both tiles see, from which a piece of it counts
CONNECTED = 0.9  # share of a mask that its largest piece must have

_Pieces = tuple[int, Int[np.ndarray, "h w"]]  # how many, and each pixel's own from 1 on, 0 beside the mask


@dataclass(frozen=True, eq=False)
class View:
    """One mask as one tile has it; `cut` says at which sides (left, top, right, bottom) it ends with the tile."""

    row: int
    crop: CropBox
    label: str
    score: float
    mask: Rle
    box: CropBox
    area: int
    cut: tuple[bool, ...]

    @property
    def is_whole(self) -> bool:
        return not any(self.cut)

    @cached_property
    def is_one(self) -> bool:
        """Whether nearly all of it is one piece."""
        _, numbered = _pieces(self.mask, self.box)
        return bool(np.bincount(numbered.ravel())[1:].max() >= CONNECTED * self.area)


@dataclass(eq=False)
class Group:
    """Views of one object; `loose` are the sides (row, side) where one is cut and no other goes on."""

    views: list[View]
    loose: set[tuple[int, int]]

    @classmethod
    def of(cls, view: View) -> "Group":
        return cls([view], {(view.row, side) for side in range(4) if view.cut[side]})

    @property
    def best(self) -> View | None:
        """The surest of the views that are whole."""
        return max((view for view in self.views if view.is_whole), key=lambda view: view.score, default=None)

    @property
    def is_whole(self) -> bool:
        return self.best is not None or not self.loose

    def is_inside(self, crop: CropBox) -> bool:
        """Whether a tile sees all of it and what follows where it is cut."""
        beyond = {(view.row, side) for view in self.views for side in _beyond(view.crop, crop)}
        return self.loose <= beyond and all(_common(view.box, crop) == view.box for view in self.views)

    def mask(self, size: Size) -> Rle:
        """That of the best view, or of all together."""
        return self.best.mask if self.best else rle.merge([view.mask for view in self.views], size)


def views_of(rows: Masks, crops: Sequence[CropBox]) -> list[View]:
    """The masks that are not empty, each seen in its own of `crops`."""
    boxes, areas, packed = rows.boxes.astype(int).tolist(), rows.areas.tolist(), rows.rles
    return [
        View(i, crop, rows.labels[i], float(rows.scores[i]), packed[i], tuple(box), area, _cut(box, crop, rows.size))
        for i, (crop, box, area) in enumerate(zip(crops, boxes, areas, strict=True))
        if area
    ]


def groups_of(views: Sequence[View], size: Size) -> list[Group]:
    """Views of one object together: first what agrees beyond doubt, then what does as well as another, then pieces."""
    by_tile: dict[CropBox, list[View]] = {}
    for view in views:
        by_tile.setdefault(view.crop, []).append(view)
    pairs = [(a, b) for a, b in combinations(by_tile, 2) if _meet(a, b)]
    links = [link for a, b in pairs for link in _links(a, b, by_tile[a], by_tile[b], size)]
    group_of = {view.row: Group.of(view) for view in views}
    for _, a, b in sorted(links, key=lambda link: link[0]):
        first, second = group_of[a.row], group_of[b.row]
        if first is not second:
            if not _can_be_one(first, second):
                continue
            first.views += second.views
            first.loose |= second.loose
            group_of |= {view.row: first for view in second.views}
        first.loose -= {(one.row, side) for one, other in ((a, b), (b, a)) for side in _beyond(one.crop, other.crop)}
    groups = list({id(group): group for group in group_of.values()}.values())
    for group in groups:
        group.loose |= {
            (view.row, side)
            for view in group.views
            for side in range(4)
            if view.cut[side] and not _goes_on(view, side, group.views)
        }
    return groups


def _goes_on(view: View, side: int, views: Sequence[View]) -> bool:
    """Whether those of the views that see beyond this side of the view's tile have most of its last pixels there."""
    (x0, y0, x1, y1), border = view.box, view.crop[side]
    at = border if side < 2 else border - 1
    last = (x0, at, x1, at + 1) if side % 2 else (at, y0, at + 1, y1)
    here = rle.decode_part(view.mask, last)
    there = [rle.decode_part(other.mask, last) for other in views if side in _beyond(view.crop, other.crop)]
    return bool(2 * (here & np.any(there, axis=0)).sum() >= here.sum())


def _cut(box: Sequence[int], crop: CropBox, size: Size) -> tuple[bool, ...]:
    """Sides where the box ends with the crop, but not the image."""
    near = max(1, round(NEAR * min(crop[2] - crop[0], crop[3] - crop[1])))
    whole = (0, 0, size[1], size[0])
    return tuple(crop[side] != whole[side] and abs(box[side] - crop[side]) <= near for side in range(4))


def _links(
    first: CropBox, second: CropBox, in_first: Sequence[View], in_second: Sequence[View], size: Size
) -> Iterator[tuple[tuple[int, int, int], View, View]]:
    """Pairs of views that may be one object, after how doubtful that is: 0, or 1 beside a rival, or 2 for pieces.

    Of rivals that agree alike, as the inner and the outer one of two do within both, the large ones go together.
    """
    ours = [view for view in in_first if _meet(view.box, second)]
    theirs = [view for view in in_second if _meet(view.box, first)]
    if not ours or not theirs:
        return
    iou, box = _agreement(ours, theirs, first, second, size), _common(first, second)
    pieces = cache(lambda view: _pieces(view.mask, box))
    for i, j in np.argwhere(iou > 0):
        a, b = ours[i], theirs[j]
        rival = max(np.delete(iou[i], j).max(initial=0), np.delete(iou[:, j], i).max(initial=0))
        if iou[i, j] >= max(AGREES, rival - TIE):
            yield (int(iou[i, j] < rival + TIE), -round(2 * iou[i, j] / TIE), -a.area - b.area), a, b
        elif not (a.is_whole or b.is_whole) and _pieces_agree(pieces(a), pieces(b)) and a.is_one and b.is_one:
            yield (2, 0, -a.area - b.area), a, b


def _agreement(
    ours: Sequence[View], theirs: Sequence[View], first: CropBox, second: CropBox, size: Size
) -> Float[np.ndarray, "n m"]:
    """IoU of views of two tiles, 0 for unlike labels; of a view beside a cut one, what lies in the other's tile."""
    in_second = rle.areas(rle.crop([view.mask for view in ours], second, size))
    in_first = rle.areas(rle.crop([view.mask for view in theirs], first, size))
    sizes = np.asarray(
        [
            [
                (seen_a if b.cut else a.area) + (seen_b if a.cut else b.area)
                for b, seen_b in zip(theirs, in_first, strict=True)
            ]
            for a, seen_a in zip(ours, in_second, strict=True)
        ]
    )
    shared = rle.intersections([view.mask for view in ours], [view.mask for view in theirs])
    same = np.asarray([[a.label == b.label for b in theirs] for a in ours])
    return np.where(same, shared / np.maximum(sizes - shared, 1), 0.0)


def _pieces_agree(first: _Pieces, second: _Pieces) -> bool:
    """Whether a piece of one mask is a piece of the other, in what both tiles see.

    A bent object is two objects for the tile that sees its ends, and one for the tile that sees its bend.
    """
    (n, ours), (m, theirs) = first, second
    if n == m == 1:
        return False  # they are compared as they are
    shared = np.bincount((ours * (m + 1) + theirs).ravel(), minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    mine, yours, shared = shared[1:].sum(axis=1, keepdims=True), shared[:, 1:].sum(axis=0), shared[1:, 1:]
    counts = np.maximum(mine / mine.sum(), yours / yours.sum()) >= PIECE
    return bool((counts & (shared >= AGREES * (mine + yours - shared))).any())


def _pieces(mask: Rle, box: CropBox) -> _Pieces:
    count, numbered = cv2.connectedComponents(rle.decode_part(mask, box).astype(np.uint8))
    return count - 1, numbered


def _can_be_one(first: Group, second: Group) -> bool:
    """What one tile has apart must not touch, and with a whole mask the others must mostly lie within it."""
    for a, b in product(first.views, second.views):
        if a.crop == b.crop and _touch(a, b):
            return False
        for whole, other in ((a, b), (b, a)):
            if whole.is_whole and 2 * _shared(whole.mask, other.mask) < other.area:
                return False
    return True


def _touch(a: View, b: View) -> bool:
    """Whether they share a pixel or have neighbouring ones."""
    x0, y0, x1, y1 = _common(a.box, b.box)
    h, w = a.mask["size"]
    if x1 < x0 or y1 < y0:
        return False
    box = max(0, x0 - 1), max(0, y0 - 1), min(w, x1 + 1), min(h, y1 + 1)
    grown = cv2.dilate(rle.decode_part(a.mask, box).astype(np.uint8), np.ones((3, 3), np.uint8))
    return bool((grown.astype(bool) & rle.decode_part(b.mask, box)).any())


def _beyond(crop: CropBox, other: CropBox) -> list[int]:
    """The sides at which `other` sees further than `crop`."""
    return [side for side in range(4) if (other[side] < crop[side] if side < 2 else other[side] > crop[side])]


def _common(first: CropBox, second: CropBox) -> CropBox:
    (a0, b0, a1, b1), (c0, d0, c1, d1) = first, second
    return max(a0, c0), max(b0, d0), min(a1, c1), min(b1, d1)


def _meet(first: CropBox, second: CropBox) -> bool:
    x0, y0, x1, y1 = _common(first, second)
    return x0 < x1 and y0 < y1


def _shared(first: Rle, second: Rle) -> int:
    return int(rle.intersections([first], [second])[0, 0])
