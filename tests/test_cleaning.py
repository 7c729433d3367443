"""Clean-up: specks and pinholes go, what belongs to the object stays, however thin, and no mask becomes empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anymask.ops import metrics, rle
from anymask.ops.cleaning import CLEANUPS, clean, clean_classic, clean_rles


def animal(size=(200, 300)) -> np.ndarray:
    """A body with two legs, two pixels thick, and a tail of one."""
    mask = np.zeros(size, bool)
    mask[40:100, 80:200] = True
    mask[100:170, 90:92] = mask[100:170, 185:187] = True
    mask[50, 200:240] = True
    return mask


def disk(size, x, y, radius) -> np.ndarray:
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def test_legs_and_tail_stay_where_a_fixed_kernel_deletes_them():
    mask = animal()
    cleaned, classic = clean(mask), clean_classic(mask)
    for part in (np.s_[104:170, 90:92], np.s_[104:170, 185:187], np.s_[50, 204:240]):
        assert cleaned[part].all()
        assert not classic[part].any()


def test_pinholes_and_specks_go_and_real_holes_and_parts_stay():
    mask = disk((200, 300), 100, 100, 60) & ~disk((200, 300), 80, 90, 1) & ~disk((200, 300), 120, 110, 20)
    mask |= disk((200, 300), 250, 100, 25)  # the same object, behind a pole
    mask[10:12, 10:12] = True
    cleaned = clean(mask)
    assert cleaned[90, 80]
    assert not cleaned[110, 120]
    assert cleaned[100, 250]
    assert not cleaned[:20, :20].any()
    assert metrics.iou(cleaned[None], mask[None])[0] > 0.98


def test_a_rough_edge_becomes_smooth():
    rng = np.random.default_rng(0)
    true = disk((400, 400), 200, 200, 150)
    edge = disk((400, 400), 200, 200, 152) & ~disk((400, 400), 200, 200, 148)
    rough = true ^ (edge & (rng.random(true.shape) < 0.3))
    assert metrics.iou(clean(rough)[None], true[None])[0] > metrics.iou(rough[None], true[None])[0]


def test_the_kernel_follows_the_object():
    small, large = disk((40, 40), 20, 20, 4), disk((400, 400), 200, 200, 40)
    assert metrics.iou(clean(small)[None], small[None])[0] > 0.9
    assert metrics.iou(clean(large)[None], large[None])[0] > 0.9
    bump = large | disk((400, 400), 240, 200, 1)
    assert clean(bump).sum() <= bump.sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 40)])
def test_empty_full_and_single_pixels_are_left_alone(shape):
    one = np.zeros(shape, bool)
    assert not clean(one).any()
    one[shape[0] // 2, shape[1] // 2] = True
    assert (clean(one) == one).all()
    assert clean(np.ones(shape, bool)).all()


@given(arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))))
def test_no_mask_becomes_empty_and_the_mask_given_is_not_touched(mask):
    before = mask.copy()
    cleaned = clean(mask)
    assert (mask == before).all()
    assert cleaned.shape == mask.shape
    assert cleaned.dtype == bool
    assert cleaned.any() == mask.any()


def test_where_a_mask_leaves_the_picture_it_is_no_corner():
    mask = np.zeros((120, 160), bool)
    mask[:, 100:] = True
    assert (clean(mask) == mask).all()
    mask[60:70, 155:] = False  # a bay at the picture's edge is no hole
    assert not clean(mask)[62:68, 157:].any()


@pytest.mark.parametrize("name", CLEANUPS)
def test_masks_held_as_runs_are_cleaned_alike(name):
    rng = np.random.default_rng(1)
    dense = np.stack(
        [animal(), disk((200, 300), 299, 0, 40) & (rng.random((200, 300)) < 0.99), np.zeros((200, 300), bool)]
    )
    expected = np.stack([CLEANUPS[name](mask) for mask in dense])
    found = clean_rles(rle.encode(dense), CLEANUPS[name])
    assert found == rle.encode(expected)
    assert clean_rles([], CLEANUPS[name]) == ()
