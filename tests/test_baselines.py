import numpy as np
import pytest

from anymask.evaluation.baselines import BASELINES, grabcut, whole_box
from anymask.types import Image


def picture_of_a_disk() -> tuple[Image, np.ndarray]:
    """A red disk on blue, with noise in both."""
    y, x = np.mgrid[:60, :80] + 0.5
    disk = (x - 42) ** 2 + (y - 31) ** 2 < 15**2
    colours = np.where(disk[..., None], [200, 40, 40], [40, 60, 200])
    noise = np.random.default_rng(0).normal(0, 6, colours.shape)
    return Image(np.clip(colours + noise, 0, 255).astype(np.uint8)), disk


def test_whole_box_takes_the_pixels_whose_centre_is_inside():
    image = Image(np.zeros((6, 9, 3), np.uint8))
    boxes = np.asarray([[2, 1, 5, 4], [0.4, 0.6, 2.5, 9], [-3, -3, 99, 99]], np.float32)
    expected = np.zeros((3, 6, 9), bool)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        for y in range(6):
            for x in range(9):
                expected[i, y, x] = x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
    np.testing.assert_array_equal(whole_box(image, boxes), expected)


def test_grabcut_finds_a_disk_in_its_box_every_time_the_same():
    image, disk = picture_of_a_disk()
    box = np.asarray([[24, 13, 60, 49]], np.float32)
    found = grabcut(image, box)
    overlap = (found[0] & disk).sum() / (found[0] | disk).sum()
    assert overlap > 0.95
    assert overlap > (whole_box(image, box)[0] & disk).sum() / (whole_box(image, box)[0] | disk).sum()
    np.testing.assert_array_equal(found, grabcut(image, box))


def test_grabcut_stays_in_its_box():
    image, _ = picture_of_a_disk()
    boxes = np.asarray([[30, 20, 44, 33], [40.0, 30.0, 41.0, 31.0]], np.float32)
    assert not (grabcut(image, boxes) & ~whole_box(image, boxes)).any()


def test_a_box_around_the_whole_image_leaves_grabcut_nothing_to_cut():
    image, _ = picture_of_a_disk()
    assert grabcut(image, np.asarray([[0, 0, 80, 60]], np.float32)).all()


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_of_no_box_give_no_mask(name):
    image, _ = picture_of_a_disk()
    assert BASELINES[name](image, np.zeros((0, 4), np.float32)).shape == (0, 60, 80)
