"""How names are answered in one image: those that are there, and as many that are not.

All masks of one name are one target, their union. A name is absent for certain only where the set says that its source
names everything (`text_exhaustive` in its row of `sources`, with the candidates `names`), and no crowd of it was left
out of the annotations (`crowd_categories` of the image).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from anymask.data.coco import UNNAMED, CocoImage, CocoSet
from anymask.models.protocol import Grounded, Model
from anymask.ops import metrics
from anymask.prompting import place
from anymask.types import Features, Masks, Prompt

LEAST_ABSENT = 2  # absent names asked for in an image with fewer present ones


@dataclass(frozen=True)
class NameRecord:
    """One name asked for in one image; `iou`, `precision` and `recall` are of pixels, NaN where not defined."""

    name: str
    present: bool
    found: bool
    presence: float
    iou: float
    precision: float
    recall: float


def ask(model: Model, features: Features, truth: Masks, absent: Sequence[str]) -> tuple[NameRecord, ...]:
    """Ask for every label of `truth` and every name of `absent`, and score the union that each finds."""
    present = present_names(truth)
    names = [*present, *absent]
    if not names:
        return ()
    grounded = model.ground(features, model.encode_text([Prompt.text(name) for name in names]), instances=False)
    threshold = model.capabilities.thresholds.presence
    return tuple(
        _score(name, one, _union_of(one, features, threshold), union_of(truth, (name,)) if name in present else None)
        for name, one in zip(names, grounded, strict=True)
    )


def present_names(truth: Masks) -> list[str]:
    """The names of the annotated objects, in order of appearance."""
    return [name for name in dict.fromkeys(truth.labels) if name not in (UNNAMED, "")]


def union_of(truth: Masks, names: Collection[str]) -> Bool[np.ndarray, "h w"]:
    """All masks of these names as one."""
    rows = [row for row, label in enumerate(truth.labels) if label in names]
    return np.asarray(truth[rows].masks.any(axis=0))


def all_named(dataset: CocoSet) -> CocoSet:
    """The set with the word of its user that its sources name everything, but for those that say otherwise."""
    names = [name for name in dataset.categories.values() if name not in (UNNAMED, "")]
    said = {entry.source: {"text_exhaustive": True, "names": names} for entry in dataset.images}
    return replace(dataset, sources={name: {**row, **dataset.sources.get(name, {})} for name, row in said.items()})


def draw_absent_names(
    dataset: CocoSet, entry: CocoImage, rng: np.random.Generator, least: int = LEAST_ABSENT
) -> list[str]:
    """As many names that are certainly not in the image as there are names in it, or `least`, as far as there are."""
    source = dataset.sources.get(entry.source, {})
    if not source.get("text_exhaustive", False):
        return []
    present = present_names(dataset.masks(entry))
    hidden = {*present, *dataset.crowds(entry).labels, *entry.extra.get("crowd_categories", ()), UNNAMED}
    candidates = [name for name in source.get("names", ()) if name not in hidden]
    wanted = min(max(least, len(present)), len(candidates))
    return [candidates[i] for i in sorted(rng.choice(len(candidates), wanted, replace=False))] if wanted else []


def _union_of(grounded: Grounded, features: Features, threshold: float) -> Bool[np.ndarray, "h w"]:
    """What `anymask.names.find(..., semantic=True)` answers: nothing for a name judged absent."""
    if grounded.presence < threshold:
        return np.zeros(features.frame.size, bool)
    return np.asarray((place(grounded.semantic_logits[None], features.frame) > 0).cpu().numpy()[0])


def _score(
    name: str, grounded: Grounded, predicted: Bool[np.ndarray, "h w"], target: Bool[np.ndarray, "h w"] | None
) -> NameRecord:
    iou = precision = recall = np.full(1, np.nan)
    if target is not None:
        iou = metrics.iou(predicted[None], target[None])
        precision, recall = metrics.precision_recall(predicted[None], target[None])
    return NameRecord(
        name=name,
        present=target is not None,
        found=bool(predicted.any()),
        presence=float(grounded.presence),
        iou=float(iou[0]),
        precision=float(precision[0]),
        recall=float(recall[0]),
    )
