"""What a model answers to boxes: masks on a reduced copy and at full size, neither beyond the limit of its prompt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anymask.grounding.candidates import JUDGED_SIDE, answer
from anymask.models.protocol import Decoded
from anymask.ops import rle
from anymask.prompting import predict
from anymask.types import Features, Frame, Prompt
from standin import Standin

SIZE = (300, 768)
LIMIT = (100.4, 50.6, 401.0, 250.0)


class Everywhere(Standin):
    """Of two candidates one marks all of the image, within the limit alone, and the other nothing."""

    def __init__(self, predicted_iou: float = 0.5, limits: np.ndarray | None = None) -> None:
        super().__init__()
        self.predicted_iou, self.limit = predicted_iou, limits

    def decode(self, features, prompts, multimask_output=None):
        logits = torch.full((1, 2, 8, 8), 5.0)
        logits[:, 1] = -5
        return [Decoded(logits, torch.full((1, 2), self.predicted_iou), self.limit)]


FEATURES = Features("standin", Frame.stretched(SIZE, (32, 32)), {})
BOX = Prompt.box(*LIMIT)


@pytest.mark.parametrize("limit", [None, LIMIT, (-20, -5, 300, 900)])
def test_candidates_are_the_masks_of_predict(limit: tuple[float, ...] | None) -> None:
    model = Everywhere(limits=None if limit is None else np.asarray([limit], np.float32))
    [[candidate]] = answer(model, FEATURES, [BOX])  # the empty one is left out
    assert candidate.at_full_size() == predict(model, FEATURES, [BOX], multimask_output=True).rles[0]


def test_the_reduced_copy_has_the_same_limit() -> None:
    [[candidate]] = answer(Everywhere(limits=np.asarray([LIMIT], np.float32)), FEATURES, [BOX])
    assert candidate.small.shape == (150, JUDGED_SIDE)
    assert rle.boxes(rle.encode(candidate.small[None])).tolist() == [[50, 25, 200, 125]]
    assert candidate.box == (100, 50, 400, 250)


def test_a_small_image_is_judged_as_it_is() -> None:
    features = replace(FEATURES, frame=Frame.stretched((30, 40), (32, 32)))
    [[candidate]] = answer(Everywhere(), features, [Prompt.box(1, 1, 9, 9)])
    assert candidate.small.shape == (30, 40) and candidate.small.all()


def test_nan_is_named() -> None:
    with pytest.raises(ValueError, match=r"^standin answers with NaN: its weights are broken, or its dtype is too"):
        answer(Everywhere(float("nan")), FEATURES, [BOX])
