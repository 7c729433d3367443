"""Concepts looked into on a photo, as a folder: how alike they are, what lies between them, what each vector is for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from anymask.adapting.arithmetic import interpolate, sensitivity, similarity, with_own_answers
from anymask.adapting.charts import Bars, draw_bars, draw_matrices
from anymask.adapting.judging import Gallery, mean_iou
from anymask.adapting.records import grid, panel, save_figure
from anymask.data.files import write_json
from anymask.data.images import read_image
from anymask.models.word_space import WordSpace
from anymask.types import Concept

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the second concept in a strip


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
        figures: dict[str, Figure] = {}
        if len(self.concepts) > 1:
            found["similarity"], figures["similarity"] = _similarity(self.gallery.space, self.concepts)
            found["interpolation"], figures["interpolation"] = self._interpolation()
        found["sensitivity"], figures["sensitivity"] = self._sensitivity()
        for name, figure in figures.items():
            save_figure(folder / f"{name}.png", figure)
            write_json(folder / f"{name}.json", found[name], indent=1)
        return found

    def _interpolation(self) -> tuple[list[dict[str, Any]], Figure]:
        """From each concept to the next."""
        photo = read_image(self.gallery.pairs[0].image)
        rows, pictures = list[dict[str, Any]](), []
        for first, second in pairwise(self.concepts):
            strip = []
            for share in SHARES:
                mixture = interpolate(first, second, share)
                mask, iou = self.gallery.mask(0, self.gallery.space.vectors_of(mixture)), self._iou(mixture)
                about = {"from": first.name, "to": second.name, "share": share}
                rows.append({**about, "iou": iou, "pixels": int(mask.sum())})
                strip.append((_caption(first, second, share, iou), panel(photo, mask)))
            if self.has_truth:
                strip.append(("truth", panel(photo, self.gallery.truth(0))))
            pictures.append(strip)
        return rows, grid(pictures)

    def _sensitivity(self) -> tuple[list[dict[str, Any]], Figure]:
        rows, charts = list[dict[str, Any]](), list[Bars]()
        for concept in self.concepts:
            gallery = self.gallery if self.has_truth else with_own_answers(self.gallery, concept)
            whole = mean_iou(gallery.judge(self.gallery.space.vectors_of(concept)))
            parts = sensitivity(gallery, concept)
            rows.append({"concept": concept.name, "iou": whole, "vectors": [asdict(one) for one in parts]})
            kinds: dict[str, list[float | None]] = {
                "left out": [one.left_out_iou for one in parts],
                "mean of the table instead": [one.replaced_iou for one in parts],
            }
            title = f"{concept.name}: each vector, by the word nearest to it"
            charts.append(Bars(title, [f"{i}  {one.nearest}" for i, one in enumerate(parts, 1)], kinds, whole))
        return rows, draw_bars(charts, "IoU with the truth" if self.has_truth else "IoU with what all vectors find")

    def _iou(self, concept: Concept) -> float | None:
        return mean_iou(self.gallery.judge(self.gallery.space.vectors_of(concept))) if self.has_truth else None


def _similarity(space: WordSpace, concepts: Sequence[Concept]) -> tuple[dict[str, Any], Figure]:
    found = similarity(space, concepts)
    matrices = {"as the model reads them": found.read, "means of their vectors": found.vectors}
    numbers = {"names": found.names, "read": found.read.tolist(), "vectors": found.vectors.tolist()}
    return numbers, draw_matrices(found.names, matrices)


def _caption(first: Concept, second: Concept, share: float, iou: float | None) -> str:
    mixed = {0.0: first.name, 1.0: second.name}.get(share, f"{share:.0%} {second.name}")
    return mixed if iou is None else f"{mixed}, IoU {iou:.2f}"
