"""The four criteria of a mask: their ends, what they are blind to, and their weighted mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anymask.grounding.quality import (
    CRITERIA,
    QualityWeights,
    compactness,
    measure_quality,
    parse_weights,
    size_prior,
    smoothness,
)


def disk(radius: int, side: int = 200) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return (x - side // 2) ** 2 + (y - side // 2) ** 2 <= radius**2


def line(side: int = 200) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[100:102, 20:180] = True
    return mask


@pytest.mark.parametrize("radius", [5, 10, 40, 90])
def test_a_disk_is_compact_and_smooth_at_any_size(radius):
    assert compactness(disk(radius)) > 0.75 and smoothness(disk(radius)) > 0.8


def test_a_square_has_pi_quarters_of_a_disk():
    square = np.zeros((200, 200), bool)
    square[50:150, 50:150] = True
    assert compactness(square) == pytest.approx(np.pi / 4, abs=0.01)
    assert smoothness(square) > 0.98


def test_threads_crumbs_and_frayed_edges_score_low():
    assert compactness(line()) < 0.06 and smoothness(line()) == 0
    crumbs = np.random.default_rng(0).random((200, 200)) > 0.5
    assert compactness(crumbs) < 0.001 and smoothness(crumbs) < 0.01
    frayed = disk(60) & ~((np.indices((200, 200)).sum(0) % 6 == 0) & ~disk(50))
    assert smoothness(frayed) < 0.7 * smoothness(disk(60))


def test_the_edge_of_the_image_is_no_border_of_smoothness():
    half = disk(60)[100:]
    assert smoothness(half) > 0.95


@pytest.mark.parametrize(("share", "value"), [(0, 0), (0.025, 0.5), (0.05, 1), (0.3, 1), (0.5, 1), (0.75, 0.5), (1, 0)])
def test_the_size_prior_is_straight_to_both_ends(share, value):
    assert size_prior(share, (0.05, 0.5)) == pytest.approx(value)


@pytest.mark.parametrize("best_size", [(0.0, 1.0), (0.0, 0.5), (0.2, 0.2)])
def test_the_size_prior_may_have_no_slope(best_size):
    assert size_prior(best_size[0], best_size) == 1 and size_prior(best_size[1], best_size) == 1


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))),
    st.tuples(*[st.floats(0, 1)] * 4).filter(lambda four: sum(four) > 1e-3),
)
def test_everything_lies_between_0_and_1(masks, weights):
    text = np.linspace(0, 1, len(masks), dtype=np.float32)
    found = measure_quality(masks, text, QualityWeights(*weights))
    for name in (*CRITERIA, "quality"):
        assert ((found[name] >= 0) & (found[name] <= 1 + 1e-6)).all(), name
        assert (found[name][~masks.any(axis=(1, 2))] == 0).all(), name
    rows = np.stack([found[name] for name in CRITERIA], axis=1)
    np.testing.assert_allclose(found["quality"], rows @ np.asarray(weights) / sum(weights), atol=1e-5)


def test_company_changes_nothing():
    masks = np.stack([disk(10), line(), np.zeros((200, 200), bool)])
    text = np.asarray([0.9, 0.2, 0.5], np.float32)
    together = measure_quality(masks, text, QualityWeights())
    for row in range(3):
        alone = measure_quality(masks[row : row + 1], text[row : row + 1], QualityWeights())
        for name, values in alone.items():
            assert float(values[0]) == pytest.approx(float(together[name][row]), abs=1e-6), name


def test_no_masks_have_no_criteria():
    assert all(
        len(values) == 0
        for values in measure_quality(np.zeros((0, 4, 4), bool), np.zeros(0), QualityWeights()).values()
    )


def test_weights_are_read():
    assert parse_weights("text=0.5, size=0") == QualityWeights(text=0.5, size=0)
    assert parse_weights("best_size=0.01-0.9").best_size == (0.01, 0.9)
    assert parse_weights("best_size=1e-3-0.5").best_size == (0.001, 0.5)


@pytest.mark.parametrize(
    "text", ["", "text", "text=x", "colour=1", "best_size=0.5", "best_size=0.1-0.2-0.3", "text=1,,"]
)
def test_weights_that_cannot_be_read_say_how_to_write_them(text):
    with pytest.raises(
        ValueError, match="quality must be a list like text=0.6,best_size=0.05-0.5 of text, compactness"
    ):
        parse_weights(text)


def test_impossible_weights_are_refused():
    with pytest.raises(ValueError, match="weights must be at least 0, and one of them more"):
        QualityWeights(0, 0, 0, 0)
    with pytest.raises(ValueError, match="weights must be at least 0"):
        QualityWeights(text=-1)
    for strange in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weights must be at least 0"):
            QualityWeights(text=strange)
    with pytest.raises(ValueError, match="best_size must be two shares of the image"):
        QualityWeights(best_size=(0.5, 0.1))
