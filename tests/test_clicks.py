import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anymask.ops.clicks import first_click, next_click
from pictures import sizes

masks = sizes.flatmap(lambda size: hnp.arrays(bool, size))
pairs = sizes.flatmap(lambda size: st.tuples(hnp.arrays(bool, size), hnp.arrays(bool, size)))


def slow_depth(mask):
    """Of each pixel its distance to the nearest pixel that is not of the mask, or is outside the image."""
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded)
    depth = np.zeros(mask.shape)
    for y, x in np.argwhere(mask):
        depth[y, x] = np.sqrt(((outside - (y + 1, x + 1)) ** 2).sum(axis=1).min())
    return depth


def slow_regions(mask):
    """8-connected components, by flood fill."""
    left, regions = {tuple(cell) for cell in np.argwhere(mask).tolist()}, []
    while left:
        stack, region = [left.pop()], set()
        while stack:
            y, x = stack.pop()
            region.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            stack.extend(around)
        regions.append(region)
    return regions


def as_mask(region, shape):
    mask = np.zeros(shape, bool)
    for cell in region:
        mask[cell] = True
    return mask


@given(masks.filter(lambda mask: bool(mask.any())))
def test_first_click_is_a_deepest_pixel(mask):
    x, y = first_click(mask)
    depth = slow_depth(mask)
    assert (x % 1, y % 1) == (0.5, 0.5)
    assert mask[int(y), int(x)]
    assert depth[int(y), int(x)] == pytest.approx(depth.max(), abs=1e-4)


@given(pairs)
def test_next_click_is_deep_inside_a_largest_error_region(pair):
    predicted, target = pair
    click = next_click(predicted, target)
    if click is None:
        np.testing.assert_array_equal(predicted, target)
        return
    x, y, label = click
    cell = (int(y), int(x))
    missed, overrun = slow_regions(target & ~predicted), slow_regions(predicted & ~target)
    region = next(region for region in (missed if label == 1 else overrun) if cell in region)
    depth = slow_depth(as_mask(region, target.shape))
    assert len(region) == max(map(len, missed + overrun))
    assert depth[cell] == pytest.approx(depth.max(), abs=1e-4)


def test_clicks_on_a_known_picture():
    target = np.zeros((12, 20), bool)
    target[1:8, 1:8] = True
    assert first_click(target) == (4.5, 4.5)
    predicted = target.copy()
    predicted[:, 10:15] = True
    predicted[3, 3] = False
    x, _, label = next_click(predicted, target)
    assert (x, label) == (12.5, 0)
    assert next_click(target & False, target) == (4.5, 4.5, 1)
    assert next_click(target, target) is None
