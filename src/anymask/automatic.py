"""Everything mode: a grid of clicks on an image, and every mask that is sure and stable enough (SAM, section B).

Argument names, defaults and record keys are those of `SamAutomaticMaskGenerator` (segment-anything, sam2); the names of
transformers' mask-generation pipeline work as well. `everything` gives `Masks`, or the records; `everything_steps` is
the same as a generator that can be shown as progress and be stopped, crop by crop. What survives is decided in
`sieve.py`, how prompts are answered in `models/decode.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, TypeVar, Unpack, overload

import numpy as np
import torch
from jaxtyping import Float

from anymask.automatic_settings import AutomaticSettings, Names, by_our_names
from anymask.data.images import read_image
from anymask.joining import join
from anymask.models.decode import PromptTensors, Stage
from anymask.models.devices import in_chunks
from anymask.models.load import load
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Model, Thresholds
from anymask.ops import boxes as box_ops
from anymask.ops import cleaning, grids, rle
from anymask.ops.grids import CropBox
from anymask.sieve import ExactSieve, FastSieve, Limits, Sieve
from anymask.tiling import settled_overlap, tiles
from anymask.types import Image, Masks, Size

T = TypeVar("T")

Picture = Image | str | PathLike[str] | np.ndarray

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
CHUNK = 64  # clicks between two steps of the generator


@dataclass(frozen=True)
class Step:
    """How far a run is: clicks answered, of how many, and the masks of a crop where one has just been finished."""

    done: int
    total: int
    masks: Masks | None = None


@overload
def everything(
    image: Picture,
    *,
    model: str | PathLike[str] | Model = "pocket",
    point_grids: Sequence[np.ndarray] | None = None,
    output_mode: None = None,
    **settings: Unpack[Names],
) -> Masks: ...


@overload
def everything(
    image: Picture,
    *,
    model: str | PathLike[str] | Model = "pocket",
    point_grids: Sequence[np.ndarray] | None = None,
    output_mode: str,
    **settings: Unpack[Names],
) -> list[dict[str, Any]]: ...


def everything(
    image: Picture,
    *,
    model: str | PathLike[str] | Model = "pocket",
    point_grids: Sequence[np.ndarray] | None = None,
    output_mode: str | None = None,
    **settings: Unpack[Names],
) -> Masks | list[dict[str, Any]]:
    """All masks that a grid of clicks finds in an image, the surest of a crop first; ids count from 1.

    `settings` are those of `AutomaticSettings`, by the names of SamAutomaticMaskGenerator; transformers' names
    `points_per_crop`, `crops_n_layers` and `crops_nms_thresh` mean `points_per_side`, `crop_n_layers` and
    `crop_nms_thresh`. `point_grids`, x y from 0 to 1, one for the image and one for each layer of crops, take the place
    of `points_per_side`. With an `output_mode` (binary_mask, uncompressed_rle or coco_rle) the result is a list of the
    reference's records.
    """
    if output_mode not in (None, *OUTPUT_MODES):
        raise ValueError(f"output_mode must be one of {', '.join(OUTPUT_MODES)}, got {output_mode!r}")
    chosen = AutomaticSettings(**by_our_names(settings))
    picture = read_image(image)
    network = model if isinstance(model, Model) else load(fspath(model))
    masks = collect(everything_steps(picture, network, chosen, point_grids), picture.size)
    return masks if output_mode is None else to_records(masks, output_mode)


def everything_steps(
    image: Image, model: Model, settings: AutomaticSettings, point_grids: Sequence[np.ndarray] | None = None
) -> Iterator[Step]:
    """`everything` as a generator: to cancel stop asking. Crops come smallest first, so that their masks are final.

    Tiles give all masks in the last step, put together; so does `exact` with `min_mask_region_area`, for the reference
    cleans masks at the end.
    """
    clicked = clickable(model)
    own = clicked.capabilities.thresholds
    parts = _parts(image.size, settings, _first(settings.points_per_side, own.points_per_side), point_grids)
    return _Run(image, clicked, settings, _limits(settings, own)).steps(parts)


def clickable(model: Model) -> PromptableModel:
    """The model, as one that takes points. Raises ValueError for another."""
    if not isinstance(model, PromptableModel) or not model.capabilities.points:
        raise ValueError(
            f"everything mode needs a model that takes points: {model.name} knows names and exemplars alone"
        )
    return model


def settled(settings: AutomaticSettings, own: Thresholds) -> AutomaticSettings:
    """With the values of the model's family for what is not given: what a run really does."""
    limits = _limits(settings, own)
    return replace(
        settings,
        points_per_side=_first(settings.points_per_side, own.points_per_side),
        pred_iou_thresh=limits.predicted_iou,
        stability_score_thresh=limits.stability,
        overlap=None if settings.tile is None else settled_overlap(settings.tile, settings.overlap),
    )


def collect(steps: Iterator[Step], size: Size) -> Masks:
    """The masks of all steps, with ids from 1."""
    masks = Masks.concat([Masks.empty(size), *(step.masks for step in steps if step.masks is not None)])
    return replace(masks, ids=np.arange(1, len(masks) + 1))


def to_records(masks: Masks, output_mode: str = "binary_mask") -> list[dict[str, Any]]:
    """The records of SamAutomaticMaskGenerator; `bbox` and `crop_box` are x y w h in whole pixels."""
    make = {
        "binary_mask": lambda one: rle.decode([one], masks.size)[0],
        "uncompressed_rle": lambda one: {"size": list(masks.size), "counts": rle.run_lengths(one).tolist()},
        "coco_rle": dict,
    }[output_mode]
    if not len(masks):
        return []
    points, crops = _column(masks, "point_coords"), _column(masks, "crop_boxes")
    return [
        {
            "segmentation": make(one),
            "area": int(area),
            "bbox": _xywh(box),
            "predicted_iou": float(score),
            "point_coords": [[float(side) for side in point]],
            "stability_score": float(stable),
            "crop_box": _xywh(crop),
        }
        for one, area, box, score, stable, point, crop in zip(
            masks.rles, masks.areas, masks.boxes, masks.scores, _column(masks, "stability"), points, crops, strict=True
        )
    ]


@dataclass(frozen=True)
class _Part:
    """A crop and the clicks on it, in pixels of the image."""

    crop_box: CropBox
    points: Float[np.ndarray, "n 2"]


@dataclass(frozen=True)
class _Run:
    """One image through one model."""

    image: Image
    model: PromptableModel
    settings: AutomaticSettings
    limits: Limits

    def steps(self, parts: Sequence[_Part]) -> Iterator[Step]:
        """Each part in turn, and the masks that are final with it."""
        done, total = 0, sum(len(part.points) for part in parts)
        found = list[tuple[CropBox, Masks]]()
        for part in parts:
            stage, sieve = self._begun(part.crop_box)
            chunk = max(CHUNK, self.settings.points_per_batch or 0)
            for some in np.array_split(part.points, range(chunk, len(part.points), chunk)):
                if done:
                    yield Step(done, total)
                self._answer(stage, sieve, some)
                done += len(some)
            found.append((part.crop_box, self._new(sieve.masks(), found)))
            if not self._late:
                yield Step(done, total, self._cleaned(found[-1][1]))
        if self._late:
            yield Step(done, total, self._cleaned(self._together(found)))

    @property
    def _late(self) -> bool:
        """Whether masks are final only when all parts are done."""
        return self.settings.tile is not None or (self.settings.exact and self.settings.min_mask_region_area > 0)

    def _together(self, found: Sequence[tuple[CropBox, Masks]]) -> Masks:
        """The masks of all crops, or those of tiles joined, without what is cut and what is there twice."""
        if self.settings.tile is not None:
            return self._distinct(join(found, self.image.size, drop_cut=True))
        return Masks.concat([masks for _, masks in found])

    def _distinct(self, masks: Masks) -> Masks:
        """Of masks that are nearly one the surest, tiles before the whole image; in this order."""
        if not len(masks):
            return masks
        crops = _column(masks, "crop_boxes")
        ordered = masks[np.lexsort((-masks.scores, (crops[:, 2:] - crops[:, :2]).prod(axis=1)))]
        return ordered[rle.distinct(ordered.rles, self.settings.crop_nms_thresh)]

    def _begun(self, crop_box: CropBox) -> tuple[Stage, Sieve]:
        features = self.model.encode([self.image], [crop_box])[0]
        sieve = (ExactSieve if self.settings.exact else FastSieve)(features.frame, self.limits)
        with torch.inference_mode():
            return self.model.stage(features, self.settings.multimask_output), sieve

    @torch.inference_mode()
    def _answer(self, stage: Stage, sieve: Sieve, points: Float[np.ndarray, "n 2"]) -> None:
        """The clicks, in chunks that fit in memory, through the sieve."""
        at = torch.from_numpy(sieve.frame.to_model(points)).to(self.model.device)[:, None]
        one = torch.ones(len(points), 1, dtype=torch.long, device=self.model.device)

        def run(rows: Sequence[int]) -> None:
            chosen = list(rows)
            sieve.add(points[chosen], stage.score(PromptTensors(at[chosen], one[chosen])))

        in_chunks(run, range(len(points)), self.settings.points_per_batch or stage.chunk, self.model.device)

    def _new(self, masks: Masks, found: Sequence[tuple[CropBox, Masks]]) -> Masks:
        """Those whose boxes no mask of an earlier crop, or a better one of this, overlaps too much."""
        if not self.settings.crop_n_layers or not len(masks):
            return masks
        earlier = Masks.concat([Masks.empty(self.image.size), *(one for _, one in found)])
        boxes = _inclusive(Masks.concat([earlier, masks]).boxes)
        ranks = np.repeat((2.0, 1.0), (len(earlier), len(masks)))
        kept = box_ops.distinct(boxes, ranks, self.settings.crop_nms_thresh) - len(earlier)
        return masks[kept[kept >= 0]]

    def _cleaned(self, masks: Masks) -> Masks:
        """Without small holes and islands, and what has become alike by that; masks that needed nothing go first."""
        area = self.settings.min_mask_region_area
        if not area or not len(masks):
            return masks
        pairs = [cleaning.without_small_regions(one.masks[0], area) for one in masks]
        rles = [
            rle.encode(mask[None])[0] if changed else one
            for (mask, changed), one in zip(pairs, masks.rles, strict=True)
        ]
        cleaned = replace(masks, packed=tuple(rles))
        unchanged = np.asarray([not changed for _, changed in pairs], np.float32)
        most = max(self.settings.box_nms_thresh, self.settings.crop_nms_thresh)
        return cleaned[box_ops.distinct(_inclusive(cleaned.boxes), unchanged, most)]


def _parts(
    size: Size, settings: AutomaticSettings, points_per_side: int, point_grids: Sequence[np.ndarray] | None
) -> list[_Part]:
    """The crops, smallest first as the reference ranks them, each with its grid; or the image and its tiles."""
    layers, factor = settings.crop_n_layers, settings.crop_n_points_downscale_factor
    own = grids.layer_grids(points_per_side, layers, factor) if point_grids is None else _given(point_grids, layers)
    crops = grids.crop_boxes(size, layers, settings.crop_overlap_ratio)
    if settings.tile is not None:
        within = tiles(size, settings.tile, settled_overlap(settings.tile, settings.overlap))
        crops += [(0, crop) for crop in within if crop != crops[0][1]]
    crops.sort(key=lambda pair: (pair[1][2] - pair[1][0]) * (pair[1][3] - pair[1][1]))
    return [_Part(crop, _on_crop(own[layer], crop)) for layer, crop in crops]


def _given(point_grids: Sequence[np.ndarray], layers: int) -> list[Float[np.ndarray, "n 2"]]:
    """The user's own grids. Raises ValueError for what is none, or not one for each layer."""
    if len(point_grids) != layers + 1:
        wanted = f"one for the image and one for each of {layers} layers"
        raise ValueError(f"point_grids must be {wanted}, got {len(point_grids)}")
    own = [np.asarray(grid, float) for grid in point_grids]
    for grid in own:
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise ValueError(f"a grid of points must be (n, 2), x y of one point or more, got {grid.shape}")
        if not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError("points of a grid must be shares of its crop's width and height, from 0 to 1")
    return own


def _on_crop(grid: Float[np.ndarray, "n 2"], crop: CropBox) -> Float[np.ndarray, "n 2"]:
    x0, y0, x1, y1 = crop
    return np.asarray(grid * (x1 - x0, y1 - y0) + (x0, y0))


def _limits(settings: AutomaticSettings, own: Thresholds) -> Limits:
    return Limits(
        _first(settings.pred_iou_thresh, own.predicted_iou),
        _first(settings.stability_score_thresh, own.stability),
        settings.stability_score_offset,
        settings.box_nms_thresh,
        drop_cut=settings.tile is None,
    )


def _first(given: T | None, own: T) -> T:
    return own if given is None else given


def _column(masks: Masks, name: str) -> np.ndarray:
    values = getattr(masks, name)
    if values is None:
        raise ValueError(f"records are made of masks of everything mode: these have no {name}")
    return np.asarray(values)


def _xywh(box: np.ndarray) -> list[int]:
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _inclusive(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """Boxes that end on their last pixel: those that the reference compares."""
    return boxes - np.asarray((0, 0, 1, 1), np.float32)
