"""A simulated user who clicks until the mask is right (Sofiiuk et al. 2021, RITM; Kirillov et al. 2023, section D.2).

The first click is at the point of the object farthest from its border; each further one is in the middle of the largest
error region, positive where the object was missed, negative where it was overrun. All clicks so far and the logits of
the answer before are passed along. The objects of one image are clicked together, one decode a round.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from anymask.models.protocol import Model
from anymask.ops import metrics
from anymask.ops.clicks import first_click, next_click
from anymask.prompting import predict
from anymask.types import Features, Masks, Prompt

GOOD_ENOUGH = 0.85  # the highest NoC threshold: an object this good gets no click beyond the fixed ones


@dataclass(frozen=True)
class Clicked:
    """`ious[:, k]` is the IoU after click k + 1; `best_of_first` that of the best candidate after the first click.

    `predicted_of_first` is the IoU that the model predicted of its answer to the first click.
    """

    ious: Float[np.ndarray, "n clicks"]
    best_of_first: Float[np.ndarray, "n"]
    predicted_of_first: Float[np.ndarray, "n"]


def click(
    model: Model, features: Features, targets: Bool[np.ndarray, "n h w"], *, clicks: int, noc_clicks: int
) -> Clicked:
    """Click each target `clicks` times, and on to `noc_clicks` times while its IoU is below `GOOD_ENOUGH`.

    After the first click the mask that the model gives by itself counts and goes on, since a user would get that one.
    Who is not clicked any more (good enough, or no error left) keeps the last IoU.
    """
    prompts = [Prompt.point(*first_click(target)) for target in targets]
    candidates = predict(model, features, prompts, multimask_output=True)
    chosen = predict(model, features, prompts)
    answers = list(chosen)
    ious = np.empty((len(targets), max(clicks, noc_clicks)))
    ious[:, :] = metrics.iou(chosen.masks, targets)[:, None]
    for k in range(1, ious.shape[1]):
        open_rows = np.flatnonzero((ious[:, k] < GOOD_ENOUGH) | (k < clicks)).tolist()
        rows = [row for row in open_rows if _add_click(prompts, row, answers[row], targets[row])]
        if not rows:
            break
        renewed = predict(model, features, [prompts[row] + Prompt.refine(answers[row]) for row in rows])
        for row, answer in zip(rows, renewed, strict=True):
            answers[row] = answer
        ious[rows, k:] = metrics.iou(renewed.masks, targets[rows])[:, None]
    best = _best_of_each(metrics.iou(candidates.masks, targets[candidates.ids - 1]), candidates.ids)
    return Clicked(ious, best, np.asarray(chosen.scores, np.float64))


def _add_click(prompts: list[Prompt], row: int, answer: Masks, target: Bool[np.ndarray, "h w"]) -> bool:
    """Whether there was an error left to click on; the click is added to `prompts[row]`."""
    found = next_click(answer.masks[0], target)
    if found is not None:
        prompts[row] = prompts[row] + Prompt.point(*found)
    return found is not None


def _best_of_each(ious: Float[np.ndarray, "m"], ids: Int[np.ndarray, "m"]) -> Float[np.ndarray, "n"]:
    best = np.zeros(int(ids.max(initial=0)))
    np.maximum.at(best, ids - 1, ious)
    return best
