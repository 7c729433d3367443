"""All masks of a photo in one picture: what is on top, how much of the photo stays, and colours of neighbours."""

import time

import numpy as np
from hypothesis import given

from anymask.data.mosaics import draw_mosaic, mosaic_shades
from anymask.ops import rle
from anymask.types import Image, Masks
from pictures import results

GREY = Image(np.full((120, 160, 3), 120, np.uint8), "grey")


def tiles(n: int, side: int = 20) -> Masks:
    """`n` squares side by side and above each other, which fill rows of eight."""
    dense = np.zeros((n, 120, 160), bool)
    for i in range(n):
        row, column = divmod(i, 8)
        dense[i, row * side : (row + 1) * side, column * side : (column + 1) * side] = True
    return Masks.from_dense(dense)


def test_what_is_under_no_mask_stays_as_it_is():
    drawn = draw_mosaic(GREY, tiles(8))
    assert (drawn[24:] == 120).all()
    assert (drawn[:20] != 120).any(axis=2).all()


def test_fills_are_translucent_and_outlines_are_not():
    dense = np.zeros((1, 120, 160), bool)
    dense[0, 30:90, 40:120] = True
    masks = Masks.from_dense(dense)
    shade = mosaic_shades(GREY, masks)[0].astype(float)
    drawn = draw_mosaic(GREY, masks, opacity=0.4).astype(float)
    np.testing.assert_allclose(drawn[60, 80], 120 + 0.4 * (shade - 120), atol=2)
    outline, fill = np.abs(drawn[60, 40] - shade).sum(), np.abs(drawn[60, 80] - shade).sum()
    assert outline < 0.6 * fill


def test_small_objects_lie_on_large_ones_in_any_order():
    dense = np.zeros((2, 120, 160), bool)
    dense[0, 10:110, 10:150], dense[1, 50:70, 70:90] = True, True
    forth, back = Masks.from_dense(dense), Masks.from_dense(dense[::-1].copy())
    np.testing.assert_array_equal(draw_mosaic(GREY, forth), draw_mosaic(GREY, back))
    shade = mosaic_shades(GREY, forth)[1].astype(float)
    np.testing.assert_allclose(draw_mosaic(GREY, forth)[60, 80], 120 + 0.45 * (shade - 120), atol=2)


def test_neighbours_have_unlike_colours():
    masks = tiles(48)
    colours = mosaic_shades(GREY, masks).astype(int).reshape(6, 8, 3)
    for one, other in ((colours[:, 1:], colours[:, :-1]), (colours[1:], colours[:-1])):
        assert np.abs(one - other).sum(axis=2).min() > 100
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 8


def test_colours_are_unlike_the_photo():
    masks = tiles(1)
    usual = mosaic_shades(GREY, masks)[0]
    same = Image(np.broadcast_to(usual, GREY.pixels.shape).copy())
    other = mosaic_shades(same, masks)[0]
    assert np.abs(other.astype(int) - usual).sum() > 150


def test_several_masks_of_one_object_are_drawn_as_the_best():
    dense = np.zeros((2, 120, 160), bool)
    dense[0, 10:60, 10:60], dense[1, 10:100, 10:150] = True, True
    several = Masks.from_dense(dense, scores=[0.9, 0.5], ids=[4, 4])
    np.testing.assert_array_equal(draw_mosaic(GREY, several), draw_mosaic(GREY, several[:1]))


@given(results())
def test_any_result_is_drawn(masks):
    image = Image(np.full((*masks.size, 3), 120, np.uint8))
    drawn = draw_mosaic(image, masks)
    assert drawn.shape == image.pixels.shape
    np.testing.assert_array_equal(drawn, draw_mosaic(image, masks.compact()))


def test_the_time_goes_by_the_pixels_and_not_by_the_masks():
    dense = np.zeros((1, 1500, 2000), bool)
    dense[0, 700:720, 900:930] = True
    one = Masks.from_rles(rle.encode(dense), (1500, 2000))
    many = Masks.from_rles(one.rles * 400, (1500, 2000))
    image = Image(np.full((1500, 2000, 3), 120, np.uint8))
    seconds = []
    for masks in (one, many):
        started = time.process_time()
        draw_mosaic(image, masks)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 4 * seconds[0] + 0.3
