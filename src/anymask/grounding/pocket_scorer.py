"""A model with text of its own as scorer: its score map says where in a window each name is, and how well a mask fits.

The map is the probability of the name at each place (`Grounded.semantic_logits`) times its presence, so that of a name
that is nowhere all of it is low.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from anymask.models.feature_cache import FeatureCache
from anymask.models.protocol import Model
from anymask.ops import resize
from anymask.ops.grids import CropBox
from anymask.types import Frame, Image, Prompt, Size

HELD = 16  # windows whose grids are remembered: an image is judged, and judged again, by what it was searched with
RING = 0.35  # width of what counts as right around a mask, in sides of a square as large as the mask

_Key = tuple[int, Size | None, CropBox, tuple[str, ...]]
_Held = tuple[Image, Float[np.ndarray, "k gh gw"]]  # the image, so that what it is known by is not given to another


@dataclass(frozen=True, eq=False)
class PocketScorer:
    """Pocket, or any other model that answers `ground`; images and windows that the cache has are not encoded again."""

    model: Model
    cache: FeatureCache = field(default_factory=FeatureCache)
    notes: tuple[str, ...] = ()
    _held: OrderedDict[_Key, _Held] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        if not self.model.capabilities.text:
            raise ValueError(f"{self.model.name} knows no text and can score no name: use pocket or sam3")

    @property
    def name(self) -> str:
        """That of the model."""
        return self.model.name

    def score_windows(
        self, image: Image, windows: Sequence[CropBox], names: Sequence[str]
    ) -> list[Float[np.ndarray, "k gh gw"]]:
        """Presence times probability of each name at every cell of a window, 0 to 1."""
        return [self._grids(image, window, tuple(names)) for window in windows]

    def score_masks(
        self, image: Image, masks: Bool[np.ndarray, "n h w"], names: Sequence[str]
    ) -> Float[np.ndarray, "n k"]:
        """Presence times how much likelier the name is within the mask than right around it: max(0, inside - ring).

        0 to 1. The mean inside alone ranks a part of an object, or a mask much too large, above the object.
        """
        grids = self._grids(image, (0, 0, *image.size[::-1]), tuple(names))
        rows = [_contrast(grids, resize.cover(mask, (grids.shape[1], grids.shape[2]))) for mask in masks]
        return np.asarray(rows, np.float32).reshape(len(masks), len(names))

    def _grids(self, image: Image, window: CropBox, names: tuple[str, ...]) -> Float[np.ndarray, "k gh gw"]:
        """Computed once for what was asked for lately; an image is known by its array of pixels."""
        key = (id(image.pixels), getattr(self.model, "input_size", None), window, names)
        if key not in self._held:
            self._held[key] = image, self._computed(image, window, names)
        self._held.move_to_end(key)
        while len(self._held) > HELD:
            self._held.popitem(last=False)
        return self._held[key][1]

    def _computed(self, image: Image, window: CropBox, names: tuple[str, ...]) -> Float[np.ndarray, "k gh gw"]:
        whole = window == (0, 0, *image.size[::-1])
        features = self.cache.encode(self.model, image, None if whole else window)
        text = self.model.encode_text([Prompt.text(name) for name in names])
        found = self.model.ground(features, text, instances=False)
        return np.stack(
            [one.presence * _content(one.semantic_logits.sigmoid(), features.frame).numpy() for one in found]
        )


def _content(probs: Float[Tensor, "lh lw"], frame: Frame) -> Float[Tensor, "gh gw"]:
    """The cells that show the image, without those of padding."""
    h, w = (
        max(1, round(cells * content / side))
        for cells, content, side in zip(probs.shape, frame.content_size, frame.input_size, strict=True)
    )
    return probs[:h, :w]


def _contrast(grids: Float[np.ndarray, "k gh gw"], cover: Float[np.ndarray, "gh gw"]) -> Float[np.ndarray, "k"]:
    reach = max(1, round(RING * float(cover.sum()) ** 0.5))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    ring = cv2.dilate(cover, disk) - cover
    inside = (grids * cover).sum(axis=(1, 2)) / max(float(cover.sum()), 1e-6)
    around = (grids * ring).sum(axis=(1, 2)) / max(float(ring.sum()), 1.0)  # there is none around the whole image
    contrast: np.ndarray = np.maximum(0, inside - around)
    return contrast
