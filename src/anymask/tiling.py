"""Big images in tiles: squares that overlap, which of them to look at a box in, and masks brought back to the image.

What tiles say of one object is put together in `joining.py`. Slicing as such is that of SAHI (Akyon et al., 2022),
which merges boxes.
"""

from dataclasses import dataclass, replace

import numpy as np

from anymask.ops import rle
from anymask.ops.grids import CropBox
from anymask.types import Box, Image, Masks, Prompt, Size

SMALLEST = 64  # side of a tile
ROOM = 0.1  # share of a box's longer side that a tile must leave around it


@dataclass(frozen=True, eq=False)
class Grid:
    """An image to be looked at in tiles."""

    image: Image
    tile: int
    overlap: int

    @property
    def crops(self) -> list[CropBox]:
        """The whole image, and its tiles where there is more than one."""
        h, w = self.image.size
        return list(dict.fromkeys([(0, 0, w, h), *tiles(self.image.size, self.tile, self.overlap)]))

    def around(self, prompt: Prompt) -> CropBox:
        """Where to look at a box and its points."""
        corners = np.concatenate([np.asarray(prompt.box_coords, np.float32).reshape(2, 2), prompt.point_coords])
        hull = *corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()
        return around(hull, self.image.size, self.tile, self.overlap)

    def cut_out(self, crop: CropBox) -> Image:
        """The picture of a crop, as small as that: all that is computed of it is in its own pixels."""
        x0, y0, x1, y1 = crop
        return Image(self.image.pixels[y0:y1, x0:x1], self.image.name)


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
    weighed = None if masks.candidates is None else lift(masks.candidates, crop, size)
    return replace(masks, size=size, dense=None, packed=packed, logits=None, candidates=weighed)


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
