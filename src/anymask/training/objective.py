"""What the pocket model learns from: masks of objects, unions and absence of names, and how good its own masks are."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from anymask.models.pocket_network import PocketOutput
from anymask.ops.losses import area_bce_loss, dice_loss, soft_iou

IOU_WEIGHT = 4.0
ABSENT_WEIGHT = 4.0  # of the score map of a name that is not there


def object_loss(
    output: PocketOutput, targets: Float[Tensor, "n q q"], ambiguous: Bool[Tensor, "n"]
) -> tuple[Tensor, dict[str, float]]:
    """Mask loss of the single mask and of the best of three, and the error of every predicted IoU.

    A single click is ambiguous: there the best of three counts fully and the single mask half; otherwise the reverse.
    """
    wanted = targets[:, None].expand_as(output.logits)
    masks = area_bce_loss(output.logits, wanted) + dice_loss(output.logits, wanted)
    best = masks[:, 1:].min(dim=1).values
    single = torch.where(ambiguous, 0.5, 1.0)
    mask_loss = (single * masks[:, 0] + torch.where(ambiguous, 1.0, 0.3) * best).mean()
    real = soft_iou(output.logits.detach(), wanted)
    iou_loss = (output.predicted_iou - real).square().mean()
    chosen = torch.where(ambiguous, real.gather(1, output.predicted_iou.argmax(1, keepdim=True))[:, 0], real[:, 0])
    metrics = {"loss": mask_loss.item(), "iou_loss": iou_loss.item(), "iou": chosen.mean().item()}
    metrics["click_iou"] = chosen[ambiguous].mean().item() if ambiguous.any() else float("nan")
    metrics["other_iou"] = chosen[~ambiguous].mean().item() if (~ambiguous).any() else float("nan")
    return mask_loss + IOU_WEIGHT * iou_loss, metrics


def name_loss(
    output: PocketOutput, unions: Float[Tensor, "k q q"], present: Int[Tensor, "k"]
) -> tuple[Tensor, dict[str, float]]:
    """Union mask and score map of names that are there, emptiness of those that are not, and presence."""
    if not len(present):
        return output.logits.sum() * 0, {}
    there = (present == 1).float()
    presence = functional.binary_cross_entropy_with_logits(output.presence, there)
    coarse = functional.avg_pool2d(unions[:, None], 2)[:, 0]
    union_loss = area_bce_loss(output.logits[:, 0], unions) + dice_loss(output.logits[:, 0], unions)
    map_loss = area_bce_loss(output.score_map, coarse) + dice_loss(output.score_map, coarse)
    pixels = functional.binary_cross_entropy_with_logits(output.score_map, coarse, reduction="none").mean(dim=(1, 2))
    loss = (there * (union_loss + map_loss) + (1 - there) * ABSENT_WEIGHT * pixels).mean() + presence
    real = soft_iou(output.logits[:, 0].detach(), unions)
    iou_loss = (there * (output.predicted_iou[:, 0] - real).square()).mean()
    right = ((output.presence > 0).float() == there).float().mean().item()
    metrics = {"text_loss": loss.item(), "presence_right": right}
    metrics["text_iou"] = real[present == 1].mean().item() if (present == 1).any() else float("nan")
    return loss + 2 * iou_loss, metrics
