import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anymask.ops import metrics
from pictures import dense_masks

pairs = dense_masks().flatmap(lambda first: st.tuples(st.just(first), hnp.arrays(bool, first.shape)))


def slow_iou(predicted, target):
    both = sum(bool(p) and bool(t) for p, t in zip(predicted.flat, target.flat, strict=True))
    either = sum(bool(p) or bool(t) for p, t in zip(predicted.flat, target.flat, strict=True))
    return both / either if either else 1.0


def slow_boundary(mask, width):
    """Pixels of the mask with a pixel that is not of it at most `width` away; outside the image nothing is of it."""
    h, w = mask.shape
    found = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        around = [(y + dy, x + dx) for dy in range(-width, width + 1) for dx in range(-width, width + 1)]
        found[y, x] = any(not (0 <= v < h and 0 <= u < w and mask[v, u]) for v, u in around)
    return found


@given(pairs)
def test_iou_counts_pixels(pair):
    predicted, target = pair
    expected = [slow_iou(p, t) for p, t in zip(predicted, target, strict=True)]
    np.testing.assert_allclose(metrics.iou(predicted, target), expected)


@given(pairs)
def test_precision_and_recall_count_pixels(pair):
    predicted, target = pair
    precision, recall = metrics.precision_recall(predicted, target)
    for p, t, one, other in zip(predicted, target, precision, recall, strict=True):
        right = int((p & t).sum())
        assert one == pytest.approx(right / p.sum()) if p.any() else math.isnan(one)
        assert other == pytest.approx(right / t.sum()) if t.any() else math.isnan(other)


@given(pairs, st.sampled_from([0.02, 0.1, 0.25]))
def test_boundary_iou_is_the_iou_of_the_slow_boundaries(pair, ratio):
    predicted, target = pair
    width = max(1, round(ratio * math.hypot(*target.shape[1:])))
    expected = [
        slow_iou(slow_boundary(p, width), slow_boundary(t, width)) for p, t in zip(predicted, target, strict=True)
    ]
    np.testing.assert_allclose(metrics.boundary_iou(predicted, target, ratio), expected)


def test_boundary_iou_on_an_image_of_usual_size_is_that_of_the_authors_erosion():
    rng = np.random.default_rng(0)
    masks = np.stack([cv2.GaussianBlur(rng.normal(size=(120, 160)), (0, 0), 9) > 0 for _ in range(4)])
    width = round(0.02 * math.hypot(120, 160))
    assert width == 4

    def authors(mask):  # bowenc0221/boundary-iou-api, `mask_to_boundary`
        padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return mask & ~cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1].astype(bool)

    predicted, target = masks[:2], masks[2:]
    expected = [slow_iou(authors(p), authors(t)) for p, t in zip(predicted, target, strict=True)]
    np.testing.assert_allclose(metrics.boundary_iou(predicted, target), expected)
    assert (metrics.boundary_iou(predicted, target) < metrics.iou(predicted, target)).all()


@pytest.mark.wrong_types
def test_masks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"bool \(n, h, w\) of one shape, got \(1, 2, 3\) and \(2, 2, 3\)"):
        metrics.iou(np.zeros((1, 2, 3), bool), np.zeros((2, 2, 3), bool))


def slow_clicks(ious, threshold, maximum):
    for click, value in enumerate(ious[:maximum], start=1):
        if value >= threshold:
            return click
    return maximum


@given(hnp.arrays(float, st.tuples(st.integers(0, 4), st.integers(0, 6)), elements=st.floats(0, 1)), st.integers(1, 8))
def test_clicks_to_reach_walks_the_clicks(ious, maximum):
    expected = [slow_clicks(row, 0.5, maximum) for row in ious]
    assert metrics.clicks_to_reach(ious, 0.5, maximum).tolist() == expected


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.booleans()), max_size=12))
def test_roc_auc_compares_every_pair(scored):
    scores = np.asarray([score for score, _ in scored], float)
    positive = np.asarray([flag for _, flag in scored], bool)
    wins = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    expected = sum(wins) / len(wins) if wins else float("nan")
    np.testing.assert_allclose(metrics.roc_auc(scores, positive), expected)


def test_calibration_error_is_the_gap_of_each_bin_by_its_share():
    rng = np.random.default_rng(2)
    predicted, real = rng.random(200), rng.random(200)
    predicted[:2] = 0.0, 1.0
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (predicted >= low) & ((predicted < low + 0.1) | (low == 0.9))
        expected += inside.sum() / 200 * abs(predicted[inside].mean() - real[inside].mean())
    np.testing.assert_allclose(metrics.calibration_error(predicted, real), expected)
    assert metrics.calibration_error(real, real) == 0
    assert [row[1] for row in metrics.reliability(np.asarray([-0.2, 0.05, 1.3]), np.zeros(3))] == [2, 1]
    assert math.isnan(metrics.calibration_error(np.zeros(0), np.zeros(0)))


def test_bootstrap_interval_is_that_of_means_over_redrawn_images():
    rng = np.random.default_rng(3)
    per_image = [rng.random(n) for n in (1, 5, 0, 2, 9)]
    per_image[1][2] = np.nan
    held = [values[~np.isnan(values)] for values in per_image if len(values)]
    drawn = np.random.default_rng(7).integers(0, len(held), (50, len(held)))
    means = [np.concatenate([held[i] for i in row]).mean() for row in drawn]
    expected = np.percentile(means, (2.5, 97.5))
    np.testing.assert_allclose(metrics.bootstrap_interval(per_image, seed=7, draws=50), expected)


def test_bootstrap_interval_draws_images_and_not_masks():
    """Ten images of a hundred equal masks say no more than ten masks do."""
    of_masks = [np.asarray([float(i % 2)]) for i in range(10)]
    of_images = [np.full(100, float(i % 2)) for i in range(10)]
    np.testing.assert_allclose(metrics.bootstrap_interval(of_images), metrics.bootstrap_interval(of_masks))


def test_bootstrap_weights_count_images_drawn_with_replacement():
    weights = metrics.bootstrap_weights(5, seed=3, draws=400)
    assert weights.shape == (400, 5)
    assert (weights.sum(axis=1) == 5).all()
    assert set(np.unique(weights)) >= {0, 1, 2}
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.2)
    np.testing.assert_array_equal(weights, metrics.bootstrap_weights(5, seed=3, draws=400))


def test_percentile_interval_passes_over_draws_without_a_value():
    values = np.append(np.arange(101.0), [np.nan, np.nan])
    assert metrics.percentile_interval(values) == (2.5, 97.5)
    assert all(math.isnan(end) for end in metrics.percentile_interval(values[-2:]))


def test_bootstrap_interval_of_nothing_is_nan():
    assert all(math.isnan(end) for end in metrics.bootstrap_interval([np.zeros(0), np.asarray([np.nan])]))
