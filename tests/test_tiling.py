"""Tiles cover an image and overlap as asked, a box has one it lies whole in, and masks come back to their place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymask.tiling import around, lift, tiles
from anymask.types import Masks


@given(st.tuples(st.integers(1, 700), st.integers(1, 700)), st.integers(64, 300), st.data())
def test_tiles_cover_the_image_and_overlap_as_asked(size, tile, data):
    overlap = data.draw(st.integers(0, tile - 1).filter(lambda n: tile - n > 8))
    crops = tiles(size, tile, overlap)
    assert len(set(crops)) == len(crops)
    covered = np.zeros(size, bool)
    for x0, y0, x1, y1 in crops:
        assert (x1 - x0, y1 - y0) == (min(tile, size[1]), min(tile, size[0]))
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    for axis in (0, 1):
        starts = sorted({crop[axis] for crop in crops})
        steps = np.diff(starts)
        assert (steps <= tile - overlap).all() and (not len(steps) or steps.max() - steps.min() <= 1)


def test_an_image_no_larger_than_a_tile_is_one():
    assert tiles((100, 128), 128, 16) == [(0, 0, 128, 100)]
    assert tiles((100, 129), 128, 16) == [(0, 0, 128, 100), (1, 0, 129, 100)]


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (63, 8, "a tile must be at least 64 pixels wide, got 63"),
        (128, 128, "the overlap must be from 0 to less than the tile of 128 pixels, got 128"),
        (128, 300, "the overlap must be from 0 to less than the tile of 128 pixels, got 300"),
        (128, -1, "the overlap must be from 0 to less than the tile of 128 pixels, got -1"),
    ],
)
def test_sides_that_make_no_sense_are_refused(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        tiles((500, 500), tile, overlap)


def test_a_lifted_mask_lies_where_it_was_cut_out():
    mask = np.zeros((200, 330), bool)
    mask[20:40, 210:240] = True
    crop = x0, y0, x1, y1 = (200, 0, 330, 200)
    local = Masks.from_dense(mask[None, y0:y1, x0:x1], logits=np.zeros((1, 4, 4), np.float32), scores=[0.5])
    lifted = lift(local, crop, (200, 330))
    np.testing.assert_array_equal(lifted.masks[0], mask)
    assert lifted.logits is None and lifted.scores.tolist() == [0.5]


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        ((300, 300, 340, 340), (224, 224, 480, 480)),  # the second tile of three leaves most room
        ((0, 0, 200, 200), (0, 0, 256, 256)),  # the image's own border needs no room
        ((-50, -50, 200, 200), (0, 0, 256, 256)),
        ((200, 300, 300, 330), (122, 187, 378, 443)),  # over a seam: a square of its own
        ((600, 0, 704, 250), (448, 0, 704, 256)),
        ((100, 100, 400, 120), (0, 0, 704, 704)),  # longer than a tile
    ],
)
def test_a_box_is_looked_at_where_it_lies_whole(box, crop):
    assert around(box, (704, 704), 256, 32) == crop
