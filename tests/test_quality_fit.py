"""The fit of weights: finds what was planted, and stays where the data say nothing."""

import numpy as np
import pytest

from anymask.grounding.quality import CRITERIA, QualityWeights
from anymask.training.measurements import Choice, Look, Measured
from anymask.training.quality_fit import Choices, brier_of, fit_best_size, fit_members, fit_quality, named_right

ONE, SIZE = np.ones(1), (0.05, 0.5)


def measured(choices=(), looks=(), shares=()):
    return Measured("x.png", list(shares), list(choices), list(looks), [])


def images_of(criterion, images=40, noise=0.0, candidates=3):
    """Candidates whose real IoU is one criterion's value, the others noise."""
    rng, found = np.random.default_rng(0), []
    for _ in range(images):
        values = {name: rng.random(candidates) for name in CRITERIA}
        iou = (
            values[criterion] * (1 - noise) + noise * rng.random(candidates) if criterion else np.full(candidates, 0.5)
        )
        share = values["size"] * SIZE[0]  # so that the prior is the value
        text = [values["text"].tolist()]
        columns = (iou, rng.random(candidates), share, values["compactness"], values["smoothness"])
        one = Choice(*(column.tolist() for column in columns), text)
        found.append(measured([one], shares=SIZE))
    return found


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_criterion_that_tells_gets_the_weight(criterion):
    images = images_of(criterion)
    choices, fitted = Choices.of(images, ONE, SIZE), fit_quality(images, ONE)
    assert getattr(fitted, criterion) == max(fitted.weights) >= 0.5
    assert sum(fitted.weights) == pytest.approx(1) and fitted.best_size == SIZE
    before, after = (choices.by_quality(weights).mean() for weights in (QualityWeights(), fitted))
    assert after > before + 0.02 or criterion == "text"
    assert after > 0.9 * choices.chosen(choices.iou).mean()


def test_what_makes_no_difference_leaves_the_default_weights():
    assert fit_quality(images_of(None), ONE) == QualityWeights()
    assert fit_quality(images_of("smoothness", images=1), ONE) == QualityWeights()
    assert fit_quality([], ONE) is None


def test_other_sizes_are_taken_only_where_they_choose_better():
    right = Choice([0.1, 0.9], [0.5, 0.5], [0.03, 0.001], [0.5] * 2, [0.5] * 2, [[0.5, 0.5]])
    either = Choice([0.5, 0.5], [0.5, 0.5], [0.001, 0.03], [0.5] * 2, [0.5] * 2, [[0.5, 0.5]])
    for one, size in ((right, (0.001, 0.002)), (either, SIZE)):
        fitted = fit_quality([measured([one], shares=[0.001, 0.002])] * 20, ONE)
        assert fitted.best_size == pytest.approx(size, abs=2e-4)


def test_choices_of_different_lengths_stay_apart():
    short = Choice([0.2, 0.9], [0.5, 0.4], [0.1, 0.1], [0.0] * 2, [0.0] * 2, [[0.1, 0.2]])
    long = Choice([0.1, 0.2, 0.7], [0.1, 0.2, 0.0], [0.1] * 3, [0.0] * 3, [0.0] * 3, [[0.3, 0.2, 0.1]])
    lone = Choice([0.5], [0.5], [0.1], [0.0], [0.0], [[0.1]])
    choices = Choices.of([measured([short, lone]), measured(), measured([long])], ONE, SIZE)
    assert choices.image.tolist() == [0, 2]
    assert choices.by_quality(QualityWeights()).tolist() == [0.9, 0.1]
    assert choices.chosen(choices.predicted_iou).tolist() == [0.2, 0.2]
    assert choices.chosen(-np.ones((2, 3))).tolist() == [0.2, 0.1]


def test_the_size_prior_is_that_of_the_best_size():
    one = Choice([1.0, 0.0], [0.0, 0.0], [0.1, 0.5], [0.0, 0.0], [0.0, 0.0], [[0.0, 0.0]])
    near, far = (Choices.of([measured([one])], ONE, size).criteria[0, :, 2].tolist() for size in ((0.5, 0.6), SIZE))
    assert near == pytest.approx([0.2, 1]) and far == [1, 1]


def test_best_size_holds_nine_of_ten_objects():
    low, high = fit_best_size([measured(shares=np.arange(0, 51) / 100), measured(shares=np.arange(51, 101) / 100)])
    assert (low, high) == (0.05, 0.95)


def looks_of(good=0, members=3, count=60):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        own, probs = int(rng.integers(4)), rng.random((members, 4)) / 2
        probs[good, own] = 0.9
        found.append(Look(own, probs.tolist()))
    return found


def test_the_member_that_names_gets_the_weight():
    for good in range(3):
        looks = looks_of(good)
        weights = fit_members(looks, 3)
        assert weights.argmax() == good and weights.sum() == pytest.approx(1) and weights.min() >= 0
        even = np.full(3, 1 / 3)
        before, after = brier_of(looks, even), brier_of(looks, weights)
        assert before is not None and after is not None and after < before
        assert named_right(looks, np.eye(3)[good]) == 1 > named_right(looks, np.eye(3)[good - 1])


def test_member_weights_are_the_least_brier_score():
    """Against a fine grid of two members."""
    rng = np.random.default_rng(0)
    looks = [Look(int(rng.integers(3)), rng.random((2, 3)).tolist()) for _ in range(30)]
    grid = np.linspace(0, 1, 1001)
    best = min(grid, key=lambda u: brier_of(looks, np.asarray([u, 1 - u])))
    assert fit_members(looks, 2)[0] == pytest.approx(best, abs=2e-3)


def test_scores_of_nothing_are_none():
    assert brier_of([], ONE) is None and named_right([], ONE) is None
    assert brier_of([Look(0, [[0.4]])], ONE) is None and named_right([Look(0, [[0.4]])], ONE) is None
