"""A small labelled set, and models that know its answers: the evaluation must give the numbers that these imply."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage

from anymask.models.protocol import Capabilities, Decoded, EncodedText, Grounded
from anymask.ops import rle
from anymask.types import Features, Frame, Image, Prompt

SIZE = (20, 30)
SURE = 8.0  # logit of a pixel that belongs to a mask; outside of it the negative
# The objects of every picture: name, box x0 y0 x1 y1, grey value of its pixels.
OBJECTS = (("cat", (2, 3, 12, 13), 50), ("dog", (15, 2, 25, 12), 100), ("cat", (14, 14, 24, 19), 150))
NAMES = ("cat", "dog", "cow", "horse", "sheep", "bird")
SOURCES = (
    {"name": "farm", "in_train": True, "text_exhaustive": True, "names": [*NAMES, "object"]},
    {"name": "zoo", "in_train": True, "text_exhaustive": False, "names": list(NAMES)},
    {"name": "wild", "in_train": False, "text_exhaustive": True, "names": list(NAMES)},
)


def write_set(folder: Path, sources: Sequence[str] = ("farm", "farm", "zoo", "wild"), rows=SOURCES, extra=None) -> Path:
    """Pictures and `set.json` in `folder`; an image per entry of `sources` ("" has none), each with OBJECTS."""
    names = {name: i for i, name in enumerate((*NAMES, "object"), start=1)}
    document = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for n, i in names.items()]}
    document |= {"sources": list(rows)} if rows else {}
    for i, source in enumerate(sources, start=1):
        pixels = np.zeros((*SIZE, 3), np.uint8)
        file = {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1], **(extra or {})}
        document["images"].append(file | ({"source": source} if source else {}))
        for name, box, grey in OBJECTS:
            mask = box_mask(box)
            pixels[mask] = grey
            row = {"id": len(document["annotations"]) + 1, "image_id": i, "category_id": names[name], "iscrowd": 0}
            document["annotations"].append(row | {"segmentation": rle.encode(mask[None])[0]})
        PillowImage.fromarray(pixels).save(folder / f"{i}.png")
    file = folder / "set.json"
    file.write_text(json.dumps(document))
    return file


def box_mask(box) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def true_mask(prompt: Prompt, picture: np.ndarray) -> np.ndarray:
    """The object that the prompt means: under its first point, or the one with its box."""
    if prompt.box_coords is not None:
        meant = [box_mask(box) for _, box, _ in OBJECTS if np.allclose(box, prompt.box_coords, atol=0.01)]
        return meant[0] if meant else np.zeros(SIZE, bool)
    x, y = prompt.point_coords[0].astype(int)
    return picture == picture[y, x]


def true_union(name: str, picture: np.ndarray) -> np.ndarray:
    return np.isin(picture, [grey for held, _, grey in OBJECTS if held == name])


def always_found(name: str, picture: np.ndarray) -> float:
    return 0.9 if true_union(name, picture).any() else 0.1


@dataclass
class Oracle:
    """Answers with functions: `mask(prompt, picture)`, `union(name, picture)`, `presence(name, picture)`.

    `candidates` makes of the mask the (mask, predicted IoU) pairs of a multimask answer. `asked` keeps all prompts.
    """

    mask: Callable[[Prompt, np.ndarray], np.ndarray] = true_mask
    union: Callable[[str, np.ndarray], np.ndarray] = true_union
    presence: Callable[[str, np.ndarray], float] = always_found
    candidates: Callable[[np.ndarray], list[tuple[np.ndarray, float]]] = lambda mask: [(mask, 0.9)] * 3
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(text=True))
    name: str = "oracle"
    asked: list[list[Prompt]] = field(default_factory=list)
    encoded: int = 0

    def encode(self, images: Sequence[Image], crop_boxes=None) -> list[Features]:
        self.encoded += len(images)
        return [
            Features(self.name, Frame.stretched(one.size, one.size), {"picture": one.pixels[:, :, 0]}) for one in images
        ]

    def decode(
        self, features: Sequence[Features], prompts: Sequence[Sequence[Prompt]], multimask_output: bool = False
    ) -> list[Decoded]:
        pairs = zip(features, prompts, strict=True)
        return [self._decode(one.tensors["picture"], some, multimask_output) for one, some in pairs]

    def _decode(self, picture: np.ndarray, prompts: Sequence[Prompt], multimask: bool) -> Decoded:
        self.asked.append(list(prompts))
        masks = [self.mask(prompt, picture) for prompt in prompts]
        rows = [self.candidates(mask) if multimask else [(mask, 0.9)] for mask in masks]
        return Decoded(
            torch.stack([torch.stack([_logits(mask) for mask, _ in row]) for row in rows]),
            torch.tensor([[float(score) for _, score in row] for row in rows]),
        )

    def encode_text(self, prompts: Sequence[Prompt]) -> EncodedText:
        return EncodedText(tuple(prompt.name or "" for prompt in prompts), {})

    def ground(self, features: Features, text: EncodedText, instances: bool = True) -> list[Grounded]:
        picture = features.tensors["picture"]
        none = torch.zeros(0, *picture.shape)
        return [
            Grounded(self.presence(name, picture), _logits(self.union(name, picture)), none, torch.zeros(0))
            for name in text.names
        ]


def _logits(mask: np.ndarray) -> torch.Tensor:
    return torch.where(torch.from_numpy(mask), SURE, -SURE)
