"""From when on a name counts, for each name: learned from images that show it, and others that certainly do not.

The threshold of a name is the t of the highest F1 as if the name were there as often as not,

    F1(t) = 2 tpr(t) / (1 + tpr(t) + fpr(t)),

where tpr and fpr are the shares of its positives and of its negatives with scores of at least t. So few examples say
little: `PRIOR` further positives and as many negatives, with scores like those of all names together, join its own,

    tpr(t) = (positives of the name at t or above + PRIOR * tpr of all names) / (positives of the name + PRIOR),

and fpr alike. With no examples that is the best threshold of all names in one; with many it is the name's own. Among
equally good thresholds the one nearest to the usual is taken. A name without a positive or a negative gets none of its
own: with scorer.json the best of all names in one (`best_of_all`) is used for it, as for names never seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from anymask.training.measurements import Example

PRIOR = 10.0  # 5 to 20 do alike in cross-validation on 60 and on 200 photos; 1 and 50 do worse
HIGHEST = 0.99

Rate = TypeVar("Rate", float, np.ndarray)


@dataclass(frozen=True)
class NameThreshold:
    """What was learned of a name: `value` is None where it has no threshold of its own, and `note` says why.

    F1 is of the very examples it was learned from, at the usual threshold and at its own; None without both kinds.
    """

    whose: str
    name: str
    value: float | None
    positives: int
    negatives: int
    f1_before: float | None
    f1_after: float | None
    note: str = ""


def fit_thresholds(
    examples: Sequence[Example], whose: str, usual: float, lowest: float = 0.0
) -> tuple[NameThreshold, ...]:
    """A row for each name that `whose` scores are there of, by name; no threshold is below `lowest`."""
    mine = [one for one in examples if one.whose == whose]
    everything = _Scores.of(mine)
    of_all = best_of_all(mine, whose, usual, lowest)
    names = sorted({one.name for one in mine})
    return tuple(
        _fitted(_Scores.of([one for one in mine if one.name == name]), everything, whose, name, usual, lowest, of_all)
        for name in names
    )


def best_of_all(examples: Sequence[Example], whose: str, usual: float, lowest: float = 0.0) -> float:
    """The best single threshold of all names; the usual one without both kinds of examples."""
    mine = _Scores.of([one for one in examples if one.whose == whose])
    return _best(mine, mine, usual, lowest) if mine.tells else usual


def f1_of(examples: Sequence[Example], whose: str, values: Mapping[str, float], usual: float) -> float | None:
    """F1 of all examples at the thresholds of their names, as if names were there as often as not; None without."""
    mine = [one for one in examples if one.whose == whose]
    found = np.asarray([one.score >= values.get(one.name, usual) for one in mine], bool)
    positive = np.asarray([one.positive for one in mine], bool)
    if not positive.any() or positive.all():
        return None
    return _f1(float(found[positive].mean()), float(found[~positive].mean()))


def macro_f1_of(examples: Sequence[Example], whose: str, values: Mapping[str, float], usual: float) -> float | None:
    """The mean over names of their F1, so that rare names count as much; None without a name of both kinds."""
    names = sorted({one.name for one in examples if one.whose == whose})
    found = [f1_of([one for one in examples if one.name == name], whose, values, usual) for name in names]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True, eq=False)
class _Scores:
    """Sorted scores of both kinds."""

    positive: Float[np.ndarray, "p"]
    negative: Float[np.ndarray, "n"]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "_Scores":
        kinds = [np.sort([one.score for one in examples if one.positive == kind]) for kind in (True, False)]
        return cls(*(np.asarray(kind, np.float64) for kind in kinds))

    @property
    def tells(self) -> bool:
        return len(self.positive) > 0 and len(self.negative) > 0

    def f1(self, at: float) -> float:
        return _f1(float((self.positive >= at).mean()), float((self.negative >= at).mean()))


def _fitted(
    own: _Scores, everything: _Scores, whose: str, name: str, usual: float, lowest: float, of_all: float
) -> NameThreshold:
    counts = len(own.positive), len(own.negative)
    if not own.tells:
        lacking = "positives" if not counts[0] else "negatives"
        note = f"has no {lacking}: the best threshold of all names is used for it, {of_all:g}"
        return NameThreshold(whose, name, None, *counts, None, None, note)
    value = _best(own, everything, usual, lowest)
    return NameThreshold(whose, name, value, *counts, round(own.f1(usual), 4), round(own.f1(value), 4))


def _best(own: _Scores, everything: _Scores, usual: float, lowest: float) -> float:
    """Between two scores, rounded for people; the usual one is tried too."""
    scores = np.unique(np.concatenate([everything.positive, everything.negative]))
    between = (scores[1:] + scores[:-1]) / 2
    tried = np.concatenate([[usual], between[(between >= lowest) & (between <= HIGHEST)]])
    rates = [_rate(mine, all_, tried) for mine, all_ in zip(_both(own), _both(everything), strict=True)]
    values = _f1(rates[0], rates[1])
    best = tried[values >= values.max() - 1e-9]
    return round(float(best[np.abs(best - usual).argmin()]), 6)


def _both(scores: _Scores) -> tuple[np.ndarray, np.ndarray]:
    return scores.positive, scores.negative


def _rate(own: Float[np.ndarray, "p"], all_: Float[np.ndarray, "q"], at: Float[np.ndarray, "t"]) -> np.ndarray:
    """The share of scores at each threshold or above, `PRIOR` of them like all names'."""
    above = len(own) - np.searchsorted(own, at)
    rates: np.ndarray = (above + PRIOR * (1 - np.searchsorted(all_, at) / len(all_))) / (len(own) + PRIOR)
    return rates


def _f1(tpr: Rate, fpr: Rate) -> Rate:
    value: Rate = 2 * tpr / (1 + tpr + fpr)
    return value
