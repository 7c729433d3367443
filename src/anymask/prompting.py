"""Points, boxes and masks to masks: the decoder's answers brought to the pixels of the original image."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from anymask.models.protocol import Decoded, Model
from anymask.ops import resize, rle
from anymask.ops.grids import CropBox
from anymask.types import Features, Frame, Image, Masks, Prompt, Size

STABILITY_OFFSET = 1.0
DENSE_PIXELS = 2**26  # of all masks together: more are held as RLE


def predict(
    model: Model, features: Features, prompts: Sequence[Prompt], *, multimask_output: bool | None = None
) -> Masks:
    """One mask per prompt, in order, ids from 1; with `multimask_output` several rows share the id of their prompt.

    None, the default, takes the surest candidate of a lone click, which may mean a part or the whole; False takes the
    one mask that the decoder has for prompts without doubt (`Model.decode`).
    """
    return predict_batch(model, [features], [prompts], multimask_output=multimask_output)[0]


def predict_batch(
    model: Model,
    features: Sequence[Features],
    prompts: Sequence[Sequence[Prompt]],
    *,
    multimask_output: bool | None = None,
) -> list[Masks]:
    """`predict` for several images with any number of prompts each, decoded as one batch."""
    if len(features) != len(prompts):
        raise ValueError(f"every image needs its list of prompts: got {len(features)} images, {len(prompts)} lists")
    for one, some in zip(features, prompts, strict=True):
        for prompt in some:
            check_prompt(prompt, one.frame.size)
    decoded = model.decode(features, prompts, multimask_output)
    for answer in decoded:
        check_finite(answer.predicted_iou, model.name)
    pairs = zip(features, prompts, decoded, strict=True)
    return [_to_masks(one.frame, result, [prompt.name or "" for prompt in some]) for one, some, result in pairs]


def zoom(model: Model, image: Image, prompts: Sequence[Prompt], masks: Masks, *, margin: float = 0.5) -> Masks:
    """The masks again from a closer look: each first mask's surroundings are encoded anew and prompted again.

    `masks` has one row per prompt. Helps small objects in big photos; an object that fills the image stays as it is.
    """
    if len(masks) != len(prompts):
        raise ValueError(f"zoom needs one mask per prompt, got {len(masks)} masks and {len(prompts)} prompts")
    results = {}
    for i, box in enumerate(masks.boxes):  # one crop at a time: the features of all would fill the memory
        crop = crop_around(box, image.size, margin)
        if crop is not None and _inside(prompts[i], crop):
            features = model.encode([image], [crop])[0]
            results[i] = predict(model, features, [_with_rough_box(prompts[i], masks[i])])
    if not results:
        return masks
    renewed = [results.get(i, masks[i]) for i in range(len(masks))]
    return Masks.from_dense(
        np.concatenate([one.masks for one in renewed]),
        scores=np.concatenate([one.scores for one in renewed]),
        labels=masks.labels,
        ids=masks.ids,
    )


def check_prompt(prompt: Prompt, size: Size) -> None:
    """Raises ValueError for a prompt that cannot be meant for an image of `size`."""
    h, w = size
    if not (prompt.is_spatial or prompt.is_semantic):
        raise ValueError("a prompt must say something: give a point, a box, a mask or a text")
    for x, y in prompt.point_coords:
        if not (0 <= x <= w and 0 <= y <= h):
            raise ValueError(f"a point must lie in the image of {w} x {h} pixels, got {x:g},{y:g}")
    if prompt.box_coords is not None:
        x0, y0, x1, y1 = prompt.box_coords
        if x1 <= 0 or y1 <= 0 or x0 >= w or y0 >= h:
            raise ValueError(f"a box must lie in the image of {w} x {h} pixels, got {x0:g},{y0:g},{x1:g},{y1:g}")
    mask = prompt.mask_input
    if mask is not None and mask.dtype == bool:
        if mask.shape != size:
            got = f"{mask.shape[1]} x {mask.shape[0]}"
            raise ValueError(f"a mask prompt must be of the size of the image, {w} x {h} pixels, got {got}")
        if not mask.any():
            raise ValueError("a mask prompt must mark something, got an empty mask")


def check_finite(predicted_iou: Float[Tensor, "..."], model: str) -> None:
    """Raises ValueError for an answer that holds NaN; `model` is the one that gives it."""
    if not torch.isfinite(predicted_iou).all():
        raise ValueError(f"{model} answers with NaN: its weights are broken, or its dtype is too narrow (float32)")


def crop_around(box: np.ndarray, size: Size, margin: float) -> CropBox | None:
    """`box` with `margin` times its longer side on each side, at least 64 pixels wide; None if most of the image."""
    x0, y0, x1, y1 = (float(side) for side in box)
    if x1 <= x0:
        return None
    reach = max(64.0, (1 + 2 * margin) * max(x1 - x0, y1 - y0)) / 2
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    left, right = max(0, int(cx - reach)), min(size[1], int(cx + reach) + 1)
    top, bottom = max(0, int(cy - reach)), min(size[0], int(cy + reach) + 1)
    if (right - left) * (bottom - top) > 0.7 * size[0] * size[1]:
        return None
    return left, top, right, bottom


def place(logits: Float[Tensor, "n lh lw"], frame: Frame) -> Float[Tensor, "n h w"]:
    """Logits of the model's frame in the pixels of the original image."""
    return resize.around_crop(place_on_crop(logits, frame), frame.size, frame.crop_box)


def place_on_crop(logits: Float[Tensor, "n lh lw"], frame: Frame) -> Float[Tensor, "n ch cw"]:
    """Logits of the model's frame in the pixels of its crop."""
    x0, y0, x1, y1 = frame.crop_box
    if frame.through_input:
        h, w = frame.content_size
        logits = functional.interpolate(logits[:, None], frame.input_size, mode="bilinear")[:, 0, :h, :w]
    return functional.interpolate(logits[:, None], size=(y1 - y0, x1 - x0), mode="bilinear")[:, 0]


def whole_pixels(limit: Float[np.ndarray, "4"] | None, size: Size) -> CropBox:
    """A row of `Decoded.limits`, rounded to pixels, within an image of `size`; all of it where there is no limit."""
    h, w = size
    if limit is None:
        return 0, 0, w, h
    x0, y0, x1, y1 = np.clip(np.round(limit), 0, (w, h, w, h)).astype(int).tolist()
    return x0, y0, x1, y1


def stability(logits: Float[Tensor, "n lh lw"], offset: float = STABILITY_OFFSET) -> Float[Tensor, "n"]:
    """IoU of the masks above +offset and above -offset (SAM, `calculate_stability_score`); 1 where both are empty."""
    inner = (logits > offset).sum(dim=(-2, -1)).float()
    outer = (logits > -offset).sum(dim=(-2, -1)).float()
    return torch.where(outer > 0, inner / outer.clamp(min=1), torch.ones_like(outer))


def _to_masks(frame: Frame, decoded: Decoded, labels: Sequence[str]) -> Masks:
    n, c = decoded.predicted_iou.shape
    logits = decoded.logits.flatten(0, 1).float()
    columns = {
        "scores": decoded.predicted_iou.flatten().float().numpy(),
        "labels": tuple(label for label in labels for _ in range(c)),
        "ids": np.repeat(np.arange(1, n + 1), c),
        "stability": stability(logits).numpy(),
        "logits": logits.numpy(),
    }
    if n * c * frame.size[0] * frame.size[1] > DENSE_PIXELS:
        packed = [rle.encode_window(mask, x0, y0, frame.size) for mask, x0, y0 in _full_masks(frame, decoded, logits)]
        return Masks.from_rles(packed, frame.size, **columns)
    dense = np.zeros((n * c, *frame.size), dtype=bool)
    for whole, (mask, x0, y0) in zip(dense, _full_masks(frame, decoded, logits), strict=True):
        whole[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    return Masks.from_dense(dense, **columns)


def _full_masks(
    frame: Frame, decoded: Decoded, logits: Float[Tensor, "r lh lw"]
) -> Iterator[tuple[Bool[np.ndarray, "mh mw"], int, int]]:
    """Each mask within its limit and where it begins, one at a time: one float mask of full size is there at once."""
    c = decoded.predicted_iou.shape[1]
    for row in range(len(logits)):
        limit = None if decoded.limits is None else decoded.limits[row // c]
        x0, y0, x1, y1 = whole_pixels(limit, frame.size)
        yield (place(logits[row : row + 1], frame)[0, y0:y1, x0:x1] > 0).numpy(), x0, y0


def _inside(prompt: Prompt, crop: CropBox) -> bool:
    x0, y0, x1, y1 = crop
    return all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in prompt.point_coords)


def _with_rough_box(prompt: Prompt, mask: Masks) -> Prompt:
    """The prompt for the closer look: the user's own, with the first mask's box where none was given."""
    rough = None if prompt.mask_input is not None and prompt.mask_input.dtype != bool else prompt.mask_input
    return Prompt(
        point_coords=prompt.point_coords,
        point_labels=prompt.point_labels,
        box_coords=prompt.box_coords or _as_box(mask.boxes[0]),
        mask_input=rough,
        name=prompt.name,
        learned=prompt.learned,
    )


def _as_box(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(side) for side in box)
    return x0, y0, x1, y1
