"""The public `segment`: an image and prompts of any kind to masks, with any model."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch

from anymask.data.images import read_image
from anymask.models.load import load
from anymask.models.protocol import Grounded, Model
from anymask.ops import rle
from anymask.prompting import place, predict, predict_batch
from anymask.prompting import zoom as zoom_in
from anymask.types import Features, Image, Masks, Prompt

PRESENCE_THRESHOLD = 0.45
INSTANCE_THRESHOLD = 0.28
SAME_OBJECT = 0.5  # IoU of two instances of different names from which only the surer stays


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
    model: str | Model = "pocket",
    multimask: bool = False,
    zoom: bool = False,
    semantic: bool = False,
) -> Masks:
    """Masks of what the prompts mean, best guesses first for text, in prompt order for points, boxes and masks.

    `points` and `mask` together prompt one object, each row of `boxes` another one, each text all its instances
    (`semantic`: one union a name). `multimask` gives every candidate of an object, `zoom` a second, closer look.
    """
    picture = read_image(image)
    wanted = collect_prompts(prompts, points, point_labels, boxes, mask, text, not_text)
    network = load(model) if isinstance(model, str) else model
    features = network.encode([picture])[0]
    parts = []
    spatial = [prompt for prompt in wanted if prompt.is_spatial]
    if spatial:
        found = predict(network, features, spatial, multimask_output=multimask)
        parts.append(zoom_in(network, picture, spatial, found) if zoom and not multimask else found)
    named = [prompt for prompt in wanted if not prompt.is_spatial]
    if named:
        parts.append(ground(network, features, named, semantic=semantic))
    return _numbered(parts)


def segment_batch(
    images: Sequence[Image],
    prompts: Sequence[Sequence[Prompt]],
    *,
    model: str | Model = "pocket",
    multimask: bool = False,
) -> list[Masks]:
    """Several images with points, boxes or masks, any number of prompts each, encoded once and decoded in one batch."""
    network = load(model) if isinstance(model, str) else model
    return predict_batch(network, network.encode(images), prompts, multimask_output=multimask)


def find(
    model: Model,
    features: Features,
    names: Sequence[str],
    *,
    semantic: bool = False,
    negative_names: Sequence[str] = (),
) -> Masks:
    """All instances of each name, or one union a name; a name judged absent has no row."""
    return ground(model, features, [Prompt.text(name, negative_names) for name in names], semantic=semantic)


def ground(model: Model, features: Features, prompts: Sequence[Prompt], *, semantic: bool = False) -> Masks:
    """The instances (or unions) of texts and concepts, best first within a name, never two names on one object."""
    if not model.capabilities.text:
        raise ValueError(f"{model.name} knows no text: prompt it with points, boxes or a mask, or use --model pocket")
    negative = [Prompt.text(name) for name in dict.fromkeys(n for p in prompts for n in p.negative_names)]
    found = model.ground(features, model.encode_text([*prompts, *negative]), instances=bool(negative) or not semantic)
    wanted, refused = found[: len(prompts)], found[len(prompts) :]
    labels = [prompt.name or (prompt.learned.name if prompt.learned else "") for prompt in prompts]
    rows = [
        _rows(grounded, features, label, semantic)
        for grounded, label in zip(wanted, labels, strict=True)
        if grounded.presence >= PRESENCE_THRESHOLD
    ]
    empty = Masks.empty(features.frame.size)
    masks = Masks.concat([empty, *rows])
    against = [_rows(grounded, features, "", False) for grounded in refused if grounded.presence >= PRESENCE_THRESHOLD]
    masks = _without(masks, Masks.concat([empty, *against]))
    kept = masks if semantic else _one_name_each(masks)
    return replace(kept, ids=np.arange(1, len(kept) + 1))


def collect_prompts(
    prompts: Prompt | Sequence[Prompt] | None,
    points: Any = None,
    point_labels: Sequence[int] | None = None,
    boxes: Any = None,
    mask: np.ndarray | None = None,
    text: str | Sequence[str] | None = None,
    not_text: str | Sequence[str] | None = None,
) -> list[Prompt]:
    """Everything said, as one Prompt per object or name."""
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
    wanted += [Prompt.text(name, against) for name in names]
    if not wanted:
        raise ValueError("nothing to segment: give a point, a box, a mask or a text")
    return wanted


def _rows(grounded: Grounded, features: Features, label: str, semantic: bool) -> Masks:
    """One name's instances sure enough, or its union, as Masks held in RLE."""
    if semantic:
        logits, scores = grounded.semantic_logits[None], torch.tensor([grounded.presence])
    else:
        sure = grounded.scores >= INSTANCE_THRESHOLD
        logits, scores = grounded.logits[sure], grounded.scores[sure] * grounded.presence
    rles = [rle.encode((place(row[None], features.frame) > 0).numpy())[0] for row in logits]
    masks = Masks.from_rles(
        rles, features.frame.size, scores=scores.numpy(), labels=[label] * len(rles), logits=logits.numpy()
    )
    return masks[np.flatnonzero(masks.areas)]


def _one_name_each(masks: Masks) -> Masks:
    """Of instances that are nearly one mask the surest stays: an object gets one label, a part may have its own."""
    kept: list[int] = []
    overlap = rle.iou(masks.rles, masks.rles)
    for row in np.argsort(-masks.scores, kind="stable"):
        if all(overlap[row, other] < SAME_OBJECT for other in kept):
            kept.append(int(row))
    return masks[np.asarray(sorted(kept), np.int64)]


def _without(masks: Masks, refused: Masks) -> Masks:
    """Rows that no surer row of `refused` overlaps."""
    if not len(masks) or not len(refused):
        return masks
    beaten = (_shared_of_smaller(masks, refused) > 0.5) & (refused.scores[None] >= masks.scores[:, None])
    return masks[np.flatnonzero(~beaten.any(axis=1))]


def _shared_of_smaller(first: Masks, second: Masks) -> np.ndarray:
    """Intersection of every pair, as a share of the smaller mask."""
    iou = rle.iou(first.rles, second.rles)
    a, b = first.areas[:, None], second.areas[None]
    return np.asarray(iou * (a + b) / (1 + iou) / np.maximum(np.minimum(a, b), 1))


def _numbered(parts: Sequence[Masks]) -> Masks:
    """The rows of all parts with ids that do not collide."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    moved = second.ids + (first.ids.max() if len(first) else 0)
    return replace(Masks.concat(parts), ids=np.concatenate([first.ids, moved]))
