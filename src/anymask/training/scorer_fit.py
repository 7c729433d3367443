"""All that is fitted at once to measured images, and how it does on others beside what is usual."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from anymask.grounding.quality import CRITERIA, QualityWeights
from anymask.training.measurements import LOWEST, Example, Look, Measured
from anymask.training.name_thresholds import NameThreshold, best_of_all, f1_of, fit_thresholds, macro_f1_of
from anymask.training.quality_fit import (
    Choices,
    brier_of,
    fit_members,
    fit_quality,
    named_right,
)

Value = float | int | None


@dataclass(frozen=True, eq=False)
class Usual:
    """What holds before: the members and their weights, and the threshold of all names by whose scores they are.

    `floored` are detectors, which are not asked for what is far below their threshold.
    """

    members: tuple[str, ...]
    weights: Float[np.ndarray, "m"]
    thresholds: dict[str, float]
    floored: set[str]

    def lowest(self, whose: str) -> float:
        """Below it no threshold can be learned."""
        return LOWEST * self.thresholds[whose] if whose in self.floored else 0.0


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights of the members, of quality (None without a choice to learn from), thresholds of names; one for all."""

    members: Float[np.ndarray, "m"]
    quality: QualityWeights | None
    names: tuple[NameThreshold, ...]
    of_all: dict[str, float]

    @property
    def weights(self) -> dict[str, float]:
        """Of quality, by criterion."""
        return {name: float(asdict(self.quality or QualityWeights())[name]) for name in CRITERIA}

    def member_weights(self, usual: Usual) -> dict[str, float]:
        """By name, those with any."""
        pairs = zip(usual.members, self.members.tolist(), strict=True)
        return {name: round(weight, 4) for name, weight in pairs if weight > 0}

    def thresholds(self, whose: Sequence[str]) -> dict[str, dict[str, float]]:
        """By whose scores they are for, then by name."""
        return {one: {r.name: r.value for r in self.names if r.whose == one and r.value is not None} for one in whose}

    def by_name(self) -> dict[str, list[NameThreshold]]:
        """The rows of each name that has a threshold of its own."""
        names = dict.fromkeys(row.name for row in self.names if row.value is not None)
        return {name: [row for row in self.names if row.name == name] for name in names}

    def rows(self, usual: Usual) -> list[dict[str, Any]]:
        """Every weight before and after."""
        default, after = QualityWeights(), self.quality or QualityWeights()
        sizes = zip(("least", "most"), default.best_size, after.best_size, strict=True)
        return [
            *(
                {"weight": name, "before": float(asdict(default)[name]), "after": self.weights[name]}
                for name in CRITERIA
            ),
            *({"weight": f"best_size, {end}", "before": low, "after": high} for end, low, high in sizes),
            *(
                {"weight": name, "before": round(float(before), 4), "after": round(float(now), 4)}
                for name, before, now in zip(usual.members, usual.weights, self.members, strict=True)
            ),
        ]


def fit(measured: Sequence[Measured], usual: Usual) -> Fit:
    """Members first, as what they say is a criterion of quality."""
    looks, examples = _looks(measured), _examples(measured)
    alone = len(usual.members) == 1 or not looks
    members = usual.weights if alone else fit_members(looks, len(usual.members))
    rows = [
        row
        for who, value in usual.thresholds.items()
        for row in fit_thresholds(examples, who, value, usual.lowest(who))
    ]
    of_all = {who: best_of_all(examples, who, value, usual.lowest(who)) for who, value in usual.thresholds.items()}
    return Fit(members, fit_quality(measured, members) if looks else None, tuple(rows), of_all)


def compare(fitted: Fit, held_out: Sequence[Measured], usual: Usual) -> tuple[dict[str, Value], list[str]]:
    """Before and after on images that `fitted` has not seen, and what to say of it."""
    found: dict[str, Value] = {**_choosing(fitted, held_out, usual), **_presence(fitted, _examples(held_out), usual)}
    looks = _looks(held_out)
    if len(usual.members) > 1:
        for end, weights in (("usual", usual.weights), ("fitted", fitted.members)):
            found |= {f"members_brier_{end}": brier_of(looks, weights)}
            found |= {f"members_named_right_{end}": named_right(looks, weights)}
    values = {name: value if value is None else round(value, 4) for name, value in found.items()}
    return values, _doubts(values, held_out)


def file_stem(name: str) -> str:
    """A safe file name for any name; where it cannot be the name itself, a digest keeps it apart from others."""
    plain = re.sub(r"[^\w -]+", "_", name).strip(" ")[:60]
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return plain if plain == name and plain == plain.casefold() else f"{plain or '_'}-{digest}"


def _choosing(fitted: Fit, held_out: Sequence[Measured], usual: Usual) -> dict[str, Value]:
    """The mean real IoU of the candidate that is chosen, in different ways."""
    default = QualityWeights()
    after = fitted.quality or default
    before = Choices.of(held_out, usual.weights, default.best_size)
    now = Choices.of(held_out, fitted.members, after.best_size)
    ways = {
        "usual": before.by_quality(default),
        "fitted": now.by_quality(after),
        "predicted_iou": now.chosen(now.predicted_iou),
        "oracle": now.chosen(now.iou),
    }
    means = {f"choice_iou_{way}": float(ious.mean()) if len(ious) else None for way, ious in ways.items()}
    return {**means, "choices": len(now)}


def _presence(fitted: Fit, examples: Sequence[Example], usual: Usual) -> dict[str, Value]:
    """F1 at the usual threshold, at the best one of all names, at each name's own, and else the usual or the best one.

    `macro` is the mean over names.
    """
    found = dict[str, Value]()
    own = fitted.thresholds(list(usual.thresholds))
    for who, value in usual.thresholds.items():
        kind = "detection" if who in usual.floored else "presence"
        ways = {"usual": ({}, value), "one": ({}, fitted.of_all[who]), "per_name": (own[who], value)}
        ways["per_name_else_one"] = (own[who], fitted.of_all[who])
        for way, (values, rest) in ways.items():
            found[f"{kind}_f1_{way}"] = f1_of(examples, who, values, rest)
            found[f"{kind}_f1_macro_{way}"] = macro_f1_of(examples, who, values, rest)
    return found


def _doubts(values: dict[str, Value], held_out: Sequence[Measured]) -> list[str]:
    """Where the fit loses, or nothing can be said of it."""
    if not held_out:
        return ["no image is held out: nothing says whether this does better than what is usual"]
    pairs = [("choice_iou_usual", "choice_iou_fitted", "weights choose worse masks")]
    pairs += [
        (f"{kind}_f1_usual", f"{kind}_f1_per_name_else_one", f"thresholds do worse ({kind})")
        for kind in ("presence", "detection")
    ]
    return [
        f"on the images held out {what} than the usual ones ({after:.3f} after {before:.3f}) when fitted without"
        " these images; what is kept and shown is fitted to all: give more images"
        for one, other, what in pairs
        if (before := values.get(one)) is not None and (after := values.get(other)) is not None and after < before
    ]


def _looks(measured: Sequence[Measured]) -> list[Look]:
    return [look for one in measured for look in one.looks]


def _examples(measured: Sequence[Measured]) -> list[Example]:
    return [example for one in measured for example in one.examples]
