"""What a labelled image teaches a scorer: candidates beside the truth, true masks beside names, names beside scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_area, box_iou

from anymask.data.reducing import fitted
from anymask.grounding.candidates import JUDGED_SIDE, answer
from anymask.grounding.pipeline import Grounding
from anymask.grounding.protocol import Detections, DetectionThresholds, Scorer
from anymask.grounding.quality import QualityWeights, measure_quality
from anymask.grounding.score import EnsembleScorer
from anymask.models.protocol import Model
from anymask.ops import metrics, resize, rle
from anymask.ops.boxes import jittered
from anymask.types import Image, Masks, Prompt

JITTER = 0.1  # of the box's sides, as in SAM, section A: a detector's box is not the truth's
LOWEST = 1 / 3  # of a detector's own threshold: what it is less sure of is not looked at
TOUCHES = 0.1  # IoU with a true box from which on a find is of that object


@dataclass(frozen=True)
class Choice:
    """The candidates of one box, a value each; `text` has a row for each member of the scorer."""

    iou: Sequence[float]
    predicted_iou: Sequence[float]
    share: Sequence[float]
    compactness: Sequence[float]
    smoothness: Sequence[float]
    text: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Look:
    """A true mask: the probability of each name asked for, a row for each member; `own` is the column of its name."""

    own: int
    probs: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Example:
    """How sure a model or detector (`whose`) was of a name that was there (`positive`), or was not."""

    whose: str
    name: str
    score: float
    positive: bool


@dataclass(frozen=True)
class Measured:
    """All of one image; `shares` are those of the image that its objects cover."""

    file_name: str
    shares: Sequence[float]
    choices: Sequence[Choice]
    looks: Sequence[Look]
    examples: Sequence[Example]


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about an image: its objects, drawn ones of these, and names, those present first.

    The scorer judges by `names`, thresholds are learned from `names` and `absent`. `certain` are the present names all
    of whose objects are in `truth`, so that what is found elsewhere is wrong.
    """

    truth: Masks
    drawn: Masks
    names: Sequence[str]
    absent: Sequence[str]
    certain: Sequence[str]
    rng: np.random.Generator


def measured_of(row: Mapping[str, Any]) -> Measured:
    """From what `dataclasses.asdict` made of it."""
    return Measured(
        str(row["file_name"]),
        row["shares"],
        [Choice(**one) for one in row["choices"]],
        [Look(**one) for one in row["looks"]],
        [Example(**one) for one in row["examples"]],
    )


def members_of(scorer: Scorer) -> dict[str, Scorer]:
    """Its members by name, each a scorer; one that is no ensemble is its only member."""
    if not isinstance(scorer, EnsembleScorer):
        return {scorer.name: scorer}
    return {model.member.name: replace(scorer, models=(model,)) for model in scorer.models}


def measure(
    model: Model, grounding: Grounding, image: Image, question: Question, file_name: str, detects: bool
) -> Measured:
    """Everything of one image, encoded once; with `detects` also how sure the detector is of names."""
    size = fitted(image.size, JUDGED_SIDE)
    small = np.asarray([resize.cover(mask, size) >= 0.5 for mask in question.drawn.masks], bool).reshape(-1, *size)
    choices, looks = _judged(model, grounding, image, question, small)
    examples = _presences(model, grounding, image, question) if model.capabilities.text else []
    examples += _detected(grounding, image, question) if detects else []
    shares = (question.truth.areas / (image.size[0] * image.size[1])).tolist()
    return Measured(file_name, shares, choices, looks, examples)


def _judged(
    model: Model, grounding: Grounding, image: Image, question: Question, small: Bool[np.ndarray, "n h w"]
) -> tuple[list[Choice], list[Look]]:
    """The candidates of each box, true and jittered, and the true masks themselves, by all criteria."""
    rows = np.flatnonzero(small.any(axis=(1, 2)))
    if not len(rows):
        return [], []
    labels = [question.drawn.labels[row] for row in rows]
    owns = [list(question.names).index(label) for label in labels]
    answers = _answers(model, grounding, image, question, rows) if model.capabilities.boxes else []
    flat = [one for candidates in answers for one in candidates]
    masks = np.stack([*(one.small for one in flat), *small[rows]])
    scorers = members_of(grounding.scorer).values() if grounding.scorer else ()
    probs = np.stack([scorer.score_masks(image, masks, question.names) for scorer in scorers])
    choices, start = [], 0
    for i, candidates in enumerate(answers):
        part, object_row = slice(start, start + len(candidates)), i % len(rows)
        start += len(candidates)
        shape = measure_quality(masks[part], np.zeros(len(candidates), np.float32), QualityWeights())
        true = np.broadcast_to(small[rows[object_row]], masks[part].shape)
        choices.append(
            Choice(
                iou=_listed(metrics.iou(masks[part], true)),
                predicted_iou=_listed([one.predicted_iou for one in candidates]),
                share=_listed(masks[part].mean(axis=(1, 2))),
                compactness=_listed(shape["compactness"]),
                smoothness=_listed(shape["smoothness"]),
                text=[_listed(row) for row in probs[:, part, owns[object_row]]],
            )
        )
    looks = [Look(own, [_listed(row) for row in probs[:, start + i]]) for i, own in enumerate(owns)]
    return choices, looks


def _answers(model: Model, grounding: Grounding, image: Image, question: Question, rows: np.ndarray) -> list[Any]:
    """The candidates of the true boxes, then those of the jittered ones, asked for as the pipeline does."""
    boxes = rle.boxes(question.drawn.rles)[rows]
    asked = np.concatenate([boxes, jittered(boxes, JITTER, image.size, question.rng)]).tolist()
    prompts = [Prompt.box(*box) for box in asked]
    if model.capabilities.named_prompts:
        names = [question.drawn.labels[row] for row in (*rows, *rows)]
        prompts = [prompt + Prompt.text(name) for prompt, name in zip(prompts, names, strict=True)]
    return list(answer(model, grounding.cache.encode(model, image), prompts))


def _presences(model: Model, grounding: Grounding, image: Image, question: Question) -> list[Example]:
    names = [*_present(question), *question.absent]
    if not names:
        return []
    text = model.encode_text([Prompt.text(name) for name in names])
    found = model.ground(grounding.cache.encode(model, image), text, instances=False)
    return [
        Example(model.name, name, round(float(one.presence), 5), name not in question.absent)
        for name, one in zip(names, found, strict=True)
    ]


def _detected(grounding: Grounding, image: Image, question: Question) -> list[Example]:
    """Of a name that is there the surest find on each object (0 if none) and the surest beside all; of another its own.

    A threshold is for each box, so each object counts. What lies beside a name's objects counts only where the
    annotations hold all that bears it.
    """
    detector, present = grounding.detector, _present(question)
    names = [*present, *question.absent]
    if not names:
        return []
    floor = LOWEST * detector.thresholds.box
    found = detector.detect(image, names, DetectionThresholds(floor, min(detector.thresholds.text, floor)))
    rows = [(name, found.nearest.get(name, 0.0), False) for name in question.absent]
    for name in present:
        rows += [(name, score, True) for score in _surest_on(found, name, question.drawn)]
        rows += [(name, _surest_beside(found, name, question.truth), False)] if name in question.certain else []
    return [Example(detector.name, name, round(float(score), 5), positive) for name, score, positive in rows]


def _surest_on(found: Detections, name: str, truth: Masks) -> list[float]:
    """Of each object of the name the highest score of a find on it; 0 where there is none."""
    boxes, scores = _finds(found, name)
    touches = box_iou(boxes, _boxes_of(truth, name)).numpy() >= TOUCHES
    return [float(scores[column].max(initial=0.0)) for column in touches.T]


def _surest_beside(found: Detections, name: str, truth: Masks) -> float:
    """The highest score of a find that touches no object of the name and lies in none; 0 where there is none."""
    (boxes, scores), true = _finds(found, name), _boxes_of(truth, name)
    iou = box_iou(boxes, true)
    shared = iou / (1 + iou) * (box_area(boxes)[:, None] + box_area(true))
    on = (iou >= TOUCHES) | (shared >= 0.5 * box_area(boxes)[:, None])
    return float(scores[~on.any(dim=1).numpy()].max(initial=0.0))


def _finds(found: Detections, name: str) -> tuple[Float[Tensor, "n 4"], Float[np.ndarray, "n"]]:
    mine = np.asarray([label == name for label in found.labels], bool)
    boxes = np.asarray(found.boxes, np.float32).reshape(-1, 4)[mine]
    return torch.from_numpy(boxes), np.asarray(found.scores, np.float64)[mine]


def _boxes_of(truth: Masks, name: str) -> Float[Tensor, "m 4"]:
    return torch.from_numpy(truth[truth.rows_named(name)].boxes)


def _present(question: Question) -> list[str]:
    there = set(question.truth.labels)
    return [name for name in question.names if name in there]


def _listed(values: Float[np.ndarray, "n"] | Sequence[float]) -> list[float]:
    return [round(float(value), 5) for value in values]
