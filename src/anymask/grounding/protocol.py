"""What finds names in an image and what says how well a region shows a name: two small protocols.

A detector gives boxes; a scorer gives probabilities, of windows of the image or of masks. Neither remembers an image:
what is costly to compute twice lies in the caller's `FeatureCache`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from anymask.ops.grids import CropBox
from anymask.types import Image


@dataclass(frozen=True)
class DetectionThresholds:
    """From when on a box counts: the score of its name, and for detectors of phrases the score of each word of it."""

    box: float = 0.3
    text: float = 0.25


@dataclass(frozen=True, eq=False)
class ScoreMaps:
    """How likely each name is to be where, over the whole image, at the resolution of the scorer."""

    names: tuple[str, ...]
    probs: Float[np.ndarray, "k mh mw"]


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found, the surest first: boxes in pixels of the image, each with one of the names asked for.

    `nearest` is the highest score of each name asked for, also where it stays below the threshold. `maps` are the
    scorer's, where it has some.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    labels: tuple[str, ...]
    nearest: dict[str, float]
    maps: ScoreMaps | None = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.labels)


@runtime_checkable
class Detector(Protocol):
    """Finds every instance of names in an image."""

    @property
    def name(self) -> str:
        """What was asked for in `load_detector`, or what stood in for it."""

    @property
    def thresholds(self) -> DetectionThresholds:
        """Its defaults."""

    def detect(self, image: Image, names: Sequence[str], thresholds: DetectionThresholds | None = None) -> Detections:
        """Boxes of all names, with one encoder pass over the image however many names there are."""


@runtime_checkable
class Scorer(Protocol):
    """Says how well a part of an image shows each of several names, as probabilities from 0 to 1."""

    @property
    def name(self) -> str:
        """What it is made of."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: members left out, and why."""

    def score_windows(
        self, image: Image, windows: Sequence[CropBox], names: Sequence[str]
    ) -> list[Float[np.ndarray, "k gh gw"]]:
        """Of each window a grid of probabilities for each name; 1 x 1 where the scorer sees a window as a whole."""

    def score_masks(
        self, image: Image, masks: Bool[np.ndarray, "n h w"], names: Sequence[str]
    ) -> Float[np.ndarray, "n k"]:
        """How well each mask (of the image, or of a reduced copy of it) shows each name."""
