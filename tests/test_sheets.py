"""The contact sheet: cells by area, one for each mask that is not empty, and nothing is left out unsaid."""

import numpy as np
import pytest
from hypothesis import given

from anymask.data import sheets
from anymask.data.sheets import MOST_CELLS, draw_sheet
from anymask.ops import rle
from anymask.types import Image, Masks
from pictures import results

RED, BLUE = (230, 40, 40), (40, 60, 230)


def two_objects() -> tuple[Image, Masks]:
    """A small red square and a large blue one, on grey; the small one comes first."""
    pixels = np.full((200, 300, 3), 128, np.uint8)
    dense = np.zeros((2, 200, 300), bool)
    dense[0, 20:60, 20:60], dense[1, 80:180, 150:280] = True, True
    pixels[dense[0]], pixels[dense[1]] = RED, BLUE
    return Image(pixels, "two"), Masks.from_dense(dense, scores=[0.9, 0.8])


def cell(sheet: Image, i: int, columns: int = 3) -> np.ndarray:
    row, column = divmod(i, columns)
    y = sheets._MARGIN + sheets._HEADER + row * (sheets._SIDE + sheets._CAPTION + sheets._GAP)
    x = sheets._MARGIN + column * (sheets._SIDE + sheets._GAP)
    return sheet.pixels[y : y + sheets._SIDE, x : x + sheets._SIDE]


def test_the_largest_comes_first_in_its_own_colours():
    sheet = draw_sheet(*two_objects())
    middle = sheets._SIDE // 2
    assert cell(sheet, 0)[middle, middle].tolist() == list(BLUE)
    assert cell(sheet, 1)[middle, middle].tolist() == list(RED)
    assert (cell(sheet, 2) == sheets._PAPER).all()


def test_surroundings_are_faded():
    corner = cell(draw_sheet(*two_objects()), 0)[3, 3].astype(int)
    assert (corner > 190).all()


def test_an_object_at_the_edge_fills_its_cell():
    image, _ = two_objects()
    dense = np.zeros((1, 200, 300), bool)
    dense[0, :50, :50] = True
    shown = cell(draw_sheet(image, Masks.from_dense(dense)), 0)
    assert not (shown == sheets._CELL).all(axis=2).any()


@pytest.mark.parametrize(("n", "columns", "rows"), [(0, 3, 0), (1, 3, 1), (7, 3, 3), (300, 21, 15), (400, 24, 17)])
def test_any_number_of_masks_lies_in_a_neat_grid(n, columns, rows):
    dense = np.zeros((1, 20, 30), bool)
    dense[0, 5:15, 5:15] = True
    masks = Masks.from_rles(rle.encode(dense) * n, (20, 30))
    sheet = draw_sheet(Image(np.full((20, 30, 3), 90, np.uint8)), masks)
    width = 2 * sheets._MARGIN + columns * (sheets._SIDE + sheets._GAP) - sheets._GAP
    assert sheet.size[1] == width
    step = sheets._SIDE + sheets._CAPTION + sheets._GAP
    assert sheet.size[0] == 2 * sheets._MARGIN + sheets._HEADER + max(rows * step - sheets._GAP, 0)


def test_what_is_not_shown_is_said(monkeypatch):
    said = []
    monkeypatch.setattr(sheets, "_write_header", lambda _, name, n, shown: said.append((name, n, shown)))
    dense = np.zeros((1, 20, 30), bool)
    dense[0, 5:15, 5:15] = True
    draw_sheet(Image(np.full((20, 30, 3), 90, np.uint8), "many"), Masks.from_rles(rle.encode(dense) * 405, (20, 30)))
    assert said == [("many", 405, MOST_CELLS)]
    assert sheets._summary(405, 400) == "405 masks, largest first: id, score, pixels; the 5 smallest are not shown"
    assert sheets._summary(1, 1) == "1 mask: id, score, pixels"
    assert sheets._summary(0, 0) == "no masks"


def test_long_names_are_cut():
    image, masks = two_objects()
    labelled = draw_sheet(image, Masks.from_dense(masks.masks, labels=["cat", "a very long name of something " * 3]))
    right = sheets._MARGIN + sheets._SIDE
    gap = labelled.pixels[sheets._MARGIN + sheets._HEADER :, right + 1 : right + sheets._GAP]
    assert (gap == sheets._PAPER).all()
    assert (labelled.pixels != draw_sheet(image, masks).pixels).any()
    named = draw_sheet(Image(image.pixels, "photo-" * 30), masks)
    assert (named.pixels[:, -sheets._MARGIN :] == sheets._PAPER).all()


@given(results())
def test_any_result_has_a_sheet(masks):
    image = Image(np.full((*masks.size, 3), 120, np.uint8))
    sheet = draw_sheet(image, masks)
    np.testing.assert_array_equal(sheet.pixels, draw_sheet(image, masks.compact()).pixels)


@pytest.mark.wrong_types
def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match=r"masks must have the size of the image, \(200, 300\) \(h, w\), got \(2, 2\)"):
        draw_sheet(two_objects()[0], Masks.empty((2, 2)))
