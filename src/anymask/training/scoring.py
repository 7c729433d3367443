"""How good a model is on validation images while it is fine-tuned: one box and one click for each object, at full size.

A short form of `evaluation.promptable`, which measures more and takes longer.
"""

from collections.abc import Callable, Sequence

import numpy as np

from anymask.data.pairs import Pair
from anymask.models.protocol import Model
from anymask.ops import metrics
from anymask.ops.clicks import first_click
from anymask.prompting import predict
from anymask.types import Features, Prompt

MOST_OBJECTS = 16  # of an image


class Scorer:
    """The questions, made once: they are the same for every state of the model."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = [Pair(pair.image, pair.masks[:MOST_OBJECTS]) for pair in pairs]
        self.prompts = [_prompts(pair) for pair in self.pairs]

    def score(self, model: Model, features_of: Callable[[Pair], Features]) -> dict[str, float]:
        """Mean IoU over all objects, by box and by one click; nothing without an image."""
        boxes, clicks = list[float](), list[float]()
        for pair, prompts in zip(self.pairs, self.prompts, strict=True):
            answers = predict(model, features_of(pair), prompts).masks
            truth = pair.masks.masks
            boxes += metrics.iou(answers[: len(truth)], truth).tolist()
            clicks += metrics.iou(answers[len(truth) :], truth).tolist()
        return {"box_miou": float(np.mean(boxes)), "click1_miou": float(np.mean(clicks))} if boxes else {}


def _prompts(pair: Pair) -> list[Prompt]:
    boxes = [Prompt.box(*box) for box in pair.masks.boxes.tolist()]
    return boxes + [Prompt.point(*first_click(mask)) for mask in pair.masks.masks]
