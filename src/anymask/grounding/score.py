"""How well windows and masked regions of an image show names: an ensemble of image-text models (`clip_members.py`).

Of each member a probability from 0 to 1, and of these the mean by weight:
- a member that chooses among texts (CLIP, Radford et al. 2021, figure 2): the softmax of `scale * image @ text` over
  the name, the other names asked for, and `CONTRASTS`: how much better the name fits than all of those;
- a member with a bias (SigLIP, Zhai et al. 2023, algorithm 1): the sigmoid of `scale * image @ text + bias`, each name
  by itself. It is the probability of being the caption of a web picture: often below 0.5 for what is right, and near 0
  for what is wrong.

A name stands for the mean of its `TEMPLATES`, each of length 1 (CLIP, section 3.1.4).
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from anymask.grounding.clip_members import BATCH, MEMBERS, ClipModel, Member
from anymask.models.devices import pick_device
from anymask.models.feature_cache import FeatureCache
from anymask.models.protocol import CheckpointError
from anymask.ops.grids import CropBox
from anymask.types import Image

Background = Literal["blurred", "grey"]

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a cropped photo of a {}.",
    "a close-up photo of a {}.",
    "a photo of a small {}.",
    "a photo of many {}.",
    "{}",
)
CONTRASTS = ("background", "something else", "an empty scene", "a texture")
MARGIN = 0.2  # around a mask's box, as a share of its longer side
BLUR = 0.06  # deviation of the Gaussian over the background, as a share of the side of the crop
GREY = 127

_log = logging.getLogger("anymask")


def load_scorer(
    members: Sequence[Member] = MEMBERS,
    device: str = "auto",
    cache: FeatureCache | None = None,
    background: Background = "blurred",
    fetch: bool = True,
) -> "EnsembleScorer":
    """The members that can be loaded; the others are left out with a note. Without `fetch` no hub is asked.

    Raises ValueError for no members, CheckpointError if none can be loaded, with what each one lacks.
    """
    if not members:
        raise ValueError("a scorer needs at least one member, as ViT-L-14:openai")
    loaded, notes = list[ClipModel](), list[str]()
    for member in members:
        try:
            loaded.append(ClipModel.load(member, pick_device(device), fetch))
        except CheckpointError as error:
            notes.append(f"left out of the scorer: {error}")
            _log.warning("%s", notes[-1])
    if not loaded:
        reasons = "; ".join(dict.fromkeys(note.removeprefix("left out of the scorer: ") for note in notes))
        raise CheckpointError(f"no model to score names with can be loaded: {reasons}; pocket scores without (pocket)")
    return EnsembleScorer(tuple(loaded), cache or FeatureCache(), background, tuple(notes))


@dataclass(frozen=True, eq=False)
class EnsembleScorer:
    """Image-text models behind the `Scorer` protocol. `background` is what a mask's surroundings become."""

    models: tuple[ClipModel, ...]
    cache: FeatureCache = field(default_factory=FeatureCache)
    background: Background = "blurred"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.background not in ("blurred", "grey"):
            raise ValueError(f"the background must be blurred or grey, got {self.background!r}")

    @property
    def name(self) -> str:
        """Its members, as `parse_member` reads them."""
        return " + ".join(model.member.name for model in self.models)

    @property
    def weights(self) -> Float[np.ndarray, "m"]:
        """Of the members, of sum 1."""
        weights = np.asarray([model.member.weight for model in self.models], np.float32)
        shares: np.ndarray = weights / weights.sum()
        return shares

    def score_windows(
        self, image: Image, windows: Sequence[CropBox], names: Sequence[str]
    ) -> list[Float[np.ndarray, "k 1 1"]]:
        """The probability of each name for each window as a whole, stretched to the square that a model sees."""
        if not windows:
            return []
        pictures = [image.pixels[y0:y1, x0:x1] for x0, y0, x1, y1 in windows]
        probs = np.zeros((len(windows), len(names)), np.float32)
        for model, weight in zip(self.models, self.weights, strict=True):
            probs += weight * self._probs(model, self._embed_windows(model, pictures), names)
        return [row[:, None, None] for row in probs]

    def score_masks(
        self, image: Image, masks: Bool[np.ndarray, "n h w"], names: Sequence[str]
    ) -> Float[np.ndarray, "n k"]:
        """The probability of each name for what each mask shows; 0 for an empty mask.

        A square around it is looked at, in which all else is blurred or grey. Masks may be of a reduced copy of the
        image. Nothing is made of the size of the image.
        """
        there = np.flatnonzero([mask.any() for mask in masks])
        probs = np.zeros((len(masks), len(names)), np.float32)
        for model, weight in zip(self.models, self.weights, strict=True):
            regions = (masked_region(image, masks[i], model.image_size, self.background) for i in there)
            vectors = [model.embed_images(some) for some in _batches(regions)]
            if vectors:
                probs[there] += weight * self._probs(model, torch.cat(vectors), names)
        return probs

    def _probs(self, model: ClipModel, images: Float[Tensor, "n d"], names: Sequence[str]) -> Float[np.ndarray, "n k"]:
        asked = {name.casefold() for name in names}
        others = [] if model.bias is not None else [text for text in CONTRASTS if text.casefold() not in asked]
        texts = torch.stack([self._embed_name(model, name) for name in [*dict.fromkeys(names), *others]])
        logits = model.scale * images @ texts.T
        probs = logits.softmax(-1) if model.bias is None else (logits + model.bias).sigmoid()
        column = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return probs[:, [column[name] for name in names]].numpy()

    def _embed_name(self, model: ClipModel, name: str) -> Float[Tensor, "d"]:
        """The mean of all templates, kept by the weights, the templates and the name."""

        def make() -> dict[str, Tensor]:
            mean = model.embed_texts([template.format(_without_article(name)) for template in TEMPLATES]).mean(0)
            return {"vector": functional.normalize(mean, dim=0)}

        return self.cache.tensors(f"{model.digest} {TEMPLATES} {name}", make)["vector"]

    def _embed_windows(self, model: ClipModel, pictures: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Kept by the weights and what the model sees of the windows."""
        content = hashlib.blake2b(digest_size=16)
        for picture in pictures:
            content.update(f"{picture.shape}".encode())
            content.update(picture.tobytes())
        key = f"{model.digest} windows {content.hexdigest()}"
        return self.cache.tensors(key, lambda: {"vectors": model.embed_images(pictures)})["vectors"]


def masked_region(
    image: Image, mask: Bool[np.ndarray, "h w"], side: int, background: Background
) -> UInt8[np.ndarray, "side side 3"]:
    """A square around a mask that is not empty, at the size a model sees, all outside of the mask blurred or grey.

    What lies beyond the image is grey. The mask may be of a reduced copy of the image.
    """
    box, part = _square_around(mask), (image.size[0] / mask.shape[0], image.size[1] / mask.shape[1])
    seen = _cut(image.pixels, (box * np.tile(part[::-1], 2)).round().astype(int), side, GREY)
    inside = _cut(mask.view(np.uint8) * np.uint8(255), box.astype(int), side, 0)[..., None] / np.float32(255)
    behind = np.full_like(seen, GREY) if background == "grey" else cv2.GaussianBlur(seen, (0, 0), BLUR * side)
    region: np.ndarray = (inside * seen + (1 - inside) * behind).round().astype(np.uint8)
    return region


def _square_around(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "4"]:
    """Whole pixels of the mask, and beyond its borders where the object is near one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = int(np.ceil((1 + 2 * MARGIN) * max(x1 - x0, y1 - y0)))
    left, top = (x0 + x1 - side) // 2, (y0 + y1 - side) // 2
    return np.asarray([left, top, left + side, top + side], np.float64)


def _cut(pixels: np.ndarray, box: np.ndarray, side: int, beyond: int) -> np.ndarray:
    """A part of an image that may reach beyond it, stretched to a square."""
    (x0, y0, x1, y1), (h, w) = box.tolist(), pixels.shape[:2]
    inside = pixels[max(0, y0) : min(h, y1), max(0, x0) : min(w, x1)]
    around = max(0, -y0), max(0, y1 - h), max(0, -x0), max(0, x1 - w)
    padded = cv2.copyMakeBorder(inside, *around, cv2.BORDER_CONSTANT, value=(beyond,) * 3)
    shrinks = min(padded.shape[:2]) > side
    return cv2.resize(padded, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _batches(pictures: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    batch = list[np.ndarray]()
    for picture in pictures:
        batch.append(picture)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _without_article(name: str) -> str:
    """The templates have one of their own."""
    return re.sub(r"^\s*(an?|the)\s+(?=\S)", "", name, flags=re.IGNORECASE)
