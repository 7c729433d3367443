"""The public `segment`: an image and prompts of any kind to masks, with any model.

Names go to the model where it knows names, else through `grounding/`: a detector finds boxes, the model makes masks of
them. Either way every object has one mask and one name, cleaned at its own scale.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch

from anymask.data.images import read_image
from anymask.grounding.instances import one_each, united, without
from anymask.grounding.pipeline import Grounding
from anymask.joining import join
from anymask.models.capabilities import knows_no_text, presence_threshold
from anymask.models.load import load
from anymask.models.protocol import EncodedText, Grounded, Model, Thresholds
from anymask.ops import rle
from anymask.ops.cleaning import CLEANUPS, clean_rles
from anymask.ops.grids import CropBox
from anymask.prompting import check_prompt, place, predict, predict_batch
from anymask.prompting import zoom as zoom_in
from anymask.tiling import around, lift, settled_overlap, tiles
from anymask.types import Box, Exemplar, Features, Image, Masks, Prompt, Size


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
) -> Masks:
    """Masks of what the prompts mean, best guesses first for text, in prompt order for points, boxes and masks.

    `points` and `mask` together prompt one object, each row of `boxes` another one, each text all its instances
    (`semantic`: one union a name). `exemplars` (boxes in this image, or `Exemplar`s) and `not_exemplars` show what is
    meant and what is not: beside one text, or alone. `multimask` gives every candidate of an object, `zoom` a second,
    closer look. `tile` is for texts and boxes in big images: squares of that side, overlapping by `overlap` (an eighth
    of it), are looked at one after another.

    A model that knows no text has its names found by a `detector` (`grounding.loading.load_grounding` has the choice;
    give what it returns to load it once for many images); given one, so has any model. `cleanup` is for masks of texts:
    "adaptive", "classic" or None.
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
    grounding = find_grounding(network, named, detector)
    check_understood(network, wanted, grounding)
    for prompt in wanted:
        _check_placed(prompt, picture.size)
    grid = None if tile is None else _Grid(picture, tile, settled_overlap(tile, overlap))
    parts = []
    if spatial and grid:
        parts.append(_boxes_in_tiles(network, grid, spatial, multimask))
    elif spatial:
        found = predict(network, _encode(network, picture, grounding), spatial, multimask_output=multimask or None)
        parts.append(zoom_in(network, picture, spatial, found) if zoom else found)
    if named:
        parts.append(clean(_find_named(network, picture, grid, named, semantic, grounding, zoom)))
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


def find(
    model: Model,
    features: Features,
    names: Sequence[str],
    *,
    semantic: bool = False,
    negative_names: Sequence[str] = (),
) -> Masks:
    """All instances of each name, or one union a name, as the model gives them; a name judged absent has no row."""
    return ground(model, features, [Prompt.text(name, negative_names) for name in names], semantic=semantic)


def ground(model: Model, features: Features, prompts: Sequence[Prompt], *, semantic: bool = False) -> Masks:
    """The instances (or unions) of names, concepts and exemplars, best first within a name.

    No object gets two names. Raises ValueError where the model does not understand a prompt, or it lies elsewhere.
    """
    check_understood(model, prompts)
    for prompt in prompts:
        _check_placed(prompt, features.frame.size)
    started = time.perf_counter()
    text = _encode_names(model, prompts)
    found = model.ground(features, text, instances=len(text.names) > len(prompts) or not semantic)
    masks = _settled(*_rows_of(found, model, features, prompts, semantic), semantic)
    return replace(masks, made_by=_made_by(model, prompts, found, masks, time.perf_counter() - started))


def collect_prompts(
    prompts: Prompt | Sequence[Prompt] | None,
    points: Any = None,
    point_labels: Sequence[int] | None = None,
    boxes: Any = None,
    mask: np.ndarray | None = None,
    text: str | Sequence[str] | None = None,
    not_text: str | Sequence[str] | None = None,
    exemplars: Sequence[Exemplar] = (),
) -> list[Prompt]:
    """Everything said, as one Prompt per object or name; exemplars refine the one name, or stand alone."""
    wanted = [prompts] if isinstance(prompts, Prompt) else list(prompts or ())
    one = Prompt() if points is None else Prompt.points(points, point_labels)
    if mask is not None:
        one = one + Prompt.mask(mask)
    if one.is_spatial:
        wanted.append(one)
    if boxes is not None:
        wanted += [Prompt.box(*box) for box in np.asarray(boxes, np.float32).reshape(-1, 4).tolist()]
    against = [not_text] if isinstance(not_text, str) else list(not_text or ())
    names = [text] if isinstance(text, str) else list(text or ())
    if against and not names:
        raise ValueError("a negative text needs a text: it says what not to take for it")
    named = [Prompt.text(name, against) for name in names]
    wanted += with_exemplars(named, exemplars)
    if not wanted:
        raise ValueError("nothing to segment: give a point, a box, a mask, a text or an exemplar")
    return wanted


def as_exemplars(
    shown: Sequence[Exemplar | Sequence[float]] | None, not_shown: Sequence[Exemplar | Sequence[float]] | None
) -> tuple[Exemplar, ...]:
    """Boxes x0 y0 x1 y1 of the image itself, or exemplars: those of what is meant, then those of what is not."""
    return tuple(
        replace(one, positive=positive) if isinstance(one, Exemplar) else Exemplar(box=_box(one), positive=positive)
        for group, positive in ((shown, True), (not_shown, False))
        for one in group or ()
    )


def with_exemplars(named: Sequence[Prompt], exemplars: Sequence[Exemplar]) -> list[Prompt]:
    """The prompt of the one name with the exemplars, or of the exemplars alone; other names as they are."""
    if not exemplars:
        return list(named)
    if len(named) > 1:
        raise ValueError(f"exemplars refine one text or stand alone: got {len(named)} texts; ask for one at a time")
    if not named and not any(one.positive for one in exemplars):
        raise ValueError("a negative exemplar needs a text or a positive exemplar: it says what not to take for it")
    return [(named[0] if named else Prompt()) + Prompt(exemplars=tuple(exemplars))]


def check_wanted(prompts: Sequence[Prompt], *, multimask: bool = False, zoom: bool = False) -> None:
    """Raises ValueError where prompts gainsay each other, or `multimask` or `zoom` would have no effect."""
    if multimask and zoom:
        raise ValueError("zoom gives one mask an object, multimask several: ask for one of them")
    if multimask and not any(prompt.is_spatial for prompt in prompts):
        raise ValueError("multimask is for points, boxes and masks: a text has none of them")
    wanted = {prompt.title.casefold().strip() for prompt in prompts} - {""}
    for name in (name for prompt in prompts for name in prompt.negative_names):
        if name.casefold().strip() in wanted:
            raise ValueError(
                f"{name!r} is asked for and refused at once: take it out of the texts or the negative ones"
            )


def cleaner(name: str | None) -> Callable[[Masks], Masks]:
    """Masks without holes, islands and frayed edges, by a name of `ops.cleaning.CLEANUPS`; None leaves them alone."""
    if name is not None and name not in CLEANUPS:
        raise ValueError(f"cleanup must be {', '.join(CLEANUPS)} or None, got {name!r}")

    def clean(masks: Masks) -> Masks:
        if name is None or not len(masks):
            return masks
        return replace(masks.compact(), packed=clean_rles(masks.rles, CLEANUPS[name]))

    return clean


def find_grounding(
    model: Model, named: Sequence[Prompt], detector: str | PathLike[str] | Grounding | None
) -> Grounding | None:
    """What finds the names for the model; None where it finds them itself."""
    if isinstance(detector, Grounding):
        return detector if named else None
    if not named or any(prompt.exemplars for prompt in named) or (detector is None and model.capabilities.text):
        return None
    from anymask.grounding.loading import load_grounding

    return load_grounding(None if detector is None else fspath(detector), model=model)


def check_tiles(prompts: Sequence[Prompt], tile: int | None, overlap: int | None, *, zoom: bool = False) -> None:
    """Raises ValueError for tiles that make no sense, or would not help the prompts."""
    settled_overlap(tile, overlap)
    if tile is None:
        return
    if zoom:
        raise ValueError("tile and zoom both look closer: ask for one of them")
    if any(prompt.exemplars for prompt in prompts):
        raise ValueError("tile is for texts and boxes: an exemplar would be seen in its own tile alone")
    if any(prompt.mask_input is not None or (prompt.is_spatial and prompt.box_coords is None) for prompt in prompts):
        raise ValueError("tile is for texts and boxes, which say how large a thing is: for a point or a mask use zoom")


def check_understood(model: Model, prompts: Sequence[Prompt], grounding: Grounding | None = None) -> None:
    """Raises ValueError if the model knows nothing of a kind of prompt, whatever the image."""
    can = model.capabilities
    if grounding is not None:
        _check_grounded(model, prompts)
        prompts = [prompt for prompt in prompts if prompt.is_spatial]
    if any(prompt.exemplars for prompt in prompts) and not can.exemplars:
        raise ValueError(f"{model.name} knows no exemplars: use sam3 (--model facebook/sam3)")
    if any(prompt.is_semantic for prompt in prompts) and not can.text:
        raise knows_no_text(model.name)
    if any(prompt.is_spatial for prompt in prompts) and not can.points:
        raise ValueError(f"{model.name} knows names and exemplars alone: use facebook/sam3 for points, boxes and masks")


def _check_grounded(model: Model, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for what a detector cannot find, or the model not make masks of."""
    if not model.capabilities.boxes:
        raise ValueError(f"{model.name} takes no boxes, which is what a detector gives: leave the detector out")
    if any(prompt.exemplars for prompt in prompts):
        raise ValueError("a detector knows names, no exemplars: leave the detector out, and use facebook/sam3")
    for prompt in prompts:
        if prompt.vectors is not None and not prompt.is_spatial:
            raise ValueError(
                f"the concept {prompt.title!r} holds vectors that {prompt.learned and prompt.learned.base_model} reads:"
                " a detector knows words alone"
            )


def _encode(model: Model, image: Image, grounding: Grounding | None) -> Features:
    """The features, from the cache that names will read them from."""
    return grounding.cache.encode(model, image) if grounding else model.encode([image])[0]


def _find_named(
    model: Model,
    image: Image,
    grid: "_Grid | None",
    named: Sequence[Prompt],
    semantic: bool,
    grounding: Grounding | None,
    zoom: bool,
) -> Masks:
    """Names in the image or its tiles, by the model itself or by what finds them for it."""
    if grounding is None and zoom:
        raise ValueError(f"{model.name} finds texts itself, without a closer look: zoom is for points, boxes and masks")
    if grounding is None:
        return (
            _names_in_tiles(model, grid, named, semantic)
            if grid
            else ground(model, model.encode([image])[0], named, semantic=semantic)
        )
    if grid is None:
        found = grounding.find(model, image, named, zoom=zoom)
    else:
        crops = [(crop, grounding.find(model, grid.cut_out(crop), named, zoom=zoom)) for crop in grid.crops]
        joined = join([(crop, lift(masks, crop, image.size)) for crop, masks in crops], image.size)
        found = replace(_settled(joined, Masks.empty(image.size), False), made_by=crops[0][1].made_by)
    return united(found) if semantic else found


@dataclass(frozen=True, eq=False)
class _Grid:
    """An image to be looked at in tiles."""

    image: Image
    tile: int
    overlap: int

    @property
    def crops(self) -> list[CropBox]:
        """The whole image, and its tiles where there is more than one."""
        h, w = self.image.size
        return list(dict.fromkeys([(0, 0, w, h), *tiles(self.image.size, self.tile, self.overlap)]))

    def around(self, prompt: Prompt) -> CropBox:
        """Where to look at a box and its points."""
        corners = np.concatenate([np.asarray(prompt.box_coords, np.float32).reshape(2, 2), prompt.point_coords])
        hull = *corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()
        return around(hull, self.image.size, self.tile, self.overlap)

    def cut_out(self, crop: CropBox) -> Image:
        """The picture of a crop, as small as that: all that is computed of it is in its own pixels."""
        x0, y0, x1, y1 = crop
        return Image(self.image.pixels[y0:y1, x0:x1], self.image.name)


def _boxes_in_tiles(model: Model, grid: _Grid, prompts: Sequence[Prompt], multimask: bool) -> Masks:
    """Each box in the tile around it, no tile encoded twice; ids in the order of the prompts."""
    places, found = [grid.around(prompt) for prompt in prompts], dict[int, Masks]()
    for crop in dict.fromkeys(places):
        features = model.encode([grid.cut_out(crop)])[0]
        for i in np.flatnonzero([other == crop for other in places]).tolist():
            masks = predict(model, features, [_moved(prompts[i], crop)], multimask_output=multimask or None)
            found[i] = replace(lift(masks, crop, grid.image.size), ids=np.full(len(masks), i + 1))
    return Masks.concat([found[i] for i in range(len(prompts))])


def _names_in_tiles(model: Model, grid: _Grid, prompts: Sequence[Prompt], semantic: bool) -> Masks:
    """Names in the whole image and in every tile: their instances joined across seams, or their unions."""
    text, size, overall = _encode_names(model, prompts), grid.image.size, list[Grounded]()
    wanted, refused = list[tuple[CropBox, Masks]](), list[tuple[CropBox, Masks]]()
    for crop in grid.crops:  # the whole image comes first
        features = model.encode([grid.cut_out(crop)])[0]
        found = model.ground(features, text, instances=len(text.names) > len(prompts) or not semantic)
        overall = overall or found
        judged = [
            replace(one, presence=_judged(one.presence, all_.presence))
            for one, all_ in zip(found, overall, strict=True)
        ]
        here, against = _rows_of(judged, model, features, prompts, semantic)
        wanted.append((crop, lift(without(here, against) if semantic else one_each(here), crop, size)))
        refused.append((crop, lift(against, crop, size)))
    if semantic:
        return _union_of_tiles(wanted, size)
    return _settled(join(wanted, size), join(refused, size), semantic)


def _judged(tile: float, whole: float) -> float:
    """The presence of a name in a tile: its own, or the mean of its and the whole image's log-odds if that is less.

    Many tiles are many chances of a false alarm. That a name is elsewhere in the image makes it no surer here.
    """
    yes, no = (tile * whole) ** 0.5, ((1 - tile) * (1 - whole)) ** 0.5
    return min(tile, yes / (yes + no)) if yes + no else tile


def _moved(prompt: Prompt, crop: CropBox) -> Prompt:
    """A box and its points in the pixels of a crop."""
    corner = np.asarray(crop[:2], np.float32)
    box = None if prompt.box_coords is None else _box((np.asarray(prompt.box_coords) - [*corner, *corner]).tolist())
    return replace(prompt, point_coords=prompt.point_coords - corner, box_coords=box)


def _union_of_tiles(parts: Sequence[tuple[CropBox, Masks]], size: Size) -> Masks:
    """One union a name: in each tile its own, and where it has none that of the whole image, which comes first."""
    (_, whole), *tiled = parts
    names = dict.fromkeys(label for _, masks in parts for label in masks.labels)
    rows = [Masks.empty(size)]
    for name in names:
        coarse = [row for row in whole if row.labels[0] == name]
        pieces = list(coarse) if not tiled else []
        for crop, masks in tiled:
            own = [row for row in masks if row.labels[0] == name]
            pieces += own or [replace(row, packed=rle.crop(row.rles, crop, size)) for row in coarse]
        score = max((float(row.scores[0]) for row in pieces), default=0.0)
        union = rle.merge([row.rles[0] for row in pieces], size)
        rows.append(Masks.from_rles([union], size, scores=[score], labels=[name]))
    united = Masks.concat(rows)
    return replace(united[np.flatnonzero(united.areas)], ids=np.arange(1, int((united.areas > 0).sum()) + 1))


def _ready(model: str | PathLike[str] | Model) -> Model:
    return model if isinstance(model, Model) else load(fspath(model))


def _check_placed(prompt: Prompt, size: Size) -> None:
    """Raises ValueError for what lies outside its image."""
    check_prompt(prompt, size)
    for one in prompt.exemplars:
        _check_exemplar(one, size)


def _check_exemplar(exemplar: Exemplar, size: Size) -> None:
    """Raises ValueError for one that cannot lie in its image, which is of `size` unless it is another."""
    h, w = size if exemplar.image is None else exemplar.image.size
    where = f"{'the image' if exemplar.image is None else exemplar.image.name} of {w} x {h} pixels"
    if exemplar.mask is not None and exemplar.mask.shape != (h, w):
        raise ValueError(
            f"the mask of an exemplar must be bool {(h, w)} (h, w) like {where}, got {exemplar.mask.shape}"
        )
    if exemplar.mask is not None and not exemplar.mask.any():
        raise ValueError("the mask of an exemplar must mark something, got an empty mask")
    if exemplar.box is not None:
        x0, y0, x1, y1 = exemplar.box
        if not (0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h):
            raise ValueError(f"an exemplar box must lie in {where}, got {x0:g},{y0:g},{x1:g},{y1:g}")


def _box(corners: Sequence[float]) -> Box:
    if len(corners) != 4:
        raise ValueError(f"an exemplar must be a box x0 y0 x1 y1 or an Exemplar, got {list(corners)}")
    x0, y0, x1, y1 = (float(side) for side in corners)
    return x0, y0, x1, y1


def _encode_names(model: Model, prompts: Sequence[Prompt]) -> EncodedText:
    """The names, then what they are not, each once."""
    negative = dict.fromkeys(name for prompt in prompts for name in prompt.negative_names)
    return model.encode_text([*prompts, *(Prompt.text(name) for name in negative)])


def _rows_of(
    found: Sequence[Grounded], model: Model, features: Features, prompts: Sequence[Prompt], semantic: bool
) -> tuple[Masks, Masks]:
    """What was found of the names in one image, and of what they are not."""
    n, thresholds, empty = len(prompts), model.capabilities.thresholds, Masks.empty(features.frame.size)
    own = [replace(thresholds, presence=presence_threshold(model, prompt)) for prompt in prompts]
    triples = zip(found[:n], prompts, own, strict=True)
    wanted = [_rows(grounded, features, prompt.title, semantic, limits) for grounded, prompt, limits in triples]
    refused = [_rows(grounded, features, "", False, thresholds) for grounded in found[n:]]
    return Masks.concat([empty, *wanted]), Masks.concat([empty, *refused])


def _settled(wanted: Masks, refused: Masks, semantic: bool) -> Masks:
    """Without what a negative name claims more surely, and one name an object; ids from 1."""
    masks = without(wanted, refused)
    kept = masks if semantic else one_each(masks)
    return replace(kept, ids=np.arange(1, len(kept) + 1))


def _made_by(
    model: Model, prompts: Sequence[Prompt], found: Sequence[Grounded], masks: Masks, seconds: float
) -> dict[str, Any]:
    """What to know of names that the model found itself."""
    missing = {p.title: round(float(one.presence), 4) for p, one in zip(prompts, found, strict=False)}
    return {
        "detector": model.name,
        "thresholds": {prompt.title: round(presence_threshold(model, prompt), 4) for prompt in prompts},
        "nearest": {name: presence for name, presence in missing.items() if name not in masks.labels},
        "seconds": {"ground": round(seconds, 4)},
    }


def _rows(grounded: Grounded, features: Features, label: str, semantic: bool, thresholds: Thresholds) -> Masks:
    """One name's instances sure enough, or its union, as Masks held in RLE; none of a name judged absent."""
    if grounded.presence < thresholds.presence:
        return Masks.empty(features.frame.size)
    if semantic:
        logits, scores = grounded.semantic_logits[None], torch.tensor([grounded.presence])
    else:
        likely = grounded.scores * grounded.presence
        sure = (grounded.scores >= thresholds.instance) & (likely >= thresholds.product)
        logits, scores = grounded.logits[sure], likely[sure]
    rles = [rle.encode((place(row[None], features.frame) > 0).numpy())[0] for row in logits]
    masks = Masks.from_rles(
        rles, features.frame.size, scores=scores.numpy(), labels=[label] * len(rles), logits=logits.numpy()
    )
    return masks[np.flatnonzero(masks.areas)]


def _numbered(parts: Sequence[Masks]) -> Masks:
    """The rows of all parts with ids that do not collide."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    moved = second.ids + (first.ids.max() if len(first) else 0)
    return replace(Masks.concat(parts), ids=np.concatenate([first.ids, moved]))
