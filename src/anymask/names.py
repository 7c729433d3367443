"""Names to masks: by a model that knows names, or by a detector before one that knows none; in an image or its tiles.

Either way no object has two names, and what a negative name claims more surely is taken away.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from anymask.asking import check_placed, check_understood
from anymask.grounding.instances import CLEARLY, one_each, united, why_missing, without
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
    wanted, refused = _rows_of(found, model, features, prompts, semantic)
    masks = _settled(wanted, refused, semantic)
    made_by = _made_by(model, prompts, [one.presence for one in found], _Lost(wanted, refused, masks))
    return replace(masks, made_by=with_seconds(made_by, "ground", time.perf_counter() - started))


def with_seconds(made_by: Mapping[str, Any], stage: str, seconds: float) -> dict[str, Any]:
    """What is known of a run, and how long one stage of it took."""
    return {**made_by, "seconds": {**made_by.get("seconds", {}), stage: round(seconds, 4)}}


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
            started = time.perf_counter()
            features = self.cache.encode(self.model, self.image)
            seconds = time.perf_counter() - started
            masks = ground(self.model, features, self.prompts, semantic=semantic)
            return replace(masks, made_by=with_seconds(masks.made_by, "encode", seconds))
        found = self.grounding.find(self.model, self.image, self.prompts, zoom=zoom)
        return united(found) if semantic else found

    def in_tiles(self, grid: Grid, semantic: bool) -> Masks:
        if self.grounding is None:
            return _names_in_tiles(self.model, self.cache, grid, self.prompts, semantic)
        crops = [(crop, self.grounding.find(self.model, grid.cut_out(crop), self.prompts)) for crop in grid.crops]
        parts = [(crop, lift(masks, crop, self.image.size)) for crop, masks in crops]
        found = _settled(join(parts, self.image.size), Masks.empty(self.image.size), False)
        found = replace(found, made_by=_made_by_all([masks for _, masks in parts], found))
        return united(found) if semantic else found


def _names_in_tiles(model: Model, cache: FeatureCache, grid: Grid, prompts: Sequence[Prompt], semantic: bool) -> Masks:
    """Names in the whole image and in every tile: their instances joined across seams, or their unions."""
    started, encoding = time.perf_counter(), 0.0
    text, size, overall = _encode_names(model, prompts), grid.image.size, list[Grounded]()
    wanted, refused = list[tuple[CropBox, Masks]](), list[tuple[CropBox, Masks]]()
    rows, nearest = [Masks.empty(size)], np.zeros(len(prompts))
    for crop in grid.crops:  # the whole image comes first
        before = time.perf_counter()
        features = cache.encode(model, grid.cut_out(crop))
        encoding += time.perf_counter() - before
        found = model.ground(features, text, instances=len(text.names) > len(prompts) or not semantic)
        overall = overall or found
        judged = [
            replace(one, presence=_judged(one.presence, all_.presence))
            for one, all_ in zip(found, overall, strict=True)
        ]
        nearest = np.maximum(nearest, [one.presence for one in judged[: len(prompts)]])
        here, against = _rows_of(judged, model, features, prompts, semantic)
        rows.append(lift(here, crop, size))
        wanted.append((crop, lift(without(here, against) if semantic else one_each(here), crop, size)))
        refused.append((crop, lift(against, crop, size)))
    against = join(refused, size)
    masks = _union_of_tiles(wanted, size) if semantic else _settled(join(wanted, size), against, semantic)
    made_by = _made_by(model, prompts, nearest.tolist(), _Lost(Masks.concat(rows), against, masks))
    made_by = with_seconds(made_by, "encode", encoding)
    return replace(masks, made_by=with_seconds(made_by, "ground", time.perf_counter() - started - encoding))


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
        coarse = list(whole[whole.rows_named(name)])
        pieces = [] if tiled else coarse
        for crop, masks in tiled:
            own = list(masks[masks.rows_named(name)])
            pieces += own or [replace(row, packed=rle.crop(row.rles, crop, size)) for row in coarse]
        score = max((float(row.scores[0]) for row in pieces), default=0.0)
        union = rle.merge([row.rles[0] for row in pieces], size)
        rows.append(Masks.from_rles([union], size, scores=[score], labels=[name]))
    united = Masks.concat(rows)
    return replace(united[np.flatnonzero(united.areas)], ids=np.arange(1, int((united.areas > 0).sum()) + 1))


def _encode_names(model: Model, prompts: Sequence[Prompt]) -> EncodedText:
    """The names, then what they are not, each once."""
    return model.encode_text([*prompts, *(Prompt.text(name) for name in _negative_names(prompts))])


def _negative_names(prompts: Sequence[Prompt]) -> list[str]:
    return list(dict.fromkeys(name for prompt in prompts for name in prompt.negative_names))


def _rows_of(
    found: Sequence[Grounded], model: Model, features: Features, prompts: Sequence[Prompt], semantic: bool
) -> tuple[Masks, Masks]:
    """What was found of the names in one image, and of what they are not."""
    n, thresholds, empty = len(prompts), model.capabilities.thresholds, Masks.empty(features.frame.size)
    own = [replace(thresholds, presence=presence_threshold(model, prompt)) for prompt in prompts]
    triples = zip(found[:n], prompts, own, strict=True)
    wanted = [_rows(grounded, features, prompt.title, semantic, limits) for grounded, prompt, limits in triples]
    against = zip(found[n:], _negative_names(prompts), strict=True)
    refused = [_rows(grounded, features, name, False, thresholds) for grounded, name in against]
    return Masks.concat([empty, *wanted]), Masks.concat([empty, *refused])


def _settled(wanted: Masks, refused: Masks, semantic: bool) -> Masks:
    """Without what a negative name claims more surely, and one name an object; ids from 1."""
    masks = without(wanted, refused)
    kept = masks if semantic else one_each(masks)
    return replace(kept, ids=np.arange(1, len(kept) + 1))


@dataclass(frozen=True, eq=False)
class _Lost:
    """What was found of all names, what of those that they are not, and what is left."""

    found: Masks
    refused: Masks
    kept: Masks

    def taken_by(self, name: str) -> str:
        """The label of what covers most of a name's mask, and is surer; empty where nothing does."""
        rows = self.found[self.found.rows_named(name)]
        others = Masks.concat([self.refused, self.kept])
        if len(rows) and len(others):
            clearly = np.repeat([CLEARLY, 1.0], [len(self.refused), len(self.kept)])
            surer = others.scores[None] >= clearly * rows.scores[:, None]
            shared = rle.intersections(rows.rles, others.rles) * surer / np.maximum(rows.areas[:, None], 1)
            if shared.any():
                return others.labels[int(shared.max(axis=0).argmax())]
        return ""


def _made_by(model: Model, prompts: Sequence[Prompt], presence: Sequence[float], lost: _Lost) -> dict[str, Any]:
    """What to know of names that the model found itself, the seconds aside."""
    thresholds = {prompt.title: round(presence_threshold(model, prompt), 4) for prompt in prompts}
    scores = {prompt.title: round(float(one), 4) for prompt, one in zip(prompts, presence, strict=False)}
    nearest = {name: score for name, score in scores.items() if name not in lost.kept.labels}
    missing = {name: why_missing(score, thresholds[name], lost.taken_by(name)) for name, score in nearest.items()}
    return {"detector": model.name, "thresholds": thresholds, "nearest": nearest, "missing": missing}


def _made_by_all(parts: Sequence[Masks], kept: Masks) -> dict[str, Any]:
    """What detectors say of their run on each crop, as if it were one: the most of scores, the sum of all work."""
    told = [part.made_by for part in parts]
    first, lost = told[0], _Lost(Masks.concat(parts), Masks.empty(kept.size), kept)
    nearest, missing = dict[str, float](), dict[str, str]()
    for name in first["thresholds"]:
        if name in kept.labels:
            continue
        best = max(told, key=lambda one: one["nearest"].get(name, 0.0))
        own = lost.found[lost.found.rows_named(name)]
        if len(own):  # lost where crops were joined
            detected = float(own.measures["detected"].max())
            nearest[name] = round(max(best["nearest"].get(name, 0.0), detected), 4)
            missing[name] = why_missing(nearest[name], first["thresholds"][name], lost.taken_by(name))
        else:
            nearest[name], missing[name] = best["nearest"][name], best["missing"][name]
    sums = {key: _summed([one[key] for one in told]) for key in ("refined", "seconds")}
    notes = list(dict.fromkeys(note for one in told for note in one["notes"]))
    return {**first, "nearest": nearest, "missing": missing, **sums, "notes": notes}


def _summed(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        key: round(sum(one.get(key, 0) for one in counts), 4) for key in dict.fromkeys(k for one in counts for k in one)
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
