"""The small protocol that every model family speaks: encode an image once, then decode any number of prompts.

State lies in the caller's hand: `encode` returns Features, `encode_text` returns EncodedText, nothing is remembered.
Prompts are in pixels of the original image; what comes back is in the model's own frame (`Features.frame`) and is
brought to the original image by `anymask.prompting`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from anymask.ops.grids import CropBox
from anymask.types import Features, Image, Prompt


class CheckpointError(Exception):
    """Weights that are missing, gated, broken or of another model: the message says which, and what to do."""


@dataclass(frozen=True)
class Thresholds:
    """From when on a find counts: the presence of a name, the score of an instance, and the two multiplied.

    `predicted_iou` and `stability` are for everything mode: which answers to its grid of clicks to keep.
    """

    presence: float = 0.5
    instance: float = 0.28
    product: float = 0.0
    predicted_iou: float = 0.88
    stability: float = 0.95
    points_per_side: int = 32


@dataclass(frozen=True)
class Capabilities:
    """What a family understands; `notes` say what a kind of prompt does there, also where it is ignored.

    `named_prompts`: a name may join points, boxes and masks, and says what is meant by them.
    """

    points: bool = True
    boxes: bool = True
    masks: bool = True
    text: bool = False
    exemplars: bool = False
    concepts: bool = False
    video: bool = False
    named_prompts: bool = False
    thresholds: Thresholds = Thresholds()
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """n prompts of one image, c candidate masks each (1, or more with `multimask_output`), in the model's frame.

    `limits` are boxes in original pixels that the masks must not leave, for a family that holds a box to be one.
    """

    logits: Float[Tensor, "n c lh lw"]
    predicted_iou: Float[Tensor, "n c"]
    limits: Float[np.ndarray, "n 4"] | None = None


@dataclass(frozen=True)
class EncodedText:
    """Names (or concepts) as a model reads them; opaque, reusable for any image."""

    names: tuple[str, ...]
    tensors: Mapping[str, Any]


@dataclass(frozen=True)
class Grounded:
    """What one name finds in one image: presence (0 to 1), the union of all instances, each instance and its score."""

    presence: float
    semantic_logits: Float[Tensor, "lh lw"]
    logits: Float[Tensor, "k lh lw"]
    scores: Float[Tensor, "k"]


@runtime_checkable
class Model(Protocol):
    """A model family behind one face. A family without text raises ValueError in `encode_text` and `ground`."""

    @property
    def name(self) -> str:
        """What was asked for in `load`."""

    @property
    def capabilities(self) -> Capabilities:
        """What kinds of prompts work."""

    def encode(self, images: Sequence[Image], crop_boxes: Sequence[CropBox] | None = None) -> list[Features]:
        """Features of each image, or of a crop (x0 y0 x1 y1) of each."""

    def decode(
        self, features: Sequence[Features], prompts: Sequence[Sequence[Prompt]], multimask_output: bool | None = None
    ) -> list[Decoded]:
        """Masks of `prompts[i]` on `features[i]`, any number an image, all in one batch.

        True gives every candidate mask, False the decoder's single one; None is the single one too, but of a lone click
        (which may mean a part or the whole) the candidate with the highest predicted IoU.
        """

    def encode_text(self, prompts: Sequence[Prompt]) -> EncodedText:
        """What the names, concepts and exemplars of the prompts mean to the model, ready for any image."""

    def ground(self, features: Features, text: EncodedText, instances: bool = True) -> list[Grounded]:
        """Everything in the image that each text means; without `instances` only presence and union.

        What presence makes pointless may be left out: a union is then far below 0 everywhere, instances have no row.
        """
