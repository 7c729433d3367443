"""How well a frozen model finds one class by any vectors: on images whose features are computed once.

Masks are judged whatever the presence says, so that a plain phrase is not beaten for its presence alone; the score is
told beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anymask.adapting.objective import iou_matrix
from anymask.data.pairs import Pair
from anymask.models.promptable import mask_logits
from anymask.models.word_space import Answers, WordSpace
from anymask.ops import metrics
from anymask.prompting import place
from anymask.training.caching import FeatureStore, View


@dataclass(frozen=True)
class Judgement:
    """Of one image: IoU of the model's own answer with the union of the objects, and of its best single mask.

    `score` is how sure the model is that the thing is there, from 0 to 1; `found` whether that is enough for it.
    """

    name: str
    iou: float
    best_iou: float
    score: float
    found: bool


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images with the masks of one class, as a frozen model sees them."""

    space: WordSpace
    pairs: Sequence[Pair]
    store: FeatureStore

    def __len__(self) -> int:
        return len(self.pairs)

    def features(self, row: int) -> dict[str, Tensor]:
        """Of one image, as a batch of one."""
        pair = self.pairs[row]
        return self.space.prepare(self.store.get(pair.image, pair.masks.size, View()))

    def truth(self, row: int) -> Bool[np.ndarray, "h w"]:
        """The union of the objects."""
        return np.asarray(self.pairs[row].masks.masks.any(axis=0))

    def judge(self, vectors: Float[Tensor, "n d"]) -> list[Judgement]:
        """What a phrase of these vectors finds in every image."""
        rows, count = range(len(self)), self.space.at_once
        return [one for start in rows[::count] for one in self._judge(rows[start : start + count], vectors)]

    def mask(self, row: int, vectors: Float[Tensor, "n d"]) -> Bool[np.ndarray, "h w"]:
        """What the model itself answers: the union of the sure queries, or the surest one."""
        answers = self._answers([row], vectors)
        return self._union(row, answers.logits[0][self._meant(scores_of(answers, self.space.unions)[0])])

    def _judge(self, rows: Sequence[int], vectors: Float[Tensor, "n d"]) -> list[Judgement]:
        answers = self._answers(rows, vectors)
        scores = scores_of(answers, self.space.unions)
        return [self._judge_one(row, answers.logits[i], scores[i]) for i, row in enumerate(rows)]

    def _judge_one(self, row: int, logits: Float[Tensor, "q lh lw"], scores: Float[Tensor, "q"]) -> Judgement:
        """The best of many masks is sought among the small ones: 200 of full size take much memory."""
        pair, truth = self.pairs[row], self.truth(row)
        own = best = iou_of(self._union(row, logits[self._meant(scores)]), truth)
        if len(logits) > 1:
            frame, size = self.space.model.frame(pair.masks.size), (logits.shape[1], logits.shape[2])
            small = torch.from_numpy(mask_logits(truth, frame, size, 0.5) + 0.5).to(logits)
            nearest = int(iou_matrix(logits, small[None])[:, 0].argmax())
            best = iou_of(self._union(row, logits[nearest : nearest + 1]), truth)
        score = float(scores.max())
        return Judgement(pair.image.stem, own, max(own, best), score, score >= self.space.sure)

    def _meant(self, scores: Float[Tensor, "q"]) -> Bool[Tensor, "q"]:
        """The masks that count: those that are sure, or the surest."""
        sure = scores >= self.space.sure
        return sure if bool(sure.any()) else scores == scores.max()

    @torch.no_grad()
    def _answers(self, rows: Sequence[int], vectors: Float[Tensor, "n d"]) -> Answers:
        return self.space.answer(stacked([self.features(row) for row in rows]), vectors)

    def _union(self, row: int, logits: Float[Tensor, "q lh lw"]) -> Bool[np.ndarray, "h w"]:
        """Of some masks, at the size of the image."""
        placed = place(logits.float().cpu(), self.space.model.frame(self.pairs[row].masks.size))
        return np.asarray((placed > 0).any(dim=0).numpy())


def stacked(features: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Features of several images as a batch."""
    if len(features) == 1:
        return dict(features[0])
    return {name: torch.cat([one[name] for one in features]) for name in features[0]}


def scores_of(answers: Answers, unions: bool) -> Float[Tensor, "b q"]:
    """How sure each mask is, from 0 to 1: of a query its score times the presence, of a union the presence alone."""
    if unions:
        return answers.scores.sigmoid()
    return answers.scores.sigmoid() * answers.presence.sigmoid()[:, None]


def iou_of(found: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Of one mask."""
    return float(metrics.iou(found[None], truth[None])[0])


def mean_iou(judgements: Sequence[Judgement]) -> float:
    """Over the images."""
    return float(np.mean([one.iou for one in judgements]))
