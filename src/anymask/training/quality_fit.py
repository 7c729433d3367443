"""Weights of quality and of a scorer's members that labelled pictures ask for; all small problems, exact or convex.

- `best_size`: the 5th and the 95th percentile of the shares of the image that objects cover.
- Members: of the mean of their probabilities, weighted by u >= 0 of sum 1, the least Brier score (Brier 1950) over true
  masks and names, where a mask's own name is 1 and every other name 0; its own counts as much as all others. The
  problem is convex and solved by exponentiated gradient (Kivinen, Warmuth 1997).
- Quality: of all weights in steps of 0.05 those whose choice among a box's candidates has the highest real IoU.
  Weights that are worse by at most one standard error of the difference (over images) count as equally good, and of
  these the nearest to the default ones are taken (the rule of one standard error, Breiman et al. 1984): little data
  changes little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int

from anymask.grounding.quality import CRITERIA, QualityWeights, size_prior
from anymask.training.measurements import Choice, Look, Measured

PERCENTILES = (5, 95)
STEPS = 20  # a weight is a multiple of 1 / STEPS
LEAST = 0.005  # a member of less weight is left out
ROUNDS, RATE = 2000, 0.5


def fit_best_size(measured: Sequence[Measured]) -> tuple[float, float]:
    """Two shares of the image between which nine of ten objects lie."""
    shares = np.concatenate([np.asarray(one.shares, np.float64) for one in measured])
    low, high = np.percentile(shares, PERCENTILES)
    return round(float(low), 4), round(float(high), 4)


def fit_members(looks: Sequence[Look], members: int) -> Float[np.ndarray, "m"]:
    """Weights of sum 1."""
    probs, own = _looked(looks, members)
    balance = np.where(own, 0.5 / max(own.sum(), 1), 0.5 / max((~own).sum(), 1))
    weights = np.full(members, 1 / members)
    for _ in range(ROUNDS):
        slope = 2 * (balance * (weights @ probs - own)) @ probs.T
        weights = weights * np.exp(-RATE * (slope - slope.min()))
        weights /= weights.sum()
    weights = np.where(weights < LEAST, 0, weights)
    fitted: np.ndarray = weights / weights.sum()
    return fitted


def brier_of(looks: Sequence[Look], weights: Float[np.ndarray, "m"]) -> float | None:
    """The balanced Brier score of the members so weighted; None without a mask."""
    probs, own = _looked(looks, len(weights))
    if not own.any() or own.all():
        return None
    errors = (weights @ probs - own) ** 2
    return float((errors[own].mean() + errors[~own].mean()) / 2)


def named_right(looks: Sequence[Look], weights: Float[np.ndarray, "m"]) -> float | None:
    """The share of true masks whose own name scores highest, among those with another one; None without any."""
    asked = [look for look in looks if len(look.probs[0]) > 1]
    hits = [int(np.argmax(weights @ np.asarray(look.probs))) == look.own for look in asked]
    return float(np.mean(hits)) if hits else None


@dataclass(frozen=True, eq=False)
class Choices:
    """Of n boxes with c candidates each: criteria in the order of `CRITERIA`, and what came; `image` is the box's."""

    criteria: Float[np.ndarray, "n c 4"]
    iou: Float[np.ndarray, "n c"]
    predicted_iou: Float[np.ndarray, "n c"]
    there: Bool[np.ndarray, "n c"]
    image: Int[np.ndarray, "n"]

    @classmethod
    def of(
        cls, measured: Sequence[Measured], members: Float[np.ndarray, "m"], best_size: tuple[float, float]
    ) -> "Choices":
        """Those boxes that leave a choice."""
        rows = [(i, one) for i, image in enumerate(measured) for one in image.choices if len(one.iou) > 1]
        most = max((len(one.iou) for _, one in rows), default=1)
        return cls(
            np.reshape([_padded(_criteria(one, members, best_size), most) for _, one in rows], (len(rows), most, 4)),
            _stacked([one.iou for _, one in rows], most),
            _stacked([one.predicted_iou for _, one in rows], most),
            _stacked([[1.0] * len(one.iou) for _, one in rows], most) > 0,
            np.asarray([i for i, _ in rows], np.int64),
        )

    def __len__(self) -> int:
        return len(self.iou)

    def chosen(self, scores: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n"]:
        """The real IoU of the candidate of the highest score."""
        best = np.where(self.there, scores, -np.inf).argmax(axis=1)
        ious: np.ndarray = self.iou[np.arange(len(self)), best]
        return ious

    def by_image(self, values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "i"]:
        """The mean of each image."""
        images = np.unique(self.image, return_inverse=True)[1]
        means: np.ndarray = np.bincount(images, values) / np.bincount(images)
        return means

    def by_quality(self, weights: QualityWeights) -> Float[np.ndarray, "n"]:
        """The real IoU of what quality chooses; `best_size` is already in the criteria."""
        return self.chosen(self.criteria @ np.asarray(weights.weights))


def fit_quality(measured: Sequence[Measured], members: Float[np.ndarray, "m"]) -> QualityWeights | None:
    """The weights that choose best, as near to the default ones as the data allow; None where there is no choice.

    So with the usual sizes: quality also ranks objects against each other, and where small ones count as usual small
    false finds do, too. Only where other sizes choose better, by more than a standard error, are they taken.
    """
    usual = QualityWeights().best_size
    choices = Choices.of(measured, members, usual)
    if not len(choices):
        return None
    seen = fit_best_size(measured)
    others = Choices.of(measured, members, seen)
    as_usual, as_seen = _nearest(choices, usual), _nearest(others, seen)
    gain = choices.by_image(others.by_quality(as_seen) - choices.by_quality(as_usual))
    return as_seen if float(gain.mean()) > float(_standard_error(gain[None])[0]) else as_usual


def _nearest(choices: Choices, best_size: tuple[float, float]) -> QualityWeights:
    """Of the weights that choose as well as the best, within a standard error, those nearest to the default."""
    grid = [parts for parts in product(range(STEPS + 1), repeat=len(CRITERIA)) if sum(parts) == STEPS]
    tried = np.asarray(grid) / STEPS
    ious = np.stack([choices.by_image(choices.chosen(choices.criteria @ weights)) for weights in tried])
    worse = ious[ious.mean(axis=1).argmax()] - ious
    good = tried[worse.mean(axis=1) <= _standard_error(worse)]
    text, compact, size, smooth = good[np.square(good - QualityWeights().weights).sum(axis=1).argmin()].tolist()
    return QualityWeights(text, compact, size, smooth, best_size)


def _standard_error(values: Float[np.ndarray, "n i"]) -> Float[np.ndarray, "n"]:
    """Of the means over images; beyond all bounds for one image alone."""
    n = values.shape[1]
    return np.asarray(values.std(axis=1, ddof=1) / n**0.5 if n > 1 else np.full(len(values), np.inf))


def _looked(looks: Sequence[Look], members: int) -> tuple[Float[np.ndarray, "m p"], Bool[np.ndarray, "p"]]:
    """Of every pair of a mask and a name the probability of each member, and whether it is the mask's own."""
    probs = [np.asarray(look.probs, np.float64) for look in looks]
    own = [np.arange(one.shape[1]) == look.own for look, one in zip(looks, probs, strict=True)]
    return np.concatenate([np.zeros((members, 0)), *probs], axis=1), np.concatenate([np.zeros(0, bool), *own])


def _criteria(
    choice: Choice, members: Float[np.ndarray, "m"], best_size: tuple[float, float]
) -> Float[np.ndarray, "c 4"]:
    sizes = [size_prior(share, best_size) for share in choice.share]
    return np.stack([members @ np.asarray(choice.text), choice.compactness, sizes, choice.smoothness], axis=1)


def _padded(rows: Float[np.ndarray, "c 4"], most: int) -> Float[np.ndarray, "_ 4"]:
    return np.pad(rows, ((0, most - len(rows)), (0, 0)))


def _stacked(rows: Sequence[Sequence[float]], most: int) -> Float[np.ndarray, "n c"]:
    return np.asarray([[*row, *[0.0] * (most - len(row))] for row in rows], np.float64).reshape(len(rows), most)
