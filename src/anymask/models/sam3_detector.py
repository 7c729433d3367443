"""The detector of SAM 3: names and exemplars to tokens, tokens on an image to all instances (SAM 3, section 3).

Boxes here are x0 y0 x1 y1 in pixels of the original image until `_shares` brings them to the form of the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from anymask.models.protocol import Grounded
from anymask.ops import rle
from anymask.types import Exemplar, Frame

LEVELS = 3  # of the pyramid; the fourth is not used
FLOOR = 0.05  # instances less likely than that are not kept: there are 200 of each name


@dataclass(frozen=True)
class Shown:
    """Exemplar boxes on one image and whether they show what is meant (1) or what is not (0)."""

    boxes: Float[np.ndarray, "b 4"]
    labels: Int[np.ndarray, "b"]

    @classmethod
    def of(cls, exemplars: Sequence[Exemplar]) -> "Shown":
        """A mask counts as its box: the released detector has no weights for masks."""
        boxes = [one.box if one.mask is None else rle.boxes(rle.encode(one.mask[None]))[0] for one in exemplars]
        return cls(np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray([one.positive for one in exemplars], int))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Question:
    """What one prompt asks of any image: tokens of its text and of exemplars elsewhere, and exemplars in the image."""

    tokens: Float[Tensor, "l d"]
    shown: Shown
    shown_elsewhere: bool = False

    @property
    def kind(self) -> tuple[int, bool]:
        """Questions of one kind are asked together."""
        return len(self.shown), self.shown_elsewhere


def exemplar_tokens(
    detector: Any, features: Mapping[str, Tensor], frame: Frame, shown: Shown
) -> Float[Tensor, "b_plus_one d"]:
    """What the detector makes of exemplars in the image of `features`: a token each, and one of all or of none."""
    boxes, labels = _shares(frame, [shown], features["detector_2"])
    return _geometry_tokens(detector, features, boxes, labels)[0]


def _geometry_tokens(
    detector: Any, features: Mapping[str, Tensor], boxes: Float[Tensor, "n b 4"], labels: Int[Tensor, "n b"]
) -> Float[Tensor, "n b_plus_one d"]:
    vision = _vision(detector, features, len(labels))
    found = detector.geometry_encoder(
        box_embeddings=boxes,
        box_mask=torch.ones_like(labels, dtype=torch.bool),
        box_labels=labels,
        img_feats=vision.fpn_hidden_states[:LEVELS],
        img_pos_embeds=vision.fpn_position_encoding[:LEVELS],
    )
    tokens: Tensor = found.last_hidden_state
    return tokens


def no_exemplar(detector: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "b 1 d"]:
    """The token that stands for no exemplar in each of b images."""
    boxes = features["detector_2"].new_zeros(len(features["detector_2"]), 0, 4)
    return _geometry_tokens(detector, features, boxes, boxes.new_zeros(boxes.shape[:2], dtype=torch.long))


def detect_everywhere(
    detector: Any, features: Mapping[str, Tensor], tokens: Float[Tensor, "l d"], none: Float[Tensor, "b 1 d"]
) -> Any:
    """As `detect` of one name, in b images with their tokens of no exemplar. Differentiable in the name's tokens."""
    rows = torch.cat([tokens.expand(len(none), -1, -1), none], dim=1)
    return detector(vision_embeds=_vision(detector, features, len(none)), text_embeds=_Text(rows))


def detect(detector: Any, features: Mapping[str, Tensor], frame: Frame, questions: Sequence[Question]) -> Any:
    """Transformers' own forward for questions of one kind on the features of one image.

    A name without exemplars comes with the token of none, as in the original (sam3, `Sam3Image._encode_prompt`), with
    which the weights were trained; transformers 5.23 leaves it out.
    """
    rows = [question.tokens for question in questions]
    if questions[0].kind == (0, False):
        none = exemplar_tokens(detector, features, frame, questions[0].shown)
        rows = [torch.cat([row, none]) for row in rows]
    longest = max(len(row) for row in rows)
    tokens = torch.stack([functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    mask = (torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]).to(tokens.device)
    boxes, labels = _shares(frame, [question.shown for question in questions], features["detector_2"])
    return detector(
        vision_embeds=_vision(detector, features, len(questions)),
        text_embeds=_Text(tokens),
        attention_mask=mask,
        input_boxes=boxes if boxes.numel() else None,
        input_boxes_labels=labels if boxes.numel() else None,
    )


def grounded(output: Any, row: int, instances: bool) -> Grounded:
    """What one question found, surest first; an instance is as likely as its score times the presence."""
    presence = output.presence_logits[row, 0].float().sigmoid()
    scores = output.pred_logits[row].float().sigmoid()
    order = scores.argsort(descending=True)
    kept = order[scores[order] * presence >= FLOOR] if instances else order[:0]
    return Grounded(
        float(presence),
        output.semantic_seg[row, 0].float().cpu(),
        output.pred_masks[row, kept].float().cpu(),
        scores[kept].cpu(),
    )


@dataclass(frozen=True)
class _Text:
    """As `Sam3Model.forward` wants text that is encoded already."""

    pooler_output: Tensor


def _vision(detector: Any, features: Mapping[str, Tensor], n: int) -> Sam3VisionEncoderOutput:
    """The features of n images, or of one for n questions, without copies; the last level is there to be dropped."""
    levels = [features[f"detector_{i}"].expand(n, -1, -1, -1) for i in range(LEVELS)]
    position = detector.vision_encoder.neck.position_encoding(
        features["detector_2"].shape, features["detector_2"].device, features["detector_2"].dtype
    ).expand(n, -1, -1, -1)
    return Sam3VisionEncoderOutput(
        fpn_hidden_states=(*levels, levels[-1]), fpn_position_encoding=(position,) * (LEVELS + 1)
    )


def _shares(frame: Frame, shown: Sequence[Shown], like: Tensor) -> tuple[Float[Tensor, "n b 4"], Int[Tensor, "n b"]]:
    """Boxes as centre x y, width and height in shares of the frame, and their labels; equally many in each row."""
    corners = np.stack([frame.to_model(one.boxes.reshape(-1, 2, 2)) for one in shown])
    corners = corners / np.asarray(frame.input_size[::-1], np.float32)
    first, second = torch.from_numpy(corners).unbind(-2)
    boxes = torch.cat([(first + second) / 2, second - first], -1)
    labels = torch.from_numpy(np.stack([one.labels for one in shown]))
    return boxes.to(like), labels.to(like.device)
