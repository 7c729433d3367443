"""Names to masks with a model that knows no names: detect, ask for candidates, judge them, ask again, settle.

    image, names -> Detector -> boxes -> Model -> candidates -> Scorer, quality -> the best of each -> refine
    -> one mask and one name an object -> Masks

Every stage is timed, and what a user should know of the run is in `Masks.made_by`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float

from anymask.grounding.candidates import Candidate, Draft, answer
from anymask.grounding.instances import one_each, taker, why_missing, without
from anymask.grounding.protocol import Detections, DetectionThresholds, Detector, ScoreMaps, Scorer
from anymask.grounding.quality import CRITERIA, QualityWeights, measure_quality
from anymask.grounding.refine import refine
from anymask.grounding.windows import WindowDetector
from anymask.models.feature_cache import FeatureCache
from anymask.models.protocol import Model
from anymask.ops.boxes import iou as box_iou
from anymask.prompting import crop_around
from anymask.types import Image, Masks, Prompt

MOST_OBJECTS = 100  # boxes that are asked for, the surest
LEAST_SCORE = 0.13  # as a share of the threshold: less sure finds of windows are noise
LEAST_SHARE = 0.15  # of the score of the name's surest: likewise
SHOWN = 3  # candidates of the surest object that the result keeps
ZOOM_MARGIN = 0.5  # around the box of a closer view, in its longer side


@dataclass(frozen=True)
class GroundingSettings:
    """From when on a find counts (None: what the detector recommends), how masks are judged, and what is done."""

    box_threshold: float | None = None
    text_threshold: float | None = None
    quality: QualityWeights = QualityWeights()
    choose: bool = True  # the candidate of the highest quality, else the one that the model is surest of
    refine: bool = True
    settle: bool = True

    def __post_init__(self) -> None:
        for name in ("box_threshold", "text_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value:g}")


@dataclass(frozen=True, eq=False)
class Grounding:
    """A detector and a scorer, ready for any model and image; `notes` say what stands in for what, and why.

    Without a scorer, masks are judged by how well they fill the box that was found.
    """

    detector: Detector
    scorer: Scorer | None
    settings: GroundingSettings = GroundingSettings()
    cache: FeatureCache = field(default_factory=FeatureCache)
    notes: tuple[str, ...] = ()

    def find(self, model: Model, image: Image, prompts: Sequence[Prompt], *, zoom: bool = False) -> Masks:
        """The instances of every name, none that a negative name claims more surely; ids from 1, the surest first."""
        return _Search(self, model, image, tuple(prompts), zoom).run()


@dataclass(frozen=True, eq=False)
class _Search:
    """One image and its names on their way through the stages."""

    grounding: Grounding
    model: Model
    image: Image
    prompts: tuple[Prompt, ...]
    zoom: bool
    seconds: dict[str, float] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)  # the name that covers what was found of a name

    def run(self) -> Masks:
        with self._timed("detect"):
            found = self.grounding.detector.detect(self.image, self.names, self._lowest())
        drafts, report = self._draft(found), None
        if drafts and self.grounding.settings.refine:
            with self._timed("refine"):
                drafts, report = refine(drafts, self._ask_again, _reader(found.maps), self.zoom)
        with self._timed("settle"):
            masks = self._settle(drafts)
        return replace(masks, made_by=self._made_by(found, masks, {} if report is None else asdict(report)))

    @cached_property
    def wanted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.title for prompt in self.prompts))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Those asked for, then those that they are not."""
        against = (name for prompt in self.prompts for name in prompt.negative_names)
        return tuple(dict.fromkeys([*self.wanted, *against]))

    @cached_property
    def thresholds(self) -> DetectionThresholds:
        settings, usual = self.grounding.settings, self.grounding.detector.thresholds
        box = usual.box if settings.box_threshold is None else settings.box_threshold
        return DetectionThresholds(box, usual.text if settings.text_threshold is None else settings.text_threshold)

    @cached_property
    def learned(self) -> dict[str, float]:
        """The thresholds of this detector's scores that prompts bring along, by name."""
        whose = self.grounding.detector.name
        return {p.title: p.thresholds[whose] for p in self.prompts if whose in p.thresholds}

    def threshold_of(self, name: str) -> float:
        """Learned for this name, or that of all."""
        return float(self.learned.get(name, self.thresholds.box))

    def _lowest(self) -> DetectionThresholds:
        """What the detector must not leave out; where nobody says from when on a word counts, as soon as its name."""
        box = min(self.threshold_of(name) for name in self.names)
        asked = self.grounding.settings.text_threshold
        return DetectionThresholds(box, min(self.thresholds.text, box) if asked is None else asked)

    def _draft(self, found: Detections) -> list[Draft]:
        """The candidates of every box that counts, judged."""
        rows = [row for row, label in enumerate(found.labels) if found.scores[row] >= self.threshold_of(label)]
        rows = sorted(rows, key=lambda row: -found.scores[row])[:MOST_OBJECTS]
        if not rows:
            return []
        prompts = [self._prompt(found, row) for row in rows]
        with self._timed("encode"):
            features = self.grounding.cache.encode(self.model, self.image)
        with self._timed("decode"):
            answers = answer(self.model, features, prompts)
        drafts = [
            Draft(found.labels[row], float(found.scores[row]), prompt, candidates)
            for row, prompt, candidates in zip(rows, prompts, answers, strict=True)
        ]
        with self._timed("judge"):
            judged = self._judged(drafts, answers)
        return [replace(draft, candidates=ranked) for draft, ranked in zip(drafts, judged, strict=True)]

    def _prompt(self, found: Detections, row: int) -> Prompt:
        """The box, and for a model that lets a name join it, the name."""
        x0, y0, x1, y1 = (float(side) for side in found.boxes[row])
        prompt = Prompt.box(x0, y0, x1, y1)
        return prompt + Prompt.text(found.labels[row]) if self.model.capabilities.named_prompts else prompt

    def _judged(self, drafts: Sequence[Draft], answers: Sequence[tuple[Candidate, ...]]) -> list[tuple[Candidate, ...]]:
        """With their criteria, the best first: by quality, or as the model ranks them."""
        owners = [draft for draft, candidates in zip(drafts, answers, strict=True) for _ in candidates]
        flat = [one for candidates in answers for one in candidates]
        small = np.stack([one.small for one in flat])
        found = measure_quality(small, self._text(owners, flat, small), self.grounding.settings.quality)
        judged = iter(
            replace(one, criteria={name: float(values[row]) for name, values in found.items()})
            for row, one in enumerate(flat)
        )
        rank = (lambda one: -one.quality) if self.grounding.settings.choose else (lambda one: -one.predicted_iou)
        return [tuple(sorted((next(judged) for _ in candidates), key=rank)) for candidates in answers]

    def _text(
        self, owners: Sequence[Draft], flat: Sequence[Candidate], small: Bool[np.ndarray, "n h w"]
    ) -> Float[np.ndarray, "n"]:
        """What the scorer says of each mask; without one, how well it fills the box that was found."""
        scorer = self.grounding.scorer
        if scorer is None:
            return np.asarray([_fills(owner, one) for owner, one in zip(owners, flat, strict=True)])
        rows = [self.names.index(owner.label) for owner in owners]
        return scorer.score_masks(self.image, small, self.names)[np.arange(len(flat)), rows]

    def _ask_again(
        self, drafts: Sequence[Draft], prompts: Sequence[Prompt], closer: bool
    ) -> list[tuple[Candidate, ...]]:
        if not closer:
            features = self.grounding.cache.encode(self.model, self.image)
            return self._judged(drafts, answer(self.model, features, prompts))
        answers = [self._look_closer(draft, prompt) for draft, prompt in zip(drafts, prompts, strict=True)]
        return [self._judged([draft], [more])[0] if more else () for draft, more in zip(drafts, answers, strict=True)]

    def _look_closer(self, draft: Draft, prompt: Prompt) -> tuple[Candidate, ...]:
        crop = crop_around(np.asarray(draft.chosen.box), self.image.size, ZOOM_MARGIN)
        if crop is None:
            return ()
        features = self.grounding.cache.encode(self.model, self.image, crop)
        return answer(self.model, features, [prompt])[0]

    def _settle(self, drafts: Sequence[Draft]) -> Masks:
        """Masks at full size, one an object, the surest first."""
        empty = Masks.empty(self.image.size)
        drafts = [draft for draft in drafts if draft.chosen.small.any()]
        if not drafts:
            return empty
        masks = _as_masks([draft.chosen for draft in drafts], drafts, [score_of(draft) for draft in drafts])
        rows = np.asarray([label in self.wanted for label in masks.labels])
        kept = without(masks[rows], masks[~rows])
        kept = one_each(kept) if self.grounding.settings.settle else kept
        kept = kept[np.flatnonzero(kept.scores >= self._least(kept))]
        kept = kept[np.argsort(-kept.scores, kind="stable")]
        found = {name: own for name in self.wanted if (own := masks.rows_named(name)).any()}
        self.taken.update({name: taker(masks[own], masks[~own]) for name, own in found.items()})
        return replace(kept, ids=np.arange(1, len(kept) + 1), candidates=self._weighed(drafts))

    def _least(self, masks: Masks) -> Float[np.ndarray, "n"]:
        """The score that each row must have: windows find noise beside what they find."""
        if not isinstance(self.grounding.detector, WindowDetector):
            return np.zeros(len(masks))
        surest = {name: masks.scores[masks.rows_named(name)].max() for name in set(masks.labels)}
        return np.asarray(
            [max(LEAST_SCORE * self.threshold_of(name), LEAST_SHARE * surest[name]) for name in masks.labels]
        )

    def _weighed(self, drafts: Sequence[Draft]) -> Masks | None:
        """The candidates of the surest object of a name that is wanted."""
        wanted = [draft for draft in drafts if draft.label in self.wanted]
        if not wanted:
            return None
        surest = max(wanted, key=score_of)
        best = surest.candidates[:SHOWN]
        return _as_masks(best, [surest] * len(best), [one.quality for one in best])

    def _made_by(self, found: Detections, masks: Masks, refined: Mapping[str, int]) -> dict[str, Any]:
        missing = [name for name in self.wanted if name not in masks.labels]
        scorer = self.grounding.scorer
        notes = dict.fromkeys([*self.grounding.notes, *(scorer.notes if scorer else ()), *found.notes])
        return {
            "detector": self.grounding.detector.name,
            "scorer": scorer.name if scorer else None,
            "thresholds": {name: round(self.threshold_of(name), 4) for name in self.wanted},
            "nearest": {name: round(float(found.nearest.get(name, 0.0)), 4) for name in missing},
            "missing": {
                name: why_missing(found.nearest.get(name, 0.0), self.threshold_of(name), self.taken.get(name, ""))
                for name in missing
            },
            "refined": dict(refined),
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
            "notes": list(notes),
        }

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def score_of(draft: Draft) -> float:
    """How sure an object is: the detector's score, the predicted IoU and the square of the quality, multiplied.

    From 0 to 1. Other products of these that were tried rank objects less well (docs/text.md).
    """
    return draft.detected * min(max(draft.chosen.predicted_iou, 0.0), 1.0) * draft.chosen.quality**2


def _fills(draft: Draft, candidate: Candidate) -> float:
    """IoU of the box that was found and that around the mask."""
    found = np.asarray(draft.prompt.box_coords, np.float32)[None]
    return float(box_iou(found, np.asarray(candidate.box, np.float32)[None])[0, 0])


def _as_masks(chosen: Sequence[Candidate], drafts: Sequence[Draft], scores: Sequence[float]) -> Masks:
    """Full-size masks with what they are scored by."""
    measures = {name: [one.criteria.get(name, 0.0) for one in chosen] for name in ("quality", *CRITERIA)}
    measures["detected"] = [draft.detected for draft in drafts]
    measures["predicted_iou"] = [one.predicted_iou for one in chosen]
    masks = Masks.from_rles(
        [one.at_full_size() for one in chosen],
        chosen[0].frame.size,
        scores=scores,
        labels=[draft.label for draft in drafts],
        measures={name: np.asarray(values, np.float32) for name, values in measures.items()},
    )
    return masks[np.flatnonzero(masks.areas)]


def _reader(maps: ScoreMaps | None) -> Any:
    """A name's score map at any size; None where the detector has no maps."""

    def likely_at(name: str, size: tuple[int, int]) -> Float[np.ndarray, "h w"] | None:
        if maps is None or name not in maps.names:
            return None
        probs = maps.probs[maps.names.index(name)].astype(np.float32)
        return np.asarray(cv2.resize(probs, size[::-1], interpolation=cv2.INTER_LINEAR)).reshape(size)

    return likely_at
