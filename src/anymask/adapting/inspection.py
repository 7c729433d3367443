"""Concepts looked into on a photo, as a folder: how alike they are, what lies between them, what each vector is for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from anymask.adapting.arithmetic import interpolate, sensitivity, similarity, with_own_answers
from anymask.adapting.charts import Bars, Strip, draw_bars, draw_matrices, draw_strips
from anymask.adapting.judging import Gallery, mean_iou
from anymask.data.drawing import draw
from anymask.data.files import write_json
from anymask.data.images import read_image, write_image
from anymask.data.reducing import fitted, resized_image, resized_masks
from anymask.models.word_space import WordSpace
from anymask.types import Concept, Image, Masks

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the second concept in a strip
_PANEL = 420  # the longer side of a picture in it


@dataclass(frozen=True, eq=False)
class Inspection:
    """Concepts of one model, and one image; `has_truth`: its mask is known, else a concept's own answer stands in."""

    gallery: Gallery
    concepts: Sequence[Concept]
    has_truth: bool

    def __post_init__(self) -> None:
        if len(self.gallery) != 1 or not self.concepts:
            got = f"{len(self.gallery)} and {len(self.concepts)}"
            raise ValueError(f"an inspection needs one image and at least one concept, got {got}")

    def write(self, folder: Path) -> dict[str, Any]:
        """Each figure with its numbers as JSON; returns all numbers. A single concept is compared with none."""
        found: dict[str, Any] = {}
        figures: dict[str, Image] = {}
        if len(self.concepts) > 1:
            found["similarity"], figures["similarity"] = _similarity(self.gallery.space, self.concepts)
            found["interpolation"], figures["interpolation"] = self._interpolation()
        found["sensitivity"], figures["sensitivity"] = self._sensitivity()
        for name, figure in figures.items():
            write_image(folder / f"{name}.png", figure)
            write_json(folder / f"{name}.json", found[name], indent=1)
        return found

    def _interpolation(self) -> tuple[list[dict[str, Any]], Image]:
        """From each concept to the next."""
        rows, strips = list[dict[str, Any]](), list[Strip]()
        for first, second in pairwise(self.concepts):
            mixtures = [interpolate(first, second, share) for share in SHARES]
            masks = [self._mask(one) for one in mixtures]
            ious = [self._iou(one) for one in mixtures]
            rows += [
                {"from": first.name, "to": second.name, "share": share, "iou": iou, "pixels": int(mask.sum())}
                for share, iou, mask in zip(SHARES, ious, masks, strict=True)
            ]
            captions = [_caption(share, second.name, iou) for share, iou in zip(SHARES, ious, strict=True)]
            strips.append(Strip(f"{first.name} to {second.name}", [self._picture(one) for one in masks], captions))
        if self.has_truth:
            truth = self._picture(self.gallery.truth(0))
            strips = [Strip(s.title, [*s.pictures, truth], [*s.captions, "truth"]) for s in strips]
        return rows, draw_strips(strips)

    def _sensitivity(self) -> tuple[list[dict[str, Any]], Image]:
        rows, charts = list[dict[str, Any]](), list[Bars]()
        for concept in self.concepts:
            gallery = self.gallery if self.has_truth else with_own_answers(self.gallery, concept)
            whole = mean_iou(gallery.judge(self._vectors(concept)))
            parts = sensitivity(gallery, concept)
            rows.append({"concept": concept.name, "iou": whole, "vectors": [asdict(one) for one in parts]})
            kinds: dict[str, list[float | None]] = {
                "left out": [one.left_out_iou for one in parts],
                "mean of the table instead": [one.replaced_iou for one in parts],
            }
            title = f"{concept.name}: each vector, by the word nearest to it"
            charts.append(Bars(title, [f"{i}  {one.nearest}" for i, one in enumerate(parts, 1)], kinds, whole))
        return rows, draw_bars(charts, "IoU with the truth" if self.has_truth else "IoU with what all vectors find")

    def _vectors(self, concept: Concept) -> torch.Tensor:
        space = self.gallery.space
        return torch.from_numpy(space.vectors_of(concept)).to(space.table.device)

    def _mask(self, concept: Concept) -> Bool[np.ndarray, "h w"]:
        return self.gallery.mask(0, self._vectors(concept))

    def _iou(self, concept: Concept) -> float | None:
        return mean_iou(self.gallery.judge(self._vectors(concept))) if self.has_truth else None

    def _picture(self, mask: Bool[np.ndarray, "h w"]) -> Image:
        """The photo under the mask, small."""
        photo = read_image(self.gallery.pairs[0].image)
        size = fitted(photo.size, _PANEL)
        masks = resized_masks(Masks.from_dense(mask[None]), size)
        return draw(resized_image(photo, size), masks, labels=False)


def _similarity(space: WordSpace, concepts: Sequence[Concept]) -> tuple[dict[str, Any], Image]:
    found = similarity(space, concepts)
    matrices = {"as the model reads them": found.read, "means of their vectors": found.vectors}
    numbers = {"names": found.names, "read": found.read.tolist(), "vectors": found.vectors.tolist()}
    return numbers, draw_matrices(found.names, matrices)


def _caption(share: float, name: str, iou: float | None) -> str:
    return f"{share:.0%} {name}" + ("" if iou is None else f", IoU {iou:.2f}")
