import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from anymask.data.polygons import from_polygons, polygon_of, polygons_of
from anymask.ops import rle
from pictures import dense_masks


def drawn(*rows: str) -> np.ndarray:
    return np.asarray([[letter == "#" for letter in row] for row in rows])


@given(dense_masks(st.just(1)))
def test_polygons_give_back_exactly_the_mask(masks):
    mask, packed = masks[0], rle.encode(masks)[0]
    assert from_polygons(polygons_of(mask), mask.shape) == packed
    whole = polygon_of(mask)
    assert from_polygons([whole] if len(whole) else [], mask.shape) == packed


@given(dense_masks(st.just(1)))
def test_there_is_a_polygon_for_each_part(masks):
    parts = cv2.connectedComponents(masks[0].astype(np.uint8), connectivity=4)[0] - 1
    polygons = polygons_of(masks[0])
    assert len(polygons) == parts
    for polygon in polygons:
        one = rle.decode([from_polygons([polygon], masks[0].shape)], masks[0].shape)[0]
        assert cv2.connectedComponents(one.astype(np.uint8), connectivity=4)[0] == 2
        assert np.any(np.diff(polygon, axis=0) != 0, axis=1).all()


def test_a_rectangle_has_four_corners():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    (polygon,) = polygons_of(mask)
    assert sorted(map(tuple, polygon.tolist())) == [(2, 1), (2, 4), (6, 1), (6, 4)]


@pytest.mark.parametrize(
    ("mask", "parts"),
    [
        (drawn("#####", "#...#", "#.#.#", "#...#", "#####"), 2),
        (drawn("#.", ".#"), 2),
        (drawn(".#", "#."), 2),
        (drawn("###.", "#.##", "##.#", ".###"), 1),
        (drawn("####", "#.##", "##.#", "####"), 1),
        (drawn("#"), 1),
        (drawn("..", ".."), 0),
    ],
)
def test_holes_islands_and_diagonals(mask, parts):
    polygons = polygons_of(mask)
    assert len(polygons) == parts
    assert from_polygons(polygons, mask.shape) == rle.encode(mask[None])[0]


def test_a_hole_stays_open_for_other_rasterisers_too():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50], mask[25:35, 25:35] = True, False
    canvas = np.zeros((60, 60), np.uint8)
    cv2.fillPoly(canvas, [np.round(polygons_of(mask)[0]).astype(np.int32)], 1)
    assert not canvas[27:33, 27:33].any()
    assert canvas[12:48, 12:23].all()


def test_large_ragged_masks_are_exact_and_quick():
    mask = cv2.GaussianBlur(np.random.default_rng(0).random((600, 800)), (0, 0), 3) > 0.5
    assert from_polygons([polygon_of(mask)], mask.shape) == rle.encode(mask[None])[0]


@given(st.lists(st.tuples(st.floats(-5, 15), st.floats(-5, 15)), min_size=3, max_size=8))
def test_rasterising_is_pycocotools_own(points):
    polygon = np.asarray(points)
    (expected,) = coco_mask.frPyObjects([polygon.reshape(-1).tolist()], 8, 9)
    assert from_polygons([polygon], (8, 9))["counts"] == expected["counts"].decode()


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        (np.zeros((2, 2)), r"at least 3 points x y, got an array \(2, 2\)"),
        (np.zeros((3, 3)), r"got an array \(3, 3\)"),
        (np.full((3, 2), np.nan), "finite coordinates"),
        (np.full((3, 2), 1e9), "below a million"),
    ],
)
def test_broken_polygons_are_refused(polygon, message):
    with pytest.raises(ValueError, match=message):
        from_polygons([polygon], (4, 4))
