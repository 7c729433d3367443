"""Thresholds of names: the best F1, near all names' where examples are few, the usual where there are none."""

import numpy as np
import pytest

from anymask.training.measurements import Example
from anymask.training.name_thresholds import PRIOR, best_of_all, f1_of, fit_thresholds, macro_f1_of


def examples(name, positive=(), negative=(), whose="pocket"):
    rows = [(score, True) for score in positive] + [(score, False) for score in negative]
    return [Example(whose, name, score, kind) for score, kind in rows]


def test_each_name_gets_its_own_threshold():
    """A rare name that scores low, and one that scores high without being there."""
    low = examples("axolotl", np.linspace(0.2, 0.3, 40), np.linspace(0.0, 0.1, 40))
    high = examples("thing", np.linspace(0.8, 0.9, 40), np.linspace(0.6, 0.7, 40))
    rows = {row.name: row for row in fit_thresholds([*low, *high], "pocket", 0.5)}
    assert 0.1 < rows["axolotl"].value <= 0.2 and 0.7 < rows["thing"].value <= 0.8
    assert (rows["axolotl"].f1_before, rows["axolotl"].f1_after) == (0, 1)
    assert rows["thing"].f1_before == pytest.approx(2 / 3, abs=1e-4) and rows["thing"].f1_after == 1
    assert (rows["thing"].positives, rows["thing"].negatives) == (40, 40)
    values = {name: row.value for name, row in rows.items()}
    assert f1_of([*low, *high], "pocket", values, 0.5) == macro_f1_of([*low, *high], "pocket", values, 0.5) == 1
    assert macro_f1_of([*low, *high], "pocket", {}, 0.5) == pytest.approx(1 / 3)


def test_the_threshold_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    mine = examples("a", rng.random(4).round(2) ** 0.5, rng.random(7).round(2))
    everything = [*mine, *examples("b", rng.random(20).round(2) ** 0.5, rng.random(20).round(2))]
    [row] = [row for row in fit_thresholds(everything, "pocket", 0.5) if row.name == "a"]

    def rate(t, kind):
        own = [one.score >= t for one in mine if one.positive == kind]
        of_all = np.mean([one.score >= t for one in everything if one.positive == kind])
        return (sum(own) + PRIOR * of_all) / (len(own) + PRIOR)

    def f1(t):
        return 2 * rate(t, True) / (1 + rate(t, True) + rate(t, False))

    least = min(one.score for one in everything) + 1e-4  # no threshold lets everything pass
    assert f1(row.value) == pytest.approx(max(f1(t) for t in np.linspace(least, 0.99, 4951)))


def test_few_examples_stay_near_all_names():
    """One positive at 0.01 does not undo what a hundred of others say; a hundred of its own do."""
    others = examples("b", np.linspace(0.6, 0.9, 100), np.linspace(0.1, 0.4, 100))
    values = []
    for count in (1, 100):
        mine = examples("a", np.full(count, 0.02), np.full(count, 0.01))
        [row] = [row for row in fit_thresholds([*mine, *others], "pocket", 0.5) if row.name == "a"]
        values.append(row.value)
    assert 0.4 <= values[0] <= 0.6 and values[1] == pytest.approx(0.015)


def test_a_name_without_both_kinds_gets_the_best_of_all_and_says_so():
    rows = fit_thresholds([*examples("a", [0.9]), *examples("b", [], [0.1])], "pocket", 0.62)
    assert [(row.name, row.value, row.f1_after, row.note) for row in rows] == [
        ("a", None, None, "has no negatives: the best threshold of all names is used for it, 0.62"),
        ("b", None, None, "has no positives: the best threshold of all names is used for it, 0.62"),
    ]
    assert best_of_all(examples("a", [0.9]), "pocket", 0.62) == 0.62
    assert fit_thresholds([], "pocket", 0.5) == ()


def test_equally_good_thresholds_give_the_nearest_to_the_usual():
    rows = examples("a", [0.9, 0.95], [0.05, 0.1])
    assert fit_thresholds(rows, "pocket", 0.5)[0].value == best_of_all(rows, "pocket", 0.5) == 0.5


def test_none_is_learned_where_the_detector_was_not_asked():
    rows = examples("a", [0.05] * 9, [0.0] * 9)
    assert fit_thresholds(rows, "pocket", 0.3)[0].value == pytest.approx(0.025)
    assert fit_thresholds(rows, "pocket", 0.3, lowest=0.1)[0].value == 0.3


def test_scores_of_another_are_another_matter():
    rows = [*examples("a", [0.9], [0.1]), *examples("a", [0.1], [0.9], "windows")]
    assert [row.positives for row in fit_thresholds(rows, "windows", 0.5)] == [1]
    assert f1_of(rows, "pocket", {}, 0.5) == 1 and f1_of(rows, "windows", {}, 0.5) == 0
    assert f1_of(rows, "dino", {}, 0.5) is None and macro_f1_of(rows, "dino", {}, 0.5) is None
