"""Which detector and which scorer serve: those asked for, else what is on this machine, else pocket in their place.

Nothing is fetched that was not asked for by name. What stands in for what is logged and goes into the result's notes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymask.data.scorers import FittedScorer
from anymask.grounding import detect
from anymask.grounding.clip_members import MEMBERS, Member, is_here, parse_member
from anymask.grounding.pipeline import Grounding, GroundingSettings
from anymask.grounding.pocket_scorer import PocketScorer
from anymask.grounding.protocol import Detector, Scorer
from anymask.grounding.quality import QualityWeights, parse_weights
from anymask.grounding.score import Background, load_scorer
from anymask.grounding.windows import WindowDetector
from anymask.models.feature_cache import FeatureCache
from anymask.models.load import load
from anymask.models.protocol import CheckpointError, Model
from anymask.types import Concept, Prompt

WINDOWS, POCKET = "windows", "pocket"
DENSE_SCALES, WHOLE_SCALES = (1, 2), (1, 2, 3)  # of windows, for a scorer with maps and one that sees windows whole

_log = logging.getLogger("anymask")


def load_grounding(
    detector: str | Path | None = None,
    *,
    scorer: Sequence[str] = (),
    settings: GroundingSettings | None = None,
    model: Model | None = None,
    background: Background = "blurred",
    fallback: bool = False,
    cache: FeatureCache | None = None,
    device: str = "auto",
) -> Grounding:
    """A detector and a scorer for `segment(..., detector=...)`; loaded once, they serve any number of images.

    `detector` is a name of `detect.CATALOGUE`, hub id, folder, file, or "windows"; None takes one that is on this
    machine, and windows where there is none. With `fallback` windows stand in for one that cannot be had. `scorer`
    names members of an ensemble ("ViT-L-14:openai=0.25") or is ("pocket",); empty takes what is here: windows are
    scored by pocket if there is nothing else, a detector does without. A `model` that knows text takes pocket's place.
    Raises as `load_detector` and `load_scorer`; FileNotFoundError for a path that is not there, also with `fallback`.
    """
    _members(scorer)  # what is written wrongly is told before anything is loaded
    kept = cache or FeatureCache()
    search = _Search(model, device, kept, background)
    finder, notes = search.detector(detector, fallback)
    judge, more = search.scorer(scorer, or_pocket=finder is None)
    found = finder or search.windows(judge)
    for note in (*notes, *more):
        _log.info("%s", note)
    return Grounding(found, judge, settings or GroundingSettings(), kept, (*notes, *more))


def as_settings(
    fitted: FittedScorer | None = None,
    quality: str | None = None,
    box_threshold: float | None = None,
    text_threshold: float | None = None,
    refine: bool = True,
) -> GroundingSettings:
    """Settings as a command is told them: `quality`, as `parse_weights` takes it, goes before what was fitted."""
    learned: dict[str, Any] = dict(fitted.quality or {}) if fitted else {}
    if fitted and fitted.best_size:
        learned["best_size"] = fitted.best_size
    return GroundingSettings(
        box_threshold=box_threshold,
        text_threshold=text_threshold,
        quality=parse_weights(quality) if quality else QualityWeights(**learned),
        refine=refine,
    )


def with_thresholds(prompts: Sequence[Prompt], fitted: FittedScorer) -> list[Prompt]:
    """The prompts of names, each with a concept that holds its own fitted thresholds, else the best ones of all."""
    found = []
    for prompt in prompts:
        name = prompt.name or ""
        own = {whose: values[name] for whose, values in fitted.thresholds.items() if name in values}
        both = {**fitted.of_all, **own}
        found.append(
            prompt + Prompt.concept(Concept(name, "", thresholds=both))
            if name and both and not prompt.learned
            else prompt
        )
    return found


def _members(asked: Sequence[str]) -> list[Member]:
    """Those of the ensemble that is asked for; none where pocket is, alone, or nothing."""
    others = [text for text in asked if text != POCKET]
    if others and len(others) < len(asked):
        raise ValueError(f"the scorer {POCKET} stands alone, and is no member of an ensemble with {', '.join(others)}")
    return [parse_member(text) for text in others]


@dataclass(frozen=True)
class _Search:
    """What all that is looked for shares."""

    model: Model | None
    device: str
    cache: FeatureCache
    background: Background

    def detector(self, asked: str | Path | None, fallback: bool) -> tuple[Detector | None, tuple[str, ...]]:
        """None for windows."""
        if asked is None:
            here = next((name for name in detect.CATALOGUE if detect.is_here(name)), None)
            if here is not None:
                return detect.load_detector(here, self.device), ()
            return None, (f"no detector is on this machine: windows stand in; {detect.DEFAULT} knows more names",)
        if str(asked) == WINDOWS:
            return None, ()
        try:
            return detect.load_detector(asked, self.device), ()
        except CheckpointError as error:
            if not fallback:
                raise
            return None, (f"windows stand in for the detector: {error}",)

    def windows(self, scorer: Scorer | None) -> WindowDetector:
        judge = scorer or self._pocket()
        return WindowDetector(judge, DENSE_SCALES if isinstance(judge, PocketScorer) else WHOLE_SCALES)

    def scorer(self, asked: Sequence[str], or_pocket: bool) -> tuple[Scorer | None, tuple[str, ...]]:
        """What is asked for, or is on this machine; else pocket, or nothing."""
        if members := _members(asked):
            return load_scorer(members, self.device, self.cache, self.background), ()
        if asked:
            return self._pocket(), ()
        members = [member for member in MEMBERS if is_here(member)]
        if members:
            missing = ", ".join(member.name for member in MEMBERS if member not in members)
            note = (f"left out of the scorer, as they are not on this machine: {missing}",) if missing else ()
            return load_scorer(members, self.device, self.cache, self.background, fetch=False), note
        stands_in = "no image-text model is on this machine:"
        if not or_pocket:
            return None, (f"{stands_in} masks are judged by how well they fill their boxes",)
        scorer = self._pocket()
        return scorer, (f"{stands_in} {scorer.name} scores in its place",)

    def _pocket(self) -> PocketScorer:
        knows = self.model is not None and self.model.capabilities.text
        return PocketScorer(self.model if knows and self.model else load(POCKET, self.device), self.cache)
