import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymask.data.drawing import draw
from anymask.data.mosaics import draw_mosaic
from anymask.types import Image, Masks, Prompt
from pictures import results

GREY = Image(np.full((200, 300, 3), 120, np.uint8), "grey")


def square(y0: int, y1: int, x0: int, x1: int, size: tuple[int, int] = (200, 300)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def changed(image: Image, before: Image = GREY) -> np.ndarray:
    return (image.pixels != before.pixels).any(axis=2)


def test_only_the_mask_and_its_rim_change():
    mask = square(60, 140, 90, 210)
    drawn = draw(GREY, Masks.from_dense(mask[None]), labels=False)
    assert drawn.name == "grey"
    assert changed(drawn)[mask].all()
    assert not changed(drawn)[~square(55, 145, 85, 215)].any()
    inside = drawn.pixels[80:120, 110:190].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 1
    assert (GREY.pixels == 120).all()


def test_opacity_goes_from_outline_to_solid():
    masks = Masks.from_dense(square(60, 140, 90, 210)[None])
    centre = [
        draw(GREY, masks, labels=False, opacity=opacity).pixels[100, 150].astype(int) for opacity in (0.0, 0.5, 1.0)
    ]
    assert centre[0].tolist() == [120] * 3
    np.testing.assert_allclose(centre[1], (centre[0] + centre[2]) / 2, atol=1)
    outline = draw(GREY, masks, labels=False, opacity=0.0).pixels[100, 90]
    np.testing.assert_allclose(outline, centre[2], atol=30)


def test_outlines_are_smooth():
    y, x = np.mgrid[:200, :300]
    disk = (x - 150) ** 2 + (y - 100) ** 2 < 60**2
    drawn = draw(GREY, Masks.from_dense(disk[None]), labels=False, opacity=1.0)
    assert len(np.unique(drawn.pixels.reshape(-1, 3), axis=0)) > 15


def test_colours_go_by_id():
    masks = Masks.from_dense(np.stack([square(10, 90, 10, 90), square(110, 190, 110, 190)]), ids=[3, 8])
    both = draw(GREY, masks, labels=False).pixels
    assert (both[50, 50] != both[150, 150]).any()
    np.testing.assert_array_equal(draw(GREY, masks[[1]], labels=False).pixels[150, 150], both[150, 150])
    far = Masks.from_dense(square(10, 90, 10, 90)[None], ids=[10**15])
    assert changed(draw(GREY, far)).any()


def test_small_objects_lie_on_large_ones():
    large, small = square(20, 180, 20, 280), square(80, 120, 120, 180)
    forth = draw(GREY, Masks.from_dense(np.stack([large, small]), ids=[1, 2]), labels=False)
    back = draw(GREY, Masks.from_dense(np.stack([small, large]), ids=[2, 1]), labels=False)
    np.testing.assert_array_equal(forth.pixels, back.pixels)
    assert (forth.pixels[100, 150] != forth.pixels[40, 40]).any()


def test_chips_say_label_and_score_and_do_not_cover_each_other():
    masks = Masks.from_dense(square(100, 150, 100, 200)[None], labels=["cat"], scores=[0.9])
    plain, chip = draw(GREY, masks, labels=False), draw(GREY, masks)
    where = np.argwhere(changed(chip, plain))
    assert 60 < where[:, 0].min() < where[:, 0].max() < 100
    longer = draw(GREY, Masks.from_dense(masks.masks, labels=["cat " * 30], scores=[0.9]))
    assert changed(longer, plain).sum() > changed(chip, plain).sum()
    many = Masks.from_dense(np.repeat(masks.masks, 30, axis=0), labels=["cat"] * 30)
    assert changed(draw(GREY, many), draw(GREY, many, labels=False)).mean() < 0.7


def test_masks_of_everything_mode_are_a_mosaic_unless_chips_are_asked_for():
    dense = np.stack([square(20, 180, 20, 280), square(80, 120, 120, 180)])
    masks = Masks.from_dense(dense, point_coords=np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(draw(GREY, masks, opacity=0.3).pixels, draw_mosaic(GREY, masks, 0.3))
    assert (draw(GREY, masks, labels=True).pixels != draw(GREY, masks, labels=False).pixels).any()
    assert (draw(GREY, masks, labels=False).pixels != draw_mosaic(GREY, masks)).any()
    on_top = draw(GREY, masks, prompts=[Prompt.point(60.0, 50.0)])
    assert changed(on_top, draw(GREY, masks)).any()


def test_a_chip_larger_than_the_picture_is_left_out():
    tiny = Image(np.full((8, 8, 3), 120, np.uint8))
    masks = Masks.from_dense(square(2, 6, 2, 6, (8, 8))[None], labels=["cat"])
    np.testing.assert_array_equal(draw(tiny, masks).pixels, draw(tiny, masks, labels=False).pixels)


def test_points_are_green_or_red():
    none = Masks.empty(GREY.size)
    drawn = draw(GREY, none, prompts=[Prompt.points([(50.0, 60.0), (200.0, 100.0)], [1, 0])]).pixels.astype(int)
    for (x, y), strong, weak in (((50, 60), 1, 0), ((200, 100), 0, 1)):
        around = drawn[y - 8 : y + 9, x - 8 : x + 9].reshape(-1, 3)
        assert (around[:, strong] - around[:, weak]).max() > 80
        assert (around == 255).all(axis=1).any()
    where = np.argwhere(changed(draw(GREY, none, prompts=[Prompt.point(50.0, 60.0)])))
    np.testing.assert_allclose(where.mean(axis=0), [60, 50], atol=0.6)


def test_a_box_is_dashed_just_inside():
    drawn = draw(GREY, Masks.empty(GREY.size), prompts=[Prompt.box(40.0, 30.0, 260.0, 170.0)])
    where = np.argwhere(changed(drawn))
    assert where.min(axis=0).tolist() == [30, 40]
    assert where.max(axis=0).tolist() == [169, 259]
    assert not changed(drawn)[35:165, 45:255].any()
    top = drawn.pixels[30, 40:260, 0]
    assert {int(value) for value in top} == {20, 255}


def test_sizes_follow_the_picture():
    big = Image(np.full((1000, 1500, 3), 120, np.uint8))
    masks = Masks.from_dense(square(300, 700, 450, 1050, (1000, 1500))[None], labels=["cat"])
    small = Masks.from_dense(square(60, 140, 90, 210)[None], labels=["cat"])
    grown = changed(draw(big, masks, labels=False), big).sum() - masks.areas[0]
    rim = changed(draw(GREY, small, labels=False)).sum() - small.areas[0]
    assert grown > 6 * rim


@given(results(), st.booleans())
def test_any_result_is_drawn(masks, labels):
    image = Image(np.full((*masks.size, 3), 120, np.uint8))
    prompts = [
        Prompt.box(-5.0, -5.0, 30.0, 3.0),
        Prompt.box(50.0, 50.0, 60.0, 60.0),
        Prompt.points([(-3.0, 2.0), (100.0, 100.0)], [1, 0]),
    ]
    drawn = draw(image, masks, labels=labels, prompts=prompts)
    assert drawn.size == image.size
    assert draw(image, masks.compact(), labels=labels, prompts=prompts).pixels.tolist() == drawn.pixels.tolist()


@pytest.mark.wrong_types
def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match=r"the size of the image, \(200, 300\) \(h, w\), got \(2, 2\)"):
        draw(GREY, Masks.empty((2, 2)))
    with pytest.raises(ValueError, match="opacity must be from 0 to 1, got 2"):
        draw(GREY, Masks.empty(GREY.size), opacity=2.0)
