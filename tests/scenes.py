"""Random scenes whose objects are known, what a perfect segmenter would say of each tile of them, and such a model."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from anymask.models.protocol import Capabilities, Decoded, EncodedText, Grounded
from anymask.ops import rle
from anymask.tiling import lift
from anymask.types import Features, Frame, Image, Masks, Prompt

KINDS = ("rectangle", "ellipse", "ring", "snake", "neighbours", "nested")


def scene(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Bool masks of `count` shapes or a few more, each in one piece; none overlap but the nested ones."""
    free, found = np.ones(size, bool), []
    for _ in range(count):
        drawn = _shape(rng, size, KINDS[rng.integers(len(KINDS))])
        visible = [_largest_piece(mask & free) for mask in drawn]
        found += [
            mask for i, mask in enumerate(visible) if mask.any() and not any((mask == m).all() for m in visible[:i])
        ]
        for mask in drawn:
            free &= ~mask
    return found


def pieces_of(mask: np.ndarray) -> list[np.ndarray]:
    """Its connected pieces."""
    count, numbered = cv2.connectedComponents(mask.astype(np.uint8))
    return [numbered == i for i in range(1, count)]


def seen(truth: list[np.ndarray], crop, *, in_pieces=False, labels=None, spoil=None) -> Masks:
    """The objects as one tile sees them, in pixels of the whole image; `in_pieces` each connected part by itself."""
    x0, y0, x1, y1 = crop
    names = labels or [""] * len(truth)
    rows = []
    for mask, name in zip(truth, names, strict=True):
        part = mask[y0:y1, x0:x1]
        for one in pieces_of(part) if in_pieces else [part]:
            one = spoil(one) if spoil else one
            if one.any():
                rows.append((one, name))
    if not rows:
        return Masks.empty(truth[0].shape)
    local = Masks.from_dense(np.stack([mask for mask, _ in rows]), labels=[name for _, name in rows])
    return lift(local, crop, truth[0].shape)


def found_as(result: Masks, truth: list[np.ndarray]) -> list[float]:
    """IoU of each true object with its best mask."""
    overlap = rle.iou(rle.encode(np.stack(truth)), result.rles)
    return overlap.max(axis=1, initial=0).tolist()


COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


class ColourModel:
    """Knows the colours by their names: each patch of one is an instance, and the one of a box's middle its object.

    `presence` of a colour, where it is not what the pixels say, goes by the width of the picture.
    """

    name = "colours"
    capabilities = Capabilities(text=True)

    def __init__(self, presence: dict[int, float] | None = None) -> None:
        self.presence, self.encoded, self.texts = presence or {}, [], 0

    def encode(self, images: Sequence[Image], crop_boxes: object = None) -> list[Features]:
        self.encoded += [image.size for image in images]
        return [Features(self.name, Frame.stretched(one.size, one.size), {"pixels": one.pixels}) for one in images]

    def decode(
        self, features: Sequence[Features], prompts: Sequence[Sequence[Prompt]], multimask_output: bool | None = None
    ) -> list[Decoded]:
        rows = []
        for one, some in zip(features, prompts, strict=True):
            boxes = [np.asarray(prompt.box_coords) for prompt in some]
            masks = [self._around(one.tensors["pixels"], int(b[[0, 2]].mean()), int(b[[1, 3]].mean())) for b in boxes]
            count = 3 if multimask_output else 1
            logits = torch.stack([_logits(mask) for mask in masks])[:, None].repeat(1, count, 1, 1)
            rows.append(Decoded(logits, torch.full(logits.shape[:2], 0.9)))
        return rows

    def encode_text(self, prompts: Sequence[Prompt]) -> EncodedText:
        self.texts += 1
        return EncodedText(tuple(prompt.name or "" for prompt in prompts), {})

    def ground(self, features: Features, text: EncodedText, instances: bool = True) -> list[Grounded]:
        return [self._one(features.tensors["pixels"], name, instances) for name in text.names]

    def _one(self, pixels: np.ndarray, name: str, instances: bool) -> Grounded:
        union = (pixels == COLOURS[name]).all(-1)
        rows = [_logits(mask) for mask in pieces_of(union)] if instances else []
        presence = self.presence.get(pixels.shape[1], float(union.any()))
        shape = (len(rows), *union.shape)
        return Grounded(
            presence, _logits(union), torch.stack(rows) if rows else torch.zeros(shape), torch.ones(len(rows))
        )

    def _around(self, pixels: np.ndarray, x: int, y: int) -> np.ndarray:
        same = (pixels == pixels[y, x]).all(-1)
        return next(piece for piece in pieces_of(same) if piece[y, x])


def _logits(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(mask, 9.0, -9.0).astype(np.float32))


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    return max(pieces_of(mask), key=np.sum, default=mask)


def _shape(rng: np.random.Generator, size: tuple[int, int], kind: str) -> list[np.ndarray]:
    h, w = size
    canvas = np.zeros(size, np.uint8)
    cx, cy = int(rng.integers(0, w)), int(rng.integers(0, h))
    a, b = (int(side) for side in rng.integers(4, 70, 2))
    if kind == "rectangle":
        cv2.rectangle(canvas, (cx - a, cy - b), (cx + a, cy + b), 1, -1)
    elif kind == "ellipse":
        cv2.ellipse(canvas, (cx, cy), (a, b), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    elif kind == "ring":
        cv2.ellipse(canvas, (cx, cy), (a + 10, b + 10), 0, 0, 360, 1, int(rng.integers(3, 12)))
    elif kind == "snake":
        points = np.stack([rng.integers(0, w, 7), rng.integers(0, h, 7)], axis=1)
        cv2.polylines(canvas, [points[: rng.integers(2, 8)].astype(np.int32)], False, 1, int(rng.integers(3, 15)))
    elif kind == "neighbours":
        other = canvas.copy()
        cv2.rectangle(canvas, (cx - a, cy - b), (cx, cy + b), 1, -1)
        cv2.rectangle(other, (cx + 1, cy - b), (cx + a, cy + b), 1, -1)
        return [canvas.astype(bool), other.astype(bool)]
    else:
        inner = canvas.copy()
        cv2.ellipse(canvas, (cx, cy), (a + 8, b + 8), 0, 0, 360, 1, -1)
        cv2.ellipse(inner, (cx, cy), (max(2, a // 2), max(2, b // 2)), 0, 0, 360, 1, -1)
        return [canvas.astype(bool), inner.astype(bool)]
    return [canvas.astype(bool)]
