"""Names to masks: by a model that knows names, or by a detector before one that knows none; in an image or its tiles.

Either way no object has two names, and what a negative name claims more surely is taken away.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from anymask.asking import check_placed, check_understood
from anymask.grounding.instances import one_each, united, without
from anymask.grounding.pipeline import Grounding
from anymask.joining import join
from anymask.models.capabilities import presence_threshold
from anymask.models.feature_cache import FeatureCache
from anymask.models.protocol import EncodedText, Grounded, Model, Thresholds
from anymask.ops import rle
from anymask.ops.grids import CropBox
from anymask.prompting import place
from anymask.tiling import Grid, lift
from anymask.types import Features, Image, Masks, Prompt, Size


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
        check_placed(prompt, features.frame.size)
    started = time.perf_counter()
    text = _encode_names(model, prompts)
    found = model.ground(features, text, instances=len(text.names) > len(prompts) or not semantic)
    masks = _settled(*_rows_of(found, model, features, prompts, semantic), semantic)
    return replace(masks, made_by=_made_by(model, prompts, found, masks, time.perf_counter() - started))


@dataclass(frozen=True, eq=False)
class Names:
    """Names to be found in an image, by the model itself or by what finds them for it."""

    model: Model
    image: Image
    prompts: Sequence[Prompt]
    grounding: Grounding | None
    cache: FeatureCache

    def in_image(self, semantic: bool, zoom: bool) -> Masks:
        if self.grounding is None:
            return ground(self.model, self.cache.encode(self.model, self.image), self.prompts, semantic=semantic)
        found = self.grounding.find(self.model, self.image, self.prompts, zoom=zoom)
        return united(found) if semantic else found

    def in_tiles(self, grid: Grid, semantic: bool) -> Masks:
        if self.grounding is None:
            return _names_in_tiles(self.model, grid, self.prompts, semantic)
        crops = [(crop, self.grounding.find(self.model, grid.cut_out(crop), self.prompts)) for crop in grid.crops]
        joined = join([(crop, lift(masks, crop, self.image.size)) for crop, masks in crops], self.image.size)
        found = replace(_settled(joined, Masks.empty(self.image.size), False), made_by=crops[0][1].made_by)
        return united(found) if semantic else found


def _names_in_tiles(model: Model, grid: Grid, prompts: Sequence[Prompt], semantic: bool) -> Masks:
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
