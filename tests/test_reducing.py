"""A photo and its masks at another size: by the share of each pixel, no mask lost, in little memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymask.data.reducing import check_picture_side, fitted, resized_image, resized_masks, resized_prompt
from anymask.ops import rle
from anymask.types import Image, Masks, Prompt
from pictures import dense_masks, sizes


def shares(before: int, after: int) -> np.ndarray:
    """How much of each old pixel lies in each new one, along one axis."""
    edges = np.arange(after + 1) * before / after
    old = np.arange(before)
    return np.clip(np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old), 0, None)


@given(dense_masks(st.integers(1, 1)), sizes)
def test_a_mask_at_another_size_covers_half_of_its_pixels(masks, size):
    (h, w), mask = masks.shape[1:], masks[0]
    cover = shares(h, size[0]) @ mask @ shares(w, size[1]).T * size[0] * size[1] / (h * w)
    expected, sure = cover > 0.5, np.abs(cover - 0.5) > 1e-6  # a tie may go either way
    if not (cover > 0.5 - 1e-6).any():
        expected, sure = cover > 1e-6, cover > -1
    resized = rle.decode([rle.resized(rle.encode(masks)[0], size)], size)[0]
    np.testing.assert_array_equal(resized[sure], expected[sure])
    assert resized.any() == mask.any()


def test_scores_labels_ids_and_clicks_stay_with_the_masks():
    masks = Masks.from_dense(
        np.ones((2, 40, 80), bool), scores=[0.5, 0.25], labels=["a", ""], ids=[3, 9],
        point_coords=np.asarray([[8, 4], [80, 40]], np.float32),
    )  # fmt: skip
    small = resized_masks(masks, (10, 20))
    assert (small.size, small.labels, small.ids.tolist()) == ((10, 20), ("a", ""), [3, 9])
    assert small.scores.tolist() == [0.5, 0.25]
    assert small.point_coords.tolist() == [[2, 1], [20, 10]]
    assert resized_masks(masks, (40, 80)) is masks


def test_prompts_move_with_the_image():
    prompt = resized_prompt(Prompt.point(40, 20) + Prompt.box(8, 4, 80, 40), (40, 80), (10, 20))
    assert prompt.point_coords.tolist() == [[10, 5]]
    assert prompt.box_coords == (2, 1, 20, 10)
    assert resized_prompt(Prompt.point(40, 20), (40, 80), (10, 20)).box_coords is None


def test_a_picture_is_reduced_in_proportion_and_never_enlarged():
    assert fitted((3000, 4000), 1000) == (750, 1000)
    assert fitted((2, 4000), 64) == (1, 64)
    assert fitted((30, 40), 1000) == fitted((30, 40), None) == (30, 40)
    stripes = Image(np.tile(np.asarray([0, 200], np.uint8)[:, None, None], (10, 8, 3)), "stripes")
    assert resized_image(stripes, (20, 8)) is stripes
    small = resized_image(stripes, (10, 4))
    assert (small.name, small.size) == ("stripes", (10, 4))
    assert (small.pixels == 100).all()


def test_a_large_mask_is_reduced_without_making_its_pixels():
    ring = rle.from_run_lengths([20_000, 160_000_000, 39_980_000], (10_000, 20_000))
    tracemalloc.start()
    small = rle.resized(ring, (100, 200))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(int(rle.areas([small])[0]) - 16_000) <= 100
    assert most < 100e6


@pytest.mark.parametrize("longest", [63, 0, -5])
def test_a_side_too_short_for_a_picture_is_refused(longest):
    with pytest.raises(ValueError, match=f"the longer side of pictures must be at least 64 pixels, got {longest}"):
        check_picture_side(longest)
    check_picture_side(64)
    check_picture_side(None)
