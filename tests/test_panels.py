"""The four panels: where each lies, whose candidates are shown, and a figure of bounded size for any image."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from anymask.data.panels import _LINE, _MARGIN, _PAPER, _TOP, _Figure, draw_panels
from anymask.types import Image, Masks
from pictures import results

RED, GREY = (230, 40, 40), (128, 128, 128)


def one_square(size=(200, 300)) -> tuple[Image, Masks]:
    """A red square in the upper left quarter of a grey picture."""
    h, w = size
    dense = np.zeros((1, h, w), bool)
    dense[0, h // 10 : h // 2, w // 10 : w // 2] = True
    pixels = np.full((h, w, 3), GREY, np.uint8)
    pixels[dense[0]] = RED
    return Image(pixels, "square"), Masks.from_dense(dense, scores=[0.8], labels=["square"])


def at(figure: Image, size: tuple[int, int], column: int, x: float, y: float) -> list[int]:
    """The pixel of a panel at a share of its width and height."""
    place = _Figure.of(size)
    w, h = place.panel
    return figure.pixels[_TOP + int(y * h), place.left(column) + int(x * w)].tolist()


def test_image_masks_and_overlay_lie_side_by_side():
    image, masks = one_square()
    figure = draw_panels(image, masks)
    assert at(figure, image.size, 0, 0.3, 0.3) == list(RED)
    assert at(figure, image.size, 0, 0.8, 0.8) == list(GREY)
    flat = at(figure, image.size, 1, 0.3, 0.3)
    assert flat == at(figure, image.size, 1, 0.15, 0.45) != list(RED)
    assert sum(at(figure, image.size, 1, 0.8, 0.8)) < 100
    assert at(figure, image.size, 2, 0.8, 0.8) == list(GREY)
    assert at(figure, image.size, 2, 0.2, 0.4) not in (flat, list(RED))


def fourth(figure: Image, size: tuple[int, int]) -> np.ndarray:
    return figure.pixels[_TOP:, _Figure.of(size).left(3) :]


def test_the_surest_masks_stand_in_for_candidates():
    image, masks = one_square()
    three = Masks.concat([masks, replace(masks, scores=np.asarray([0.9], np.float32)), masks, masks])
    alone, several = (fourth(draw_panels(image, one), image.size) for one in (masks, three))
    cell = _Figure.of(image.size).cell
    filled = [[(part[y + cell // 2, cell // 2] != _PAPER).any() for y in range(0, 3 * (cell + 20), cell + 20)]
              for part in (alone, several)]  # fmt: skip
    assert filled == [[True, False, False], [True, True, True]]


def test_candidates_of_the_result_are_shown_in_their_order_with_a_bar_for_each_measure():
    image, masks = one_square()
    other = replace(masks, dense=~masks.dense, scores=np.asarray([0.1], np.float32))
    considered = Masks.concat([other, masks])
    plain = draw_panels(image, replace(masks, candidates=considered))
    measured = replace(
        considered, measures={"text": np.ones(2, np.float32), "size": np.asarray([0.5, -1.0], np.float32)}
    )
    barred = draw_panels(image, replace(masks, candidates=measured))
    cell = _Figure.of(image.size).cell
    assert fourth(plain, image.size)[cell // 2, cell // 2].tolist() != list(RED)
    assert fourth(plain, image.size)[cell + 20 + cell // 2, cell // 2].tolist() == list(RED)
    grey_lines = [(fourth(one, image.size) == _LINE).all(axis=2).sum() for one in (plain, barred)]
    assert grey_lines[0] == 0 < grey_lines[1]


@pytest.mark.parametrize("size", [(1, 1), (6, 8), (30, 900), (900, 30), (3000, 2000)])
def test_a_figure_of_any_image_is_small_enough_to_look_at(size):
    image, masks = one_square(size)
    figure = draw_panels(image, masks)
    assert figure.size[1] <= 2400
    assert figure.size[0] <= 700
    assert (figure.pixels[:, :_MARGIN] == _PAPER).all()


def test_a_mask_of_one_pixel_is_still_seen_in_a_large_image():
    image, masks = one_square((1600, 2400))
    dense = np.zeros((1, 1600, 2400), bool)
    dense[0, 800, 1200] = True
    figures = [draw_panels(image, one).pixels for one in (masks[:0], Masks.from_dense(dense))]
    left = _Figure.of(image.size).left(1)
    middle = [figure[_TOP:, left : left + 560] for figure in figures]
    assert not (middle[0] == middle[1]).all()


@settings(max_examples=20)
@given(results())
def test_any_result_is_drawn(masks):
    assert draw_panels(Image(np.full((*masks.size, 3), 90, np.uint8)), masks).name == "image"


def test_masks_of_another_size_are_refused():
    image, _ = one_square()
    with pytest.raises(ValueError, match=r"masks must have the size of the image, \(200, 300\) \(h, w\), got \(5, 5\)"):
        draw_panels(image, Masks.empty((5, 5)))
