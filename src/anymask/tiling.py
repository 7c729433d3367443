"""Big images: tiles that overlap, and the masks of tiles put together to the masks of the whole image.

A mask that ends at an inner border of its tile is cut, and one that does not is whole. What one tile says of an object
is compared with what another says in the part that both see, because there they must agree:

- a whole mask and a cut one that agree are one object, and the whole one is its mask;
- whole masks that agree are one object seen twice, and the surer one stays;
- cut masks that agree are one object, and their union is its mask, over as many tiles as it takes;
- a cut mask with nothing that agrees stays cut. It is dropped where a whole one covers it, or where another tile sees
  all of it and beyond its cut, and says otherwise; it is kept where no tile knows better.

Nothing is joined because it is near or touches, and never two masks that one tile holds apart while they touch. A view
of the whole image is one more tile, but a coarse one: it is what large objects come from whose pieces did not come
together, it gives way to a whole mask of the tiles, and it never brings two of theirs together. Everything is done on
RLEs; dense pixels are made of a few windows in the overlap of two tiles.

`join` knows nothing of how masks were made. Slicing as such is that of SAHI (Akyon et al., 2022), which merges boxes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cache, cached_property
from itertools import combinations, product

import cv2
import numpy as np
from jaxtyping import Float, Int

from anymask.ops import rle
from anymask.ops.boxes import CropBox
from anymask.ops.rle import Rle
from anymask.types import Box, Masks, Size

SMALLEST = 64  # side of a tile
NEAR = 1 / 64  # share of a tile's side: a mask that ends so near its border is cut, as masks are coarse there
AGREES = 0.6  # IoU of two views of one object, in what both tiles see
AGREES_COARSELY = 0.5  # the same for a view of the whole image, which has fewer pixels for it
ROOM = 0.1  # share of a box's longer side that a tile must leave around it
COVERED = 0.8  # share of a cut mask that a whole one covers to make it useless
TIE = 0.05  # IoUs that differ by less say nothing about which of two candidates is meant
PIECE = 0.1  # share of a mask, in what both tiles see, from which a piece of it counts
CONNECTED = 0.9  # share of a mask that its largest piece must have


def tiles(size: Size, tile: int, overlap: int) -> list[CropBox]:
    """Squares of side `tile` that cover an image of `size`, row by row, evenly spread and overlapping by `overlap`.

    Smaller where the image is: one no larger than a tile is one tile. ValueError where the sides make no sense.
    """
    if tile < SMALLEST:
        raise ValueError(f"a tile must be at least {SMALLEST} pixels wide, got {tile}")
    if not 0 <= overlap < tile:
        raise ValueError(f"the overlap must be from 0 to less than the tile of {tile} pixels, got {overlap}")
    h, w = size
    rows, columns = _starts(h, tile, overlap), _starts(w, tile, overlap)
    return [(x, y, min(x + tile, w), min(y + tile, h)) for y in rows for x in columns]


def settled_overlap(tile: int | None, overlap: int | None) -> int:
    """The overlap, an eighth of the tile where none is given. ValueError for a tile and overlap that make no sense."""
    if tile is None:
        if overlap is not None:
            raise ValueError(f"overlap is that of tiles: give the side of a tile too, got overlap {overlap} alone")
        return 0
    settled = tile // 8 if overlap is None else overlap
    tiles((1, 1), tile, settled)
    return settled


def around(box: Box, size: Size, tile: int, overlap: int) -> CropBox:
    """Where to look at a box of an image of `size`: in the tile that holds it whole with the most room around it.

    Where none leaves a tenth of its longer side, a square of a tile's size with the box in its middle; the whole image
    for a box larger than a tile. Depends on nothing but the box, and boxes in one tile share what is computed of it.
    """
    h, w = size
    x0, y0, x1, y1 = max(0.0, box[0]), max(0.0, box[1]), min(float(w), box[2]), min(float(h), box[3])
    if max(x1 - x0, y1 - y0) > tile:
        return 0, 0, w, h
    best = max(tiles(size, tile, overlap), key=lambda crop: _room((x0, y0, x1, y1), crop, size))
    if _room((x0, y0, x1, y1), best, size) >= ROOM * max(x1 - x0, y1 - y0):
        return best
    left, top = (min(max(0, int((a + b - tile) / 2)), max(0, side - tile)) for a, b, side in ((x0, x1, w), (y0, y1, h)))
    return left, top, min(left + tile, w), min(top + tile, h)


def lift(masks: Masks, crop: CropBox, size: Size) -> Masks:
    """Masks of the picture in `crop` as masks of the whole image of `size`; low-resolution logits stay behind."""
    x0, y0, _, _ = crop
    packed = tuple(rle.placed(one, (x0, y0), size) for one in masks.rles)
    return replace(masks, size=size, dense=None, packed=packed, logits=None)


def join(parts: Sequence[tuple[CropBox, Masks]], size: Size) -> Masks:
    """The masks of all tiles, in pixels of the whole image of `size`, as masks of the whole; ids from 1.

    A part whose crop is the whole image is the coarse view. Only masks of one label are joined. A mask put together has
    the best score of its parts and all else from the surest of them.
    """
    held = [(crop, masks) for crop, masks in parts if len(masks)]
    if not held:
        return Masks.empty(size)
    rows = Masks.concat([masks for _, masks in held])
    views = _views(rows, [crop for crop, masks in held for _ in range(len(masks))])
    whole = (0, 0, size[1], size[0])
    coarse = [view for view in views if view.crop == whole]
    groups = _groups([view for view in views if view.crop != whole], size)
    crops = [crop for crop, _ in parts if crop != whole]
    known = [group for group in groups if group.is_whole or not any(group.is_inside(crop) for crop in crops)]
    found = sorted(_settled(known, coarse, size), key=lambda one: min(view.row for view in one.seen))
    surest = [max(one.views, key=lambda view: view.score).row for one in found]
    return replace(
        rows[surest],
        scores=np.asarray([max(view.score for view in one.seen) for one in found], np.float32),
        ids=np.arange(1, len(found) + 1),
        logits=None,
        dense=None,
        packed=tuple(one.mask for one in found),
    )


_Pieces = tuple[int, Int[np.ndarray, "h w"]]  # how many, and each pixel's own from 1 on, 0 beside the mask


@dataclass(frozen=True, eq=False)
class _View:
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
class _Group:
    """Views of one object; `loose` are the sides (row, side) where one is cut and no other goes on."""

    views: list[_View]
    loose: set[tuple[int, int]]

    @classmethod
    def of(cls, view: _View) -> "_Group":
        return cls([view], {(view.row, side) for side in range(4) if view.cut[side]})

    @property
    def best(self) -> _View | None:
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
    views: tuple[_View, ...]
    seen: tuple[_View, ...]
    found: _Found

    @classmethod
    def of(cls, group: _Group, mask: Rle, coarse: _View | None) -> "_Object":
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


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [i * (length - tile) // (count - 1) for i in range(count)]


def _room(box: Box, crop: CropBox, size: Size) -> float:
    """The narrowest stretch from a box to a border of the crop that is not the image's; negative where it is beyond."""
    whole, signs = (0, 0, size[1], size[0]), (1, 1, -1, -1)
    inner = [side for side in range(4) if crop[side] != whole[side]]
    return min((signs[side] * (box[side] - crop[side]) for side in inner), default=float("inf"))


def _views(rows: Masks, crops: Sequence[CropBox]) -> list[_View]:
    boxes, areas, packed = rows.boxes.astype(int).tolist(), rows.areas.tolist(), rows.rles
    return [
        _View(i, crop, rows.labels[i], float(rows.scores[i]), packed[i], tuple(box), area, _cut(box, crop, rows.size))
        for i, (crop, box, area) in enumerate(zip(crops, boxes, areas, strict=True))
        if area
    ]


def _cut(box: Sequence[int], crop: CropBox, size: Size) -> tuple[bool, ...]:
    """Sides where the box ends with the crop, but not the image."""
    near = max(1, round(NEAR * min(crop[2] - crop[0], crop[3] - crop[1])))
    whole = (0, 0, size[1], size[0])
    return tuple(crop[side] != whole[side] and abs(box[side] - crop[side]) <= near for side in range(4))


def _groups(views: Sequence[_View], size: Size) -> list[_Group]:
    """Views of one object together: first what agrees beyond doubt, then what does as well as another, then pieces."""
    by_tile: dict[CropBox, list[_View]] = {}
    for view in views:
        by_tile.setdefault(view.crop, []).append(view)
    pairs = [(a, b) for a, b in combinations(by_tile, 2) if _meet(a, b)]
    links = [link for a, b in pairs for link in _links(a, b, by_tile[a], by_tile[b], size)]
    group_of = {view.row: _Group.of(view) for view in views}
    for _, a, b in sorted(links, key=lambda link: link[0]):
        first, second = group_of[a.row], group_of[b.row]
        if first is not second:
            if not _can_be_one(first, second):
                continue
            first.views += second.views
            first.loose |= second.loose
            group_of |= {view.row: first for view in second.views}
        first.loose -= {(one.row, side) for one, other in ((a, b), (b, a)) for side in _beyond(one.crop, other.crop)}
    return list({id(group): group for group in group_of.values()}.values())


def _links(
    first: CropBox, second: CropBox, in_first: Sequence[_View], in_second: Sequence[_View], size: Size
) -> Iterator[tuple[tuple[int, int, int], _View, _View]]:
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
    ours: Sequence[_View], theirs: Sequence[_View], first: CropBox, second: CropBox, size: Size
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


def _can_be_one(first: _Group, second: _Group) -> bool:
    """What one tile has apart must not touch, and with a whole mask the others must mostly lie within it."""
    for a, b in product(first.views, second.views):
        if a.crop == b.crop and _touch(a, b):
            return False
        for whole, other in ((a, b), (b, a)):
            if whole.is_whole and 2 * _shared(whole.mask, other.mask) < other.area:
                return False
    return True


def _touch(a: _View, b: _View) -> bool:
    """Whether they share a pixel or have neighbouring ones."""
    x0, y0, x1, y1 = _common(a.box, b.box)
    h, w = a.mask["size"]
    if x1 < x0 or y1 < y0:
        return False
    box = max(0, x0 - 1), max(0, y0 - 1), min(w, x1 + 1), min(h, y1 + 1)
    grown = cv2.dilate(rle.decode_part(a.mask, box).astype(np.uint8), np.ones((3, 3), np.uint8))
    return bool((grown.astype(bool) & rle.decode_part(b.mask, box)).any())


def _settled(groups: Sequence[_Group], coarse: Sequence[_View], size: Size) -> list[_Object]:
    """Of the tiles what is whole, of the coarse view what no tile has whole, and what is cut and in nothing whole."""
    masks = [group.mask(size) for group in groups]
    partners = _partners(groups, masks, coarse, size)
    objects = [_Object.of(*found, partners.get(i)) for i, found in enumerate(zip(groups, masks, strict=True))]
    taken = {view.row for view in partners.values()}
    objects += [_Object(view.mask, (view,), (view,), _Found.COARSE) for view in coarse if view.row not in taken]
    return _uncovered(objects)


def _partners(groups: Sequence[_Group], masks: Sequence[Rle], coarse: Sequence[_View], size: Size) -> dict[int, _View]:
    """For each group (by place) the coarse view of the same object, each of one group only, the best pairs first."""
    if not groups or not coarse:
        return {}
    rows = [_coarse_agreement(*found, coarse, size) for found in zip(groups, masks, strict=True)]
    agreement, partners = np.stack(rows), dict[int, _View]()
    for i, j in zip(*np.unravel_index(np.argsort(-agreement, axis=None), agreement.shape), strict=True):
        if agreement[i, j] < AGREES_COARSELY:
            break
        if i not in partners and coarse[j] not in partners.values():
            partners[int(i)] = coarse[j]
    return partners


def _coarse_agreement(group: _Group, mask: Rle, coarse: Sequence[_View], size: Size) -> Float[np.ndarray, "n"]:
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
