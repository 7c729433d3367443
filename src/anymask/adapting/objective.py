"""What a phrase is judged by while it learns: the masks, scores and boxes of the queries that stand for the objects.

A set loss as of DETR (Carion et al. 2020, section 3.1): queries are matched with objects, then
`mask (BCE + Dice) + score BCE + box (L1 + GIoU)`; weights 5, 2 and 1 unless told otherwise. Where a model's one mask is
the union of all objects, the union is the object.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from anymask.adapting.settings import Objective
from anymask.models.word_space import Answers
from anymask.ops.losses import dice_loss, soft_boxes
from anymask.training.interaction import Targets
from anymask.types import Size


@dataclass(frozen=True, eq=False)
class Wanted:
    """The objects of one image in the model's frame, perhaps none: soft masks, boxes in shares of the input."""

    masks: Float[Tensor, "k lh lw"]
    boxes: Float[Tensor, "k 4"]

    @classmethod
    def of(cls, targets: Targets, input_size: Size, device: torch.device) -> "Wanted":
        """The objects of one image as fine-tuning has them, boxes in pixels of the input."""
        h, w = input_size
        boxes = torch.from_numpy(targets.boxes) / torch.tensor([w, h, w, h])
        return cls(targets.masks.to(device), boxes.to(device, torch.float32))

    def united(self) -> "Wanted":
        """The union of the objects as the one object; none stays none."""
        if len(self.masks) < 2:
            return self
        corners = torch.cat([self.boxes[:, :2].amin(0), self.boxes[:, 2:].amax(0)])
        return Wanted(self.masks.amax(0, keepdim=True), corners[None])


@dataclass(frozen=True, eq=False)
class Lesson:
    """The loss of one image and what it is made of; `query` is the one that stands for the first object."""

    loss: Float[Tensor, ""]
    parts: dict[str, float]
    query: int | None


def judge_image(answers: Answers, row: int, wanted: Wanted, unions: bool, objective: Objective) -> Lesson:
    """Of image `row` of the answers; without objects nothing must be found in it."""
    wanted = wanted.united() if unions else wanted
    logits, scores, presence = answers.logits[row].float(), answers.scores[row], answers.presence[row]
    if not len(wanted.masks):
        score = _score_loss(scores, presence, scores.new_zeros(scores.shape), unions)
        return Lesson(
            objective.score * score, {"score_loss": score.item(), "absent_score": _sure(scores, presence)}, None
        )
    boxes = soft_boxes(logits) if answers.boxes is None else answers.boxes[row]
    weights = match(logits, scores, boxes, wanted, objective)
    queries, objects = weights.nonzero(as_tuple=True)
    shares = weights[queries, objects]
    masks = wanted.masks[objects]
    bce = functional.binary_cross_entropy_with_logits(logits[queries], masks, reduction="none").mean(dim=(1, 2))
    mask = ((bce + dice_loss(logits[queries], masks)) * shares).sum()
    box = (_box_loss(boxes[queries], wanted.boxes[objects]) * shares).sum()
    score = _score_loss(scores, presence, _meant(weights), unions)
    overlaps = iou_matrix(logits.detach(), wanted.masks)
    parts = {"mask_loss": mask.item(), "box_loss": box.item(), "score_loss": score.item()}
    parts |= {"iou": overlaps.amax(0).mean().item(), "score": _sure(scores, presence)}
    loss = objective.mask * mask + objective.score * score + objective.box * box
    return Lesson(loss, parts, int(weights[:, 0].argmax()))


@torch.no_grad()
def match(
    logits: Float[Tensor, "q lh lw"],
    scores: Float[Tensor, "q"],
    boxes: Float[Tensor, "q 4"],
    wanted: Wanted,
    objective: Objective,
) -> Float[Tensor, "q k"]:
    """How much each query answers for each object; of all objects together 1."""
    k = len(wanted.masks)
    if objective.match in ("best", "top"):
        chosen = iou_matrix(logits, wanted.masks).topk(
            min(len(logits), objective.top if objective.match == "top" else 1), dim=0
        )
        hit = torch.zeros(len(logits), k, device=logits.device).scatter_(0, chosen.indices, 1.0)
        return hit / hit.sum()
    costs = mask_costs(logits, wanted.masks)
    if objective.match == "soft":
        return torch.softmax(-costs / objective.temperature, dim=0) / k
    rows, objects = np.meshgrid(np.arange(len(logits)), np.arange(k), indexing="ij")
    boxed = _box_loss(boxes[rows.ravel()], wanted.boxes[objects.ravel()]).view(len(logits), k)
    whole = objective.mask * costs + objective.box * boxed + objective.score * functional.softplus(-scores)[:, None]
    chosen_rows, chosen_objects = linear_sum_assignment(whole.nan_to_num(nan=1e6).cpu().numpy())
    hit = torch.zeros_like(costs)
    hit[chosen_rows, chosen_objects] = 1.0 / len(chosen_rows)
    return hit


def mask_costs(logits: Float[Tensor, "q lh lw"], masks: Float[Tensor, "k lh lw"]) -> Float[Tensor, "q k"]:
    """BCE + Dice of every query with every object, as two products of matrices (Cheng et al. 2021, MaskFormer)."""
    flat, truth = logits.flatten(1), masks.flatten(1)
    bce = (functional.softplus(flat).sum(1, keepdim=True) - flat @ truth.T) / flat.shape[1]
    probs = flat.sigmoid()
    dice = 1 - (2 * probs @ truth.T + 1) / (probs.sum(1, keepdim=True) + truth.sum(1) + 1)
    return bce + dice


def iou_matrix(logits: Float[Tensor, "q lh lw"], masks: Float[Tensor, "k lh lw"]) -> Float[Tensor, "q k"]:
    """IoU of every query's mask with every object, which is there where it covers more than half of a cell."""
    found, truth = (logits.flatten(1) > 0).float(), (masks.flatten(1) > 0.5).float()
    shared = found @ truth.T
    union = found.sum(1, keepdim=True) + truth.sum(1) - shared
    return shared / union.clamp(min=1)


def _meant(weights: Float[Tensor, "q k"]) -> Float[Tensor, "q"]:
    """1 for the queries that answer most for an object."""
    best = weights == weights.amax(0, keepdim=True)
    return (best & (weights > 0)).any(1).float()


def _score_loss(
    scores: Float[Tensor, "q"], presence: Float[Tensor, ""], meant: Float[Tensor, "q"], unions: bool
) -> Tensor:
    """Of the presence, and, of many queries, of those that are meant and of the others, each kind by its mean."""
    there = meant.amax().expand_as(presence)
    loss = functional.binary_cross_entropy_with_logits(presence, there)
    if unions:
        return loss
    each = functional.binary_cross_entropy_with_logits(scores, meant, reduction="none")
    kinds = [each[meant > 0], each[meant == 0]]
    return loss + sum((kind.mean() for kind in kinds if len(kind)), start=loss.new_zeros(()))


def _box_loss(found: Float[Tensor, "n 4"], wanted: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    loss: Tensor = (found - wanted).abs().sum(1) + generalized_box_iou_loss(found, wanted, reduction="none")
    return loss


def _sure(scores: Float[Tensor, "q"], presence: Float[Tensor, ""]) -> float:
    """The presence, which the surest query's score lowers where there are many."""
    many = float(scores.detach().sigmoid().max()) if len(scores) > 1 else 1.0
    return float(presence.detach().sigmoid()) * many
