"""How well names become masks, measured on any COCO-format set, for any way of finding them.

In each image all names that are there, and as many that certainly are not (`naming.draw_absent_names`), are asked for
in one call. What comes back is scored name by name, on the union of its masks, and where the source says that each of
its masks is one object (`true_instances`, unless the file denies it) also mask by mask. A way of finding is a function
of an image and names; several of them answer the same questions side by side, which is what an ablation is.

`text_summary.py` makes a Report of the records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anymask.data.coco import CocoImage, CocoSet
from anymask.data.scorers import FittedScorer, read_scorer
from anymask.evaluation import reports
from anymask.evaluation.baselines import score_map_instances
from anymask.evaluation.labelled import ALL, read_entry, read_set, timed
from anymask.evaluation.naming import all_named, draw_absent_names, present_names
from anymask.grounding.loading import as_settings, load_grounding, with_thresholds
from anymask.grounding.pipeline import Grounding
from anymask.models.protocol import Model
from anymask.ops import metrics, rle
from anymask.ops.average_precision import Matched, match
from anymask.segmentation import segment
from anymask.types import Image, Masks, Prompt

Finder = Callable[[Image, Sequence[str]], Masks]


@dataclass(frozen=True)
class TextSettings:
    """What to measure, and on what."""

    images: Path = field(metadata={"help": "folder of the pictures"})
    annotations: Path = field(metadata={"help": "COCO instance file of these pictures"})
    model: str = field(default="pocket", metadata={"help": "catalogue name, hub id, folder or file of a model"})
    detector: str | None = field(
        default=None,
        metadata={"help": "what finds the names: a detector's name, hub id, folder or file, or windows"},
    )
    scorer: tuple[str, ...] = field(
        default=(), metadata={"help": "what judges with a detector: pocket, or members of an ensemble (repeat)"}
    )
    scorer_file: Path | None = field(default=None, metadata={"help": "weights and thresholds of anymask train scorer"})
    box_threshold: float | None = field(
        default=None, metadata={"help": "a detector's box counts from here (default: 0.3; of windows 0.15)"}
    )
    quality: str | None = field(
        default=None, metadata={"help": "how masks are judged, as text=0.6,compactness=0.2,best_size=0.05-0.5"}
    )
    dtype: str = field(default="float32", metadata={"help": "auto, float32, bfloat16 or float16"})
    runtime: str = field(default="auto", metadata={"help": "auto, eager, compile, openvino or onnxruntime"})
    limit: int | None = field(default=None, metadata={"help": "take this many images, stratified by source"})
    exhaustive: bool = field(
        default=False, metadata={"help": "the file names all that is there: other names of it are not in an image"}
    )
    seed: int = field(default=0, metadata={"help": "of the draw of images, absent names and intervals"})
    ablate: bool = field(default=False, metadata={"help": "also without each component, one by one, in one table"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or mps"})

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        given = {"scorer": self.scorer, "quality": self.quality, "box_threshold": self.box_threshold is not None}
        for name, is_given in given.items():
            if is_given and self.detector is None:
                raise ValueError(f"{name} is for what a detector finds: give a detector (windows needs no weights)")


@dataclass(frozen=True, eq=False)
class NameAnswer:
    """One name asked for in one image: of its union pixels and measures, NaN where not defined; how many masks.

    `matched` are its masks one by one, where the source has true instances.
    """

    name: str
    present: bool
    found: int
    overlap: int = 0
    union: int = 0
    iou: float = np.nan
    precision: float = np.nan
    recall: float = np.nan
    boundary_iou: float = np.nan
    matched: Matched | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """All names of one image, answered in one way; `stages` are the seconds of its parts, as far as they are told.

    `rss_mb` is the memory of the process right after it, with all that is loaded and kept.
    """

    names: tuple[NameAnswer, ...]
    seconds: float
    stages: Mapping[str, float]
    rss_mb: float


@dataclass(frozen=True, eq=False)
class TextRecord:
    """What was measured on one image, by each way of finding; nothing without a name to ask for.

    `total` is the number of images in the run.
    """

    file_name: str
    source: str
    in_train: bool
    answers: Mapping[str, Answer]
    total: int


def finders(model: Model, settings: TextSettings) -> dict[str, Finder]:
    """What is measured, by its label: first what `segment` does, then with `ablate` what it is compared with.

    Ways through a detector share its features of an image, so that the first of them is the slowest.
    """
    fitted = read_scorer(settings.scorer_file) if settings.scorer_file else None
    grounding = None
    if settings.detector is not None or not model.capabilities.text:
        grounding = _grounding(settings, settings.detector, model, fitted)
    full = _Way(model, grounding, fitted)
    found: dict[str, Finder] = {"full": full}
    return found | _compared(full, settings) if settings.ablate else found


@dataclass(frozen=True, eq=False)
class _Way:
    """`segment` with a detector or without, and what it is told about names."""

    model: Model
    grounding: Grounding | None
    fitted: FittedScorer | None
    cleanup: str | None = "adaptive"

    def __call__(self, image: Image, names: Sequence[str]) -> Masks:
        prompts = [Prompt.text(name) for name in names]
        wanted = with_thresholds(prompts, self.fitted) if self.fitted else prompts
        return segment(image, wanted, model=self.model, detector=self.grounding, cleanup=self.cleanup)


def _compared(full: _Way, settings: TextSettings) -> dict[str, Finder]:
    """Without each component in turn; of a model that knows text also its bare score map, and the way of all others."""
    model, grounding = full.model, full.grounding
    found: dict[str, Finder] = {f"clean-up {name}": replace(full, cleanup=kind) for name, kind in _CLEANUPS.items()}
    if grounding is not None:
        for label, change in _WITHOUT.items():
            less = replace(grounding, settings=replace(grounding.settings, **change))
            found[f"without {label}"] = replace(full, grounding=less)
    elif model.capabilities.points:
        found["through windows"] = replace(full, grounding=_grounding(settings, "windows", model, full.fitted))
    if model.capabilities.text:
        found["score map"] = lambda image, names: score_map_instances(model, image, names)
        found["score map, any presence"] = lambda image, names: score_map_instances(model, image, names, presence=0.0)
    return found


_CLEANUPS = {"none": None, "classic": "classic"}
_WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "choice by quality": {"choose": False},
    "refinement": {"refine": False},
    "one name each": {"settle": False},
}


def _grounding(settings: TextSettings, detector: str | None, model: Model, fitted: FittedScorer | None) -> Grounding:
    return load_grounding(
        detector,
        scorer=settings.scorer or (fitted.scorer if fitted else ()),
        settings=as_settings(fitted, settings.quality, settings.box_threshold),
        model=model,
        device=settings.device,
    )


def evaluate_text(ways: Mapping[str, Finder], settings: TextSettings) -> Iterator[TextRecord]:
    """Measure image by image, in the order of the file. Leave the loop to stop: `summarise` takes any part of them.

    Raises ValueError or FileNotFoundError for a set that cannot be measured before the first image is looked at.
    """
    dataset, entries = read_set(settings.annotations, settings.images, settings.limit, settings.seed)
    dataset = all_named(dataset) if settings.exhaustive else dataset
    for entry in entries:
        image, truth = read_entry(dataset, entry), dataset.masks(entry)
        truth = truth[truth.areas > 0]
        absent = draw_absent_names(dataset, entry, np.random.default_rng((settings.seed, entry.id)))
        target = _Target(truth, dataset.crowds(entry), _has_true_instances(dataset, entry))
        names = [*present_names(truth), *absent]
        yield TextRecord(
            file_name=entry.file_name,
            source=entry.source or ALL,
            in_train=dataset.in_train(entry),
            answers={label: _answer(find, image, names, target) for label, find in ways.items()} if names else {},
            total=len(entries),
        )


@dataclass(frozen=True)
class _Target:
    """What there is to find in an image; `crowds` are regions in which finds do not count."""

    truth: Masks
    crowds: Masks
    true_instances: bool


def _answer(find: Finder, image: Image, names: Sequence[str], target: _Target) -> Answer:
    found, seconds = timed(lambda: find(image, names))
    answers = tuple(_score(name, found[found.rows_named(name)], target) for name in names)
    return Answer(answers, seconds, dict(found.made_by.get("seconds", {})), reports.rss_mb())


def _score(name: str, found: Masks, target: _Target) -> NameAnswer:
    truth, matched = target.truth[target.truth.rows_named(name)], None
    if target.true_instances:
        crowds = target.crowds[target.crowds.rows_named(name)]
        matched = match(found.rles, found.scores, truth.rles, crowds.rles)
    if not len(truth):
        return NameAnswer(name, present=False, found=len(found), matched=matched)
    unions = [rle.merge(one.rles, target.truth.size) for one in (found, truth)]
    predicted, wanted = (rle.decode([one], target.truth.size) for one in unions)
    precision, recall = metrics.precision_recall(predicted, wanted)
    return NameAnswer(
        name=name,
        present=True,
        found=len(found),
        overlap=int(np.count_nonzero(predicted & wanted)),
        union=int(np.count_nonzero(predicted | wanted)),
        iou=float(metrics.iou(predicted, wanted)[0]),
        precision=float(precision[0]),
        recall=float(recall[0]),
        boundary_iou=float(metrics.boundary_iou(predicted, wanted)[0]),
        matched=matched,
    )


def _has_true_instances(dataset: CocoSet, entry: CocoImage) -> bool:
    return bool(dataset.sources.get(entry.source, {}).get("true_instances", True))
