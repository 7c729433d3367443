"""One mask and one name an object: which of many finds are the same thing, a group of things, or a part of one.

Three rules, in this order, each about masks A and B, of any names unless said otherwise:
- *Group*: two or more others of A's name, smaller, apart from each other and to 0.9 inside of A, cover at least 0.7 of
  it, and their mean score is at least 0.6 of A's: A is several objects at once, and goes.
- *Same*: their IoU is at least 0.5, or one lies to 0.9 in the other and is at least a third of it: the surer stays.
- *Part*: A lies to 0.9 within a surer B of the same name: A goes. Under another name it stays: a wheel is no car.

Negative names take away what they are clearly surer of. What the rules are worth is in docs/text.md.
"""

import numpy as np
from jaxtyping import Float, Int

from anymask.ops import rle
from anymask.types import Masks

SAME_IOU = 0.5
SAME_INSIDE, SAME_SHARE = 0.9, 1 / 3
INSIDE = 0.9
COVERED = 0.7
SMALLER = 0.8  # a member of a group is at most this share of it
APART = 0.5  # of the smaller of two members, at most, lies in the other
SURE = 0.6  # of the score of a group, at least, is the mean score of its members
REFUSED_SHARE = 0.5
CLEARLY = 1.1  # times as sure is a negative name that takes an object away: names alike ("car", "toy car") score alike


def one_each(masks: Masks) -> Masks:
    """The rows that are one object each, in their order, by the rules above."""
    if len(masks) < 2:
        return masks
    pairs = _Pairs(masks)
    order = np.argsort(-masks.scores, kind="stable").tolist()
    singles = [row for row in order if not pairs.is_group(row, order)]
    kept: list[int] = []
    for row in singles:
        if not any(pairs.are_same(row, other) for other in kept):
            kept.append(row)
    whole = [row for i, row in enumerate(kept) if not any(pairs.is_inside(row, surer) for surer in kept[:i])]
    return masks[np.sort(np.asarray(whole, np.int64))]


def without(masks: Masks, refused: Masks) -> Masks:
    """The rows that no clearly surer row of `refused` shares half of the smaller mask with."""
    if not len(masks) or not len(refused):
        return masks
    smaller = np.maximum(np.minimum(masks.areas[:, None], refused.areas[None]), 1)
    shared = rle.intersections(masks.rles, refused.rles) / smaller
    beaten = (shared > REFUSED_SHARE) & (refused.scores[None] >= CLEARLY * masks.scores[:, None])
    return masks[np.flatnonzero(~beaten.any(axis=1))]


def taker(lost: Masks, others: Masks) -> str:
    """The label of the other mask that covers most of the surest lost one; empty where none covers half of it."""
    surest = lost[int(np.argmax(lost.scores))]
    shares = rle.intersections(surest.rles, others.rles)[0] / max(int(surest.areas[0]), 1)
    return others.labels[int(shares.argmax())] if len(others) and shares.max() >= REFUSED_SHARE else ""


def why_missing(score: float, threshold: float, taken_by: str = "") -> str:
    """Why a name has no mask, in words that follow the name: its highest score, or what became of what was found."""
    if score < threshold:
        return f"{score:.2f} of {threshold:.2f}"
    return f"taken by {taken_by!r}" if taken_by else "there, but no mask of it is sure enough"


def united(masks: Masks) -> Masks:
    """One mask a name, the union of its rows, with the score of the surest; ids from 1."""
    names = list(dict.fromkeys(masks.labels))
    groups = [masks[masks.rows_named(name)] for name in names]
    return Masks.from_rles(
        [rle.merge(group.rles, masks.size) for group in groups],
        masks.size,
        scores=[float(group.scores.max()) for group in groups],
        labels=names,
        made_by=masks.made_by,
        candidates=masks.candidates,
    )


class _Pairs:
    """How every two rows lie to each other."""

    def __init__(self, masks: Masks) -> None:
        self.masks, self.areas = masks, np.maximum(masks.areas.astype(np.float64), 1)
        shared = rle.intersections(masks.rles, masks.rles).astype(np.float64)
        self.inside: Float[np.ndarray, "n n"] = shared / self.areas[:, None]  # of row i, how much lies in row j
        self.iou: Float[np.ndarray, "n n"] = shared / (self.areas[:, None] + self.areas[None] - shared)
        names = np.unique(np.asarray(masks.labels, dtype=str), return_inverse=True)[1]
        self.names: Int[np.ndarray, n] = names

    def are_same(self, a: int, b: int) -> bool:
        small, large = (a, b) if self.areas[a] < self.areas[b] else (b, a)
        nearly_inside = self.inside[small, large] >= SAME_INSIDE and self.areas[small] >= SAME_SHARE * self.areas[large]
        return bool(self.iou[a, b] >= SAME_IOU or nearly_inside)

    def is_inside(self, a: int, b: int) -> bool:
        """Within another of its name."""
        return bool(self.names[a] == self.names[b] and self.inside[a, b] >= INSIDE)

    def is_group(self, row: int, order: list[int]) -> bool:
        members: list[int] = []
        for other in order:
            is_member = other != row and self.is_inside(other, row) and self.areas[other] <= SMALLER * self.areas[row]
            if is_member and all(self._are_apart(other, one) for one in members):
                members.append(other)
        if len(members) < 2 or self.masks.scores[members].mean() < SURE * self.masks.scores[row]:
            return False
        union = rle.merge([self.masks.rles[other] for other in members], self.masks.size)
        return bool(rle.intersections([union], [self.masks.rles[row]])[0, 0] >= COVERED * self.areas[row])

    def _are_apart(self, a: int, b: int) -> bool:
        return bool(max(self.inside[a, b], self.inside[b, a]) <= APART)
