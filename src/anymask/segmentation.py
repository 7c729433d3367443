"""The public `segment`: an image and prompts of any kind to masks, with any model.

Names go to the model where it knows names, else through `grounding/`: a detector finds boxes, the model makes masks of
them. Either way every object has one mask and one name, cleaned at its own scale.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike, fspath

import numpy as np

from anymask.asking import (
    as_box,
    as_exemplars,
    check_placed,
    check_tiles,
    check_understood,
    check_wanted,
    check_zoom,
    collect_prompts,
)
from anymask.data.images import read_image
from anymask.grounding.pipeline import Grounding
from anymask.models.feature_cache import FeatureCache
from anymask.models.load import load
from anymask.models.protocol import Model
from anymask.names import Names, with_seconds
from anymask.ops.cleaning import CLEANUPS, clean_rles
from anymask.ops.grids import CropBox
from anymask.prompting import predict, predict_batch
from anymask.prompting import zoom as zoom_in
from anymask.tiling import Grid, lift, settled_overlap
from anymask.types import Exemplar, Image, Masks, Prompt


def segment(
    image: Image | str | PathLike[str] | np.ndarray,
    prompts: Prompt | Sequence[Prompt] | None = None,
    *,
    points: Sequence[Sequence[float]] | np.ndarray | None = None,
    point_labels: Sequence[int] | None = None,
    boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
    mask: np.ndarray | None = None,
    text: str | Sequence[str] | None = None,
    not_text: str | Sequence[str] | None = None,
    exemplars: Sequence[Exemplar | Sequence[float]] | None = None,
    not_exemplars: Sequence[Exemplar | Sequence[float]] | None = None,
    model: str | PathLike[str] | Model = "pocket",
    multimask: bool = False,
    zoom: bool = False,
    semantic: bool = False,
    tile: int | None = None,
    overlap: int | None = None,
    detector: str | PathLike[str] | Grounding | None = None,
    cleanup: str | None = "adaptive",
    min_score: float = 0.0,
    cache: FeatureCache | None = None,
) -> Masks:
    """Masks of what the prompts mean, best guesses first for text, in prompt order for points, boxes and masks.

    `points` and `mask` together prompt one object, each row of `boxes` another one, each text all its instances
    (`semantic`: one union a name). `exemplars` (boxes in this image, or `Exemplar`s) and `not_exemplars` show what is
    meant and what is not: beside one text, or alone. `multimask` gives every candidate of an object, `zoom` a second,
    closer look (but not of names that the model finds itself). `tile` is for texts and boxes in big images: squares of
    that side, overlapping by `overlap` (an eighth of it), are looked at one after another.

    A model that knows no text has its names found by a `detector` (`grounding.loading.load_grounding` has the choice;
    give what it returns to load it once for many images); given one, so has any model. `cleanup` is for masks of texts:
    "adaptive", "classic" or None, and those of a score below `min_score` are left out. A `cache` keeps what encoders
    say of the image; a loaded detector has its own.
    """
    picture = read_image(image)
    shown = as_exemplars(exemplars, not_exemplars)
    wanted = collect_prompts(prompts, points, point_labels, boxes, mask, text, not_text, shown)
    spatial = [prompt for prompt in wanted if prompt.is_spatial]
    named = [prompt for prompt in wanted if not prompt.is_spatial]
    check_wanted(wanted, multimask=multimask, zoom=zoom)
    check_tiles(wanted, tile, overlap, zoom=zoom)
    clean = cleaner(cleanup)
    network = _ready(model)
    grounding = find_grounding(network, named, detector, cache)
    check_understood(network, wanted, grounding)
    check_zoom(network, wanted, grounding, zoom=zoom)
    for prompt in wanted:
        check_placed(prompt, picture.size)
    kept = grounding.cache if grounding else cache or FeatureCache()
    grid = None if tile is None else Grid(picture, tile, settled_overlap(tile, overlap))
    parts = []
    if spatial and grid:
        parts.append(_boxes_in_tiles(network, kept, grid, spatial, multimask))
    elif spatial:
        found = predict(network, kept.encode(network, picture), spatial, multimask_output=multimask or None)
        parts.append(zoom_in(network, picture, spatial, found) if zoom else found)
    if named:
        find_them = Names(network, picture, named, grounding, kept)
        masks = find_them.in_tiles(grid, semantic) if grid else find_them.in_image(semantic, zoom)
        sure = masks[np.flatnonzero(masks.scores >= min_score)]
        parts.append(sure if semantic else clean(sure))  # a union is not one object: its small parts are no specks
    return _numbered(parts)


def segment_batch(
    images: Sequence[Image],
    prompts: Sequence[Sequence[Prompt]],
    *,
    model: str | PathLike[str] | Model = "pocket",
    multimask: bool = False,
) -> list[Masks]:
    """Several images with points, boxes or masks, any number of prompts each, encoded once and decoded in one batch."""
    network = _ready(model)
    return predict_batch(network, network.encode(images), prompts, multimask_output=multimask or None)


def cleaner(name: str | None) -> Callable[[Masks], Masks]:
    """Masks without holes, islands and frayed edges, by a name of `ops.cleaning.CLEANUPS`; None leaves them alone."""
    if name is not None and name not in CLEANUPS:
        raise ValueError(f"cleanup must be {', '.join(CLEANUPS)} or None, got {name!r}")

    def clean(masks: Masks) -> Masks:
        if name is None or not len(masks):
            return masks
        started = time.perf_counter()
        cleaned = replace(masks.compact(), packed=clean_rles(masks.rles, CLEANUPS[name]))
        cleaned = replace(cleaned, made_by=with_seconds(cleaned.made_by, "clean", time.perf_counter() - started))
        return cleaned[np.flatnonzero(cleaned.areas)]  # the fixed kernel may leave nothing of a small one

    return clean


def find_grounding(
    model: Model,
    named: Sequence[Prompt],
    detector: str | PathLike[str] | Grounding | None = None,
    cache: FeatureCache | None = None,
) -> Grounding | None:
    """What finds the names for the model; None where it finds them itself."""
    if isinstance(detector, Grounding):
        return detector if named else None
    if not named or any(prompt.exemplars for prompt in named) or (detector is None and model.capabilities.text):
        return None
    from anymask.grounding.loading import load_grounding

    chosen, device = None if detector is None else fspath(detector), getattr(model, "device", "auto")
    return load_grounding(chosen, model=model, cache=cache, device=device)


def _boxes_in_tiles(model: Model, cache: FeatureCache, grid: Grid, prompts: Sequence[Prompt], multimask: bool) -> Masks:
    """Each box in the tile around it, no tile encoded twice; ids in the order of the prompts."""
    places, found = [grid.around(prompt) for prompt in prompts], dict[int, Masks]()
    for crop in dict.fromkeys(places):
        features = cache.encode(model, grid.cut_out(crop))
        for i in np.flatnonzero([other == crop for other in places]).tolist():
            masks = predict(model, features, [_moved(prompts[i], crop)], multimask_output=multimask or None)
            found[i] = replace(lift(masks, crop, grid.image.size), ids=np.full(len(masks), i + 1))
    return Masks.concat([found[i] for i in range(len(prompts))])


def _moved(prompt: Prompt, crop: CropBox) -> Prompt:
    """A box and its points in the pixels of a crop."""
    corner = np.asarray(crop[:2], np.float32)
    box = None if prompt.box_coords is None else as_box((np.asarray(prompt.box_coords) - [*corner, *corner]).tolist())
    return replace(prompt, point_coords=prompt.point_coords - corner, box_coords=box)


def _ready(model: str | PathLike[str] | Model) -> Model:
    return model if isinstance(model, Model) else load(fspath(model))


def _numbered(parts: Sequence[Masks]) -> Masks:
    """The rows of all parts with ids that do not collide."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    moved = second.ids + (first.ids.max() if len(first) else 0)
    return replace(Masks.concat(parts), ids=np.concatenate([first.ids, moved]))
