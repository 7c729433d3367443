"""What a labelled image teaches a scorer: candidates beside the truth, true masks beside names, names beside scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torchvision.ops import box_iou

from anymask.grounding.candidates import answer, judged_size
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
TOUCHES = 0.1  # IoU with a true box: below it a find is of something else


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
    size = judged_size(image.size)
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
    scorers = members_of(grounding.scorer).values()
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
    """Of a name that is there the surest find on it (0 if none), and the surest beside it; of another one its surest.

    What is found beside a name counts only where the annotations hold all that bears it.
    """
    detector, present = grounding.detector, _present(question)
    names = [*present, *question.absent]
    if not names:
        return []
    floor = LOWEST * detector.thresholds.box
    found = detector.detect(image, names, DetectionThresholds(floor, min(detector.thresholds.text, floor)))
    rows = [(name, found.nearest.get(name, 0.0), False) for name in question.absent]
    for name in present:
        on, beside = _surest(found, name, question.truth)
        rows.append((name, on, True))
        rows += [(name, beside, False)] if name in question.certain else []
    return [Example(detector.name, name, round(float(score), 5), positive) for name, score, positive in rows]


def _surest(found: Detections, name: str, truth: Masks) -> tuple[float, float]:
    """The highest score of the finds on an object of the name, and of those on none; 0 where there are none."""
    mine = np.asarray([label == name for label in found.labels], bool)
    true = rle.boxes([one for one, label in zip(truth.rles, truth.labels, strict=True) if label == name])
    boxes = torch.from_numpy(np.asarray(found.boxes, np.float32)[mine].reshape(-1, 4))
    touches = (box_iou(boxes, torch.from_numpy(true)) >= TOUCHES).any(dim=1).numpy()
    scores = np.asarray(found.scores, np.float64)[mine]
    return float(scores[touches].max(initial=0.0)), float(scores[~touches].max(initial=0.0))


def _present(question: Question) -> list[str]:
    there = set(question.truth.labels)
    return [name for name in question.names if name in there]


def _listed(values: Float[np.ndarray, "n"] | Sequence[float]) -> list[float]:
    return [round(float(value), 5) for value in values]
