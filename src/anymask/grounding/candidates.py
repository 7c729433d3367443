"""What a model answers to the box of a name: masks to choose from, judged small, brought to full size when chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from anymask.data.reducing import fitted
from anymask.models.protocol import Model
from anymask.ops import rle
from anymask.ops.rle import Rle
from anymask.prompting import check_finite, place, whole_pixels
from anymask.types import Box, Features, Frame, Prompt

JUDGED_SIDE = 384  # of the copy of the image that masks are judged on, at most: criteria are shares, not pixels


@dataclass(frozen=True, eq=False)
class Candidate:
    """One mask as a model's decoder gives it, and on the reduced copy of the image; `criteria` are those of quality."""

    logits: Float[Tensor, "lh lw"]
    frame: Frame
    limit: Float[np.ndarray, "4"] | None
    predicted_iou: float
    small: Bool[np.ndarray, "h w"]
    criteria: Mapping[str, float] = field(default_factory=dict)

    @property
    def quality(self) -> float:
        """The weighted mean of the criteria; 0 before they are measured."""
        return self.criteria.get("quality", 0.0)

    @property
    def box(self) -> Box:
        """Around the reduced mask, in pixels of the original image; all 0 if it is empty."""
        (h, w), (full_h, full_w) = self.small.shape, self.frame.size
        x0, y0, x1, y1 = (float(side) for side in rle.boxes(rle.encode(self.small[None]))[0])
        return x0 / w * full_w, y0 / h * full_h, x1 / w * full_w, y1 / h * full_h

    def at_full_size(self) -> Rle:
        """The mask in pixels of the original image, within its limit."""
        return rle.encode(_placed(self.logits[None], self.frame, self.limit))[0]


@dataclass(frozen=True, eq=False)
class Draft:
    """One object in the making: what the detector said, and its candidates, the chosen one first."""

    label: str
    detected: float
    prompt: Prompt
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """The best so far."""
        return self.candidates[0]

    def with_more(self, better: Sequence[Candidate]) -> "Draft":
        """With the best of these chosen; the others follow by quality."""
        first = max(better, key=lambda one: one.quality)
        rest = [one for one in (*self.candidates, *better) if one is not first]
        return replace(self, candidates=(first, *sorted(rest, key=lambda one: -one.quality)))


def answer(model: Model, features: Features, prompts: Sequence[Prompt]) -> list[tuple[Candidate, ...]]:
    """The candidates of each prompt, unjudged, in the decoder's order; empty ones are left out unless all are."""
    decoded = model.decode([features], [prompts], multimask_output=True)[0]
    check_finite(decoded.predicted_iou, model.name)
    frame, small = features.frame, _reduced(features.frame)
    scale = np.tile(np.divide(small.size, frame.size)[::-1], 2)  # of x0 y0 x1 y1
    found = []
    for i, (logits, iou) in enumerate(zip(decoded.logits.float(), decoded.predicted_iou.float(), strict=True)):
        limit = None if decoded.limits is None else decoded.limits[i]
        masks = _placed(logits, small, None if limit is None else limit * scale)
        rows = np.flatnonzero(masks.any(axis=(1, 2))).tolist() or [0]
        found.append(tuple(Candidate(logits[r], frame, limit, float(iou[r]), masks[r]) for r in rows))
    return found


def _reduced(frame: Frame) -> Frame:
    """The same frame over the reduced copy of the image."""
    size = fitted(frame.size, JUDGED_SIDE)
    fx, fy = size[1] / frame.size[1], size[0] / frame.size[0]
    x0, y0, x1, y1 = frame.crop_box
    left, top = int(x0 * fx), int(y0 * fy)
    return replace(frame, size=size, crop_box=(left, top, max(left + 1, round(x1 * fx)), max(top + 1, round(y1 * fy))))


def _placed(
    logits: Float[Tensor, "n lh lw"], frame: Frame, limit: Float[np.ndarray, "4"] | None
) -> Bool[np.ndarray, "n h w"]:
    """Masks over the frame's image, within a limit in its pixels."""
    masks = (place(logits, frame) > 0).cpu().numpy()
    x0, y0, x1, y1 = whole_pixels(limit, frame.size)
    inside = np.zeros(frame.size, bool)
    inside[y0:y1, x0:x1] = True
    return np.asarray(masks & inside)
