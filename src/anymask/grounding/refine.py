"""Progressive refinement: masks of low quality are asked for again, until asking does not help.

Each round asks for all masks that are still low in one batch, with what is known by then: round 1 adds a click where
the name is likeliest within the mask and one where it is least likely within the box, round 2 takes the box of the best
mask so far, and with `zoom` a last round looks at a closer view. A mask leaves the rounds when it is good enough, or
when an answer is not better than what it has.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float

from anymask.grounding.candidates import Candidate, Draft
from anymask.types import Box, Prompt

GOOD_ENOUGH = 0.6  # quality
RISE = 0.05  # of quality, at least, for an answer to count as better: less is noise (docs/text.md)
MOST_ASKED = 16  # masks, the surest
MOST_ZOOMED = 4  # of these: each costs an encoder pass

# Answers prompts with judged candidates, the best first; the second argument says which of them get a closer view.
Ask = Callable[[Sequence[Draft], Sequence[Prompt], bool], list[tuple[Candidate, ...]]]
LikelyAt = Callable[[str, tuple[int, int]], Float[np.ndarray, "h w"] | None]


@dataclass(frozen=True)
class Refinement:
    """What came of it: how many masks were asked for again, how many became better, in how many rounds."""

    tried: int = 0
    better: int = 0
    rounds: int = 0


def refine(drafts: Sequence[Draft], ask: Ask, likely_at: LikelyAt, zoom: bool) -> tuple[list[Draft], Refinement]:
    """The drafts, those of low quality perhaps with a better mask; `likely_at` gives a name's score map, or None."""
    best, report, better = list(drafts), Refinement(), set[int]()

    def low(rows: Iterable[int]) -> list[int]:
        poor = [row for row in rows if best[row].chosen.quality < GOOD_ENOUGH and best[row].chosen.small.any()]
        return sorted(poor, key=lambda row: -best[row].detected)

    first = low(range(len(best)))[:MOST_ASKED]
    risen = first
    for make, closer in ((_with_clicks, False), (_with_box, False), *([(_with_box, True)] if zoom else [])):
        asked = low(first)[:MOST_ZOOMED] if closer else low(risen)
        if asked:
            prompts = [make(best[row], likely_at) for row in asked]
            answers = ask([best[row] for row in asked], prompts, closer)
            risen = [row for row, more in zip(asked, answers, strict=True) if _are_better(more, best[row])]
            for row in risen:
                best[row] = best[row].with_more(answers[asked.index(row)])
            better |= set(risen)
            report = Refinement(len(first), len(better), report.rounds + 1)
    return best, report


def _are_better(answers: Sequence[Candidate], draft: Draft) -> bool:
    return max((one.quality for one in answers), default=0.0) > draft.chosen.quality + RISE


def _with_clicks(draft: Draft, likely_at: LikelyAt) -> Prompt:
    """The draft's own prompt with a click on it and, where the score map knows one, a click beside it."""
    small = draft.chosen.small
    likely = likely_at(draft.label, small.shape)
    depth = cv2.distanceTransform(np.pad(small, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
    inside = depth * (small if likely is None else np.where(small, likely, 0))
    clicks, labels = [_pixel(inside, draft)], [1]
    if likely is not None and draft.prompt.box_coords is not None:
        outside = _box_mask(draft.prompt.box_coords, draft, small.shape) & ~small
        if outside.any() and (unlikely := np.where(outside, 1 - likely, 0)).max() > 0.5:
            clicks.append(_pixel(unlikely, draft))
            labels.append(0)
    more = Prompt.points(clicks, labels)
    return replace(draft.prompt, point_coords=more.point_coords, point_labels=more.point_labels)


def _with_box(draft: Draft, likely_at: LikelyAt) -> Prompt:
    """The same, in the box of the best mask so far."""
    return replace(_with_clicks(draft, likely_at), box_coords=draft.chosen.box)


def _pixel(weights: Float[np.ndarray, "h w"], draft: Draft) -> tuple[float, float]:
    """The centre of the highest cell, in pixels of the image."""
    y, x = np.unravel_index(int(weights.argmax()), weights.shape)
    (h, w), (full_h, full_w) = weights.shape, draft.chosen.frame.size
    return (float(x) + 0.5) / w * full_w, (float(y) + 0.5) / h * full_h


def _box_mask(box: Box, draft: Draft, shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    (h, w), (full_h, full_w) = shape, draft.chosen.frame.size
    x0, y0, x1, y1 = box
    inside = np.zeros(shape, bool)
    inside[int(y0 / full_h * h) : int(y1 / full_h * h) + 1, int(x0 / full_w * w) : int(x1 / full_w * w) + 1] = True
    return inside
