"""OWLv2 through transformers: every patch of an image proposes one box, and names are compared with all of them.

The image is encoded once, a name is one more vector. Paper: Scaling Open-Vocabulary Object Detection (Minderer et al.,
2023), whose code pads the image to a square below and on the right: boxes are in sides of that square.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessor

from anymask.grounding.detected import check_names, corners, detections
from anymask.grounding.networks import beside, configured, filled
from anymask.grounding.protocol import Detections, DetectionThresholds
from anymask.models import sam3_text
from anymask.models.checkpoints import read_config, read_folder
from anymask.models.devices import memory_for
from anymask.types import Image

ARTICLES = ("a", "an", "the")
NAMES_AT_ONCE = 64


class OwlDetector:
    """`network` is an Owlv2ForObjectDetection; `processor` and `tokenizer` are transformers'."""

    thresholds = DetectionThresholds(box=0.3)

    def __init__(self, network: Any, tokenizer: Any, processor: Any, device: str = "cpu", name: str = "") -> None:
        self.name = name
        self.device = device
        self.tokenizer = tokenizer
        self.processor = processor
        self.network = network.to(device).eval()
        self.length = network.config.text_config.max_position_embeddings

    @classmethod
    def from_folder(cls, folder: Path, device: str, dtype: torch.dtype, name: str) -> "OwlDetector":
        """A folder as transformers saves it. Raises CheckpointError."""
        values = read_config(folder, ("owlv2",))
        config = configured(values, folder)
        processor = beside(Owlv2ImageProcessor, folder) or Owlv2ImageProcessor()
        own = beside(CLIPTokenizer, folder, ("tokenizer.json", "vocab.json"))
        tokenizer = own or sam3_text.read_tokenizer(folder, "OWLv2", "google/owlv2-base-patch16-ensemble")
        network = filled(Owlv2ForObjectDetection, config, read_folder(folder), folder, dtype, leftovers=True)
        return cls(network, tokenizer, processor, device, name)

    def detect(self, image: Image, names: Sequence[str], thresholds: DetectionThresholds | None = None) -> Detections:
        """Boxes whose most probable name reaches `thresholds.box`, each with that name."""
        wanted, limits = check_names(names), thresholds or self.thresholds
        ids, notes = self._word_pieces(wanted)
        with memory_for(f"find names in an image of {image.size[1]} x {image.size[0]}", self.device):
            boxes, probs = self._answer(image, ids)
        nearest = {name: float(column.max()) for name, column in zip(wanted, probs.T, strict=True)}
        label, scores = probs.argmax(axis=1), probs.max(axis=1)
        rows = np.flatnonzero(scores >= limits.box)
        side = max(image.size)
        placed = corners(boxes[rows], (side, side))
        return detections(placed, scores[rows], label[rows], wanted, image.size, nearest, notes)

    @torch.inference_mode()
    def _answer(
        self, image: Image, ids: Sequence[Sequence[int]]
    ) -> tuple[Float[np.ndarray, "p 4"], Float[np.ndarray, "p k"]]:
        """A box of each patch, centre and size in sides of the square, and its probability of being each name."""
        inputs = self.processor(images=image.pixels, input_data_format="channels_last", return_tensors="pt")
        cells, _ = self.network.image_embedder(inputs["pixel_values"].to(self.device, self.network.dtype))
        features = cells.flatten(1, 2)
        starts = range(0, len(ids), NAMES_AT_ONCE)
        names = torch.cat([self._vectors(ids[start : start + NAMES_AT_ONCE]) for start in starts])
        logits, _ = self.network.class_predictor(features, names[None])
        boxes = self.network.box_predictor(features, cells)
        return boxes[0].float().cpu().numpy(), logits[0].float().sigmoid().cpu().numpy()

    def _vectors(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "k d"]:
        """One vector a name; the class head makes them unit vectors."""
        padded = torch.tensor([[*row, *[0] * (self.length - len(row))] for row in ids], device=self.device)
        counts = torch.tensor([len(row) for row in ids], device=self.device)
        mask = torch.arange(self.length, device=self.device) < counts[:, None]
        found = self.network.owlv2.get_text_features(input_ids=padded, attention_mask=mask.long())
        vectors: Tensor = found.pooler_output
        return vectors

    def _word_pieces(self, names: Sequence[str]) -> tuple[list[list[int]], tuple[str, ...]]:
        """Ids of a photo of each name; a name that is too long loses its last pieces, its end mark stays."""
        found = self.tokenizer([_photo_of(name) for name in names], truncation=False, verbose=False)
        most, rows = self.length, found["input_ids"]
        notes = tuple(
            f"{self.name} reads the first {most - 2} of {len(row) - 2} word pieces of {name[:40]!r}..."
            for name, row in zip(names, rows, strict=True)
            if len(row) > most
        )
        return [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in rows], notes


def _photo_of(name: str) -> str:
    """In the words the network was trained with; a name may bring its own article."""
    return f"a photo of {name.strip()}" if name.lower().split()[0] in ARTICLES else f"a photo of a {name.strip()}"
