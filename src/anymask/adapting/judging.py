"""How well a frozen model finds one class by any vectors: on images whose features are computed once.

Masks are judged whatever the presence says, so that a plain phrase is not beaten for its presence alone; the score is
told beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anymask.data.pairs import Pair
from anymask.models.word_space import Answers, WordSpace
from anymask.ops import metrics
from anymask.prompting import place
from anymask.training.caching import FeatureStore, View

SURE = 0.5  # score from which on a query counts


@dataclass(frozen=True)
class Judgement:
    """Of one image: IoU of the model's own answer with the union of the objects, and of its best single mask.

    `score` is how sure the model is that the thing is there, from 0 to 1.
    """

    name: str
    iou: float
    best_iou: float
    score: float


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
        return [self._judge(row, vectors) for row in range(len(self))]

    def mask(self, row: int, vectors: Float[Tensor, "n d"]) -> Bool[np.ndarray, "h w"]:
        """What the model itself answers: the union of the sure queries, or the surest one."""
        masks, chosen, _ = self._masks(row, vectors)
        return np.asarray(masks[chosen].any(axis=0))

    def _judge(self, row: int, vectors: Float[Tensor, "n d"]) -> Judgement:
        masks, chosen, score = self._masks(row, vectors)
        truth = self.truth(row)[None]
        own = float(metrics.iou(masks[chosen].any(axis=0)[None], truth)[0])
        best = float(metrics.iou(masks, np.repeat(truth, len(masks), axis=0)).max())
        return Judgement(self.pairs[row].image.stem, own, best, score)

    @torch.no_grad()
    def _masks(
        self, row: int, vectors: Float[Tensor, "n d"]
    ) -> tuple[Bool[np.ndarray, "q h w"], Bool[np.ndarray, "q"], float]:
        """Every mask at the size of the image, which of them the model means, and how sure it is."""
        answers = self.space.answer(self.features(row), vectors)
        scores = scores_of(answers, self.space.unions)[0]
        sure = scores >= SURE
        chosen = sure if sure.any() else scores == scores.max()
        frame = self.space.model.frame(self.pairs[row].masks.size)
        masks = place(answers.logits[0].float().cpu(), frame) > 0
        return masks.numpy(), chosen.cpu().numpy(), float(scores.max())


def scores_of(answers: Answers, unions: bool) -> Float[Tensor, "b q"]:
    """How sure each mask is, from 0 to 1: of a query its score times the presence, of a union the presence alone."""
    if unions:
        return answers.scores.sigmoid()
    return answers.scores.sigmoid() * answers.presence.sigmoid()[:, None]


def mean_iou(judgements: Sequence[Judgement]) -> float:
    """Over the images."""
    return float(np.mean([one.iou for one in judgements]))
