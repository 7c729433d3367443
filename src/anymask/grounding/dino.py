"""GroundingDINO and MM-GroundingDINO through transformers: boxes for names, all names of a caption at once.

A caption is the names with a dot after each. The network scores every box against every word piece, and here it is
known which pieces are of which name: no phrase is decoded from them. Papers: Grounding DINO (Liu et al., 2023);
An Open and Comprehensive Pipeline for Unified Object Grounding and Detection (Zhao et al., 2024).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    MMGroundingDinoForObjectDetection,
)

from anymask.grounding import dino_keys
from anymask.grounding.detected import check_names, corners, detections
from anymask.grounding.networks import beside, configured, filled
from anymask.grounding.protocol import Detections, DetectionThresholds
from anymask.models.checkpoints import read_config, read_folder
from anymask.models.devices import memory_for
from anymask.models.pocket_files import SHIPPED
from anymask.types import Image

KINDS: dict[str, Any] = {  # `model_type` in config.json to the class
    "grounding-dino": GroundingDinoForObjectDetection,
    "mm-grounding-dino": MMGroundingDinoForObjectDetection,
}
_SEPARATORS = re.compile(r"[.,;:?!]+")  # in a name they would part it in two, or count as a piece of it


@dataclass(frozen=True)
class Caption:
    """Word pieces of some of the names, with marks and dots; `spans` says where each of these names stands."""

    ids: tuple[int, ...]
    spans: dict[str, slice]


class HeldEncoder(nn.Module):
    """The image encoder of a GroundingDINO; for the very tensor that it saw last, it answers again without computing.

    So all captions about an image cost one pass. `forget` lets go of it.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.seen: tuple[Tensor, list[tuple[Tensor, Tensor]]] | None = None

    def forward(
        self, pixel_values: Float[Tensor, "b 3 ih iw"], pixel_mask: Tensor
    ) -> list[tuple[Float[Tensor, "b _ _ _"], Tensor]]:
        """Feature maps from fine to coarse, each with the mask of its pixels that are no padding."""
        seen = self.seen  # once: another thread may replace it
        if seen is None or seen[0] is not pixel_values:
            self.seen = seen = (pixel_values, self.encoder(pixel_values, pixel_mask))
        return list(seen[1])

    def forget(self) -> None:
        """Frees the features."""
        self.seen = None


class DinoDetector:
    """`network` is one of `KINDS`; `processor` and `tokenizer` are transformers'."""

    thresholds = DetectionThresholds(box=0.3, text=0.25)

    def __init__(self, network: Any, tokenizer: Any, processor: Any, device: str = "cpu", name: str = "") -> None:
        self.name = name
        self.device = device
        self.tokenizer = tokenizer
        self.processor = processor
        self.encoder = HeldEncoder(network.model.backbone.conv_encoder)
        network.model.backbone.conv_encoder = self.encoder
        self.network = network.to(device).eval()
        self.most_pieces = min(network.config.max_text_len, network.config.text_config.max_position_embeddings)

    @classmethod
    def from_folder(cls, folder: Path, device: str, dtype: torch.dtype, name: str) -> "DinoDetector":
        """A folder as transformers saves it. Raises CheckpointError."""
        values = read_config(folder, KINDS)
        kind, config = KINDS[values["model_type"]], configured(values, folder)
        processor = beside(GroundingDinoImageProcessor, folder) or GroundingDinoImageProcessor()
        tokenizer = beside(AutoTokenizer, folder, ("tokenizer.json", "vocab.txt")) or shipped_tokenizer()
        network = filled(kind, config, read_folder(folder), folder, dtype, leftovers=True)
        return cls(network, tokenizer, processor, device, name)

    @classmethod
    def from_original(
        cls, state: dict[str, Tensor], kind: str, path: Path, device: str, dtype: torch.dtype, name: str
    ) -> "DinoDetector":
        """The tensors of a file of the GroundingDINO repository, of a kind that `dino_keys.recognise` gave."""
        config = configured(dino_keys.config_of(kind), path)
        network = filled(GroundingDinoForObjectDetection, config, dino_keys.renamed(state), path, dtype)
        return cls(network, shipped_tokenizer(), GroundingDinoImageProcessor(), device, name)

    def detect(self, image: Image, names: Sequence[str], thresholds: DetectionThresholds | None = None) -> Detections:
        """Boxes with the name that each shows best; a box and a name score as the best of the name's word pieces.

        Of the names that score at least both thresholds, the label is the one whose pieces are the most probable on
        average, where a piece below the text threshold counts as 0: of "red car" and "toy car", which share a piece,
        the right one.
        """
        wanted, limits = check_names(names), thresholds or self.thresholds
        captions, notes = self.captions(wanted)
        with memory_for(f"find names in an image of {image.size[1]} x {image.size[0]}", self.device):
            answers = self._answers(image, captions)
        nearest = dict.fromkeys(wanted, 0.0)
        parts = [(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))]
        for caption, (boxes, probs) in zip(captions, answers, strict=True):
            best, mean = _of_spans(probs, list(caption.spans.values()), limits.text)
            nearest |= {name: float(column.max()) for name, column in zip(caption.spans, best.T, strict=True)}
            rows, columns = _labelled(best, mean, max(limits.box, limits.text))
            own = np.asarray([wanted.index(name) for name in caption.spans])
            parts.append((corners(boxes[rows], image.size), best[rows, columns], own[columns]))
        boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        return detections(boxes, scores, labels, wanted, image.size, nearest, notes)

    def captions(self, names: Sequence[str]) -> tuple[list[Caption], tuple[str, ...]]:
        """As few captions as hold all names, each within what the network reads, and what had to be left out."""
        begin, end, dot = self.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "."])
        captions: list[Caption] = []
        notes: list[str] = []
        ids, spans = [begin], dict[str, slice]()
        for name in names:
            pieces, note = self._pieces(name)
            notes += [note] if note else []
            if pieces and len(ids) + len(pieces) + 2 > self.most_pieces:
                captions.append(Caption((*ids, end), spans))
                ids, spans = [begin], {}
            if pieces:
                spans[name] = slice(len(ids), len(ids) + len(pieces))
                ids += [*pieces, dot]
        return [*captions, Caption((*ids, end), spans)] if spans else captions, tuple(notes)

    def _pieces(self, name: str) -> tuple[list[int], str]:
        """The word pieces of a name that are in the vocabulary, and a note if any are left out."""
        text = _SEPARATORS.sub(" ", name.lower()).strip()
        found = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        marks = {*self.tokenizer.all_special_ids, *self.network.model.special_tokens.tolist()}
        pieces = [piece for piece in found if piece not in marks]
        most = self.most_pieces - 3
        if not pieces:
            return [], f"{self.name} knows no word of {name!r}: it finds nothing of that name"
        if len(pieces) > most:
            return pieces[:most], f"{self.name} reads the first {most} of {len(pieces)} word pieces of {name[:40]!r}..."
        return pieces, ""

    @torch.inference_mode()
    def _answers(self, image: Image, captions: Sequence[Caption]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each caption the boxes, centre and size from 0 to 1, and of each box the probability of every piece."""
        inputs = self.processor(images=image.pixels, input_data_format="channels_last", return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.device, self.network.dtype)
        mask = inputs["pixel_mask"].to(self.device)
        try:
            return [self._answer(pixels, mask, caption) for caption in captions]
        finally:
            self.encoder.forget()

    def _answer(self, pixels: Tensor, mask: Tensor, caption: Caption) -> tuple[np.ndarray, np.ndarray]:
        ids = torch.tensor([caption.ids], device=self.device)
        out = self.network(
            pixel_values=pixels,
            pixel_mask=mask,
            input_ids=ids,
            token_type_ids=torch.zeros_like(ids),
            attention_mask=torch.ones_like(ids),
        )
        probs = out.logits[0, :, : len(caption.ids)].float().sigmoid()
        return out.pred_boxes[0].float().cpu().numpy(), probs.cpu().numpy()


def shipped_tokenizer() -> Any:
    """The tokenizer of bert-base-uncased, whose vocabulary comes with anymask."""
    with (SHIPPED / "vocab.txt").open(encoding="utf-8") as file:
        pieces = file.read().splitlines()
    return BertTokenizer(vocab={piece: row for row, piece in enumerate(pieces)})


def _of_spans(
    probs: Float[np.ndarray, "q t"], spans: Sequence[slice], text_threshold: float
) -> tuple[Float[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """The highest probability over the pieces of each name, and the mean, to which only pieces that count add."""
    best = np.stack([probs[:, span].max(axis=1) for span in spans], axis=1)
    counted = np.where(probs >= text_threshold, probs, 0)
    return best, np.stack([counted[:, span].mean(axis=1) for span in spans], axis=1)


def _labelled(
    best: Float[np.ndarray, "q k"], mean: Float[np.ndarray, "q k"], threshold: float
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The boxes for which a name reaches the threshold, and of these names the one with the highest mean."""
    named = best >= threshold
    rows = np.flatnonzero(named.any(axis=1))
    return rows, np.where(named, mean, -1.0)[rows].argmax(axis=1)
