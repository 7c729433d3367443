"""Grids, crops and cleaning are those of segment-anything, on sizes that do not divide."""

import numpy as np
import pytest

from anymask.ops import boxes, cleaning, grids

amg = pytest.importorskip("segment_anything.utils.amg", reason="needs segment-anything-py")


@pytest.mark.parametrize("side", [1, 2, 7, 32])
def test_point_grids_are_the_references(side):
    np.testing.assert_allclose(grids.point_grid(side), amg.build_point_grid(side))


@pytest.mark.parametrize(("side", "layers", "factor"), [(32, 2, 2), (9, 3, 2), (16, 1, 1)])
def test_grids_of_layers_are_the_references(side, layers, factor):
    for ours, theirs in zip(
        grids.layer_grids(side, layers, factor), amg.build_all_layer_point_grids(side, layers, factor), strict=True
    ):
        np.testing.assert_allclose(ours, theirs)


def test_a_layer_has_at_least_one_point():
    assert [len(grid) for grid in grids.layer_grids(5, 2, 3)] == [25, 1, 1]


@pytest.mark.parametrize("size", [(480, 640), (101, 77), (33, 1001), (3000, 4000)])
@pytest.mark.parametrize(("layers", "ratio"), [(0, 0.3), (1, 512 / 1500), (3, 0.1), (2, 0.0)])
def test_crops_are_the_references(size, layers, ratio):
    boxes_of, layers_of = amg.generate_crop_boxes(size, layers, ratio)
    ours = grids.crop_boxes(size, layers, ratio)
    theirs = [(layer, (x0, y0, x1, y1)) for layer, (x0, y0, x1, y1) in zip(layers_of, boxes_of, strict=True)]
    assert ours == [one for one in theirs if one[1][0] < one[1][2] and one[1][1] < one[1][3]]  # theirs may be empty


@pytest.mark.parametrize("area", [1, 3, 9, 40, 10_000])
def test_cleaning_is_the_references(area):
    rng = np.random.default_rng(area)
    for share in (0.05, 0.3, 0.5, 0.8, 0.99):
        mask = rng.random((31, 46)) < share
        filled, holes = amg.remove_small_regions(mask, area, "holes")
        cleaned, islands = amg.remove_small_regions(filled, area, "islands")
        ours, changed = cleaning.without_small_regions(mask, area)
        np.testing.assert_array_equal(ours, cleaned)
        assert changed == (holes or islands)


def test_an_empty_mask_needs_no_cleaning():
    mask, changed = cleaning.without_small_regions(np.zeros((8, 9), bool), 5)
    assert not mask.any()
    assert not changed


def test_boxes_near_the_edge_of_a_crop_are_the_references():
    import torch

    rng = np.random.default_rng(0)
    crop, size = (100, 0, 400, 300), (300, 900)
    inside = np.sort(rng.integers(0, 300, (200, 2, 2)), axis=1).reshape(200, 4).astype(np.float32)
    theirs = amg.is_box_near_crop_edge(torch.from_numpy(inside), list(crop), [0, 0, 900, 300])
    ours = boxes.near_crop_edge(inside + np.asarray((100, 0, 100, 0), np.float32), crop, size)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert 0 < ours.sum() < 200


def test_distinct_boxes_by_hand():
    some = np.asarray([[0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 9]], np.float32)
    assert boxes.distinct(some, np.asarray([0.5, 0.9, 0.7, 0.9]), 0.7).tolist() == [1, 2]
    assert boxes.distinct(some, np.ones(4), 0.95).tolist() == [0, 1, 2, 3]
    assert boxes.distinct(some, np.ones(4), 0.85).tolist() == [0, 2]  # of equal scores the first goes first
    assert boxes.distinct(some[:0], np.ones(0), 0.7).tolist() == []


def test_no_crop_of_a_tiny_image_is_empty_or_comes_twice():
    for size in ((1, 1), (3, 5), (2, 9)):
        crops = [crop for _, crop in grids.crop_boxes(size, 3, 0.3)]
        assert all(x0 < x1 <= size[1] and y0 < y1 <= size[0] for x0, y0, x1, y1 in crops)
