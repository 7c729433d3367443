"""Losses on mask logits. Every function returns one number per mask and leaves the mean to the caller."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SHARPER = 4.0


def dice_loss(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """1 - Dice of the soft mask (Milletari et al. 2016); `target` in 0 to 1."""
    probs = logits.sigmoid().flatten(-2)
    target = target.flatten(-2)
    return 1 - (2 * (probs * target).sum(-1) + 1) / (probs.sum(-1) + target.sum(-1) + 1)


def area_bce_loss(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Binary cross-entropy summed over pixels, divided by twice the object's area plus 2 % of the image.

    The plain mean forgets small objects: 25 of 9216 pixels hardly change it.
    """
    summed = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=(-2, -1))
    pixels = logits.shape[-2] * logits.shape[-1]
    return summed / (2 * target.sum(dim=(-2, -1)) + 0.02 * pixels)


def soft_iou(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """IoU of the mask (logits > 0) with a `target` in 0 to 1 that is thresholded at one half; 1 if both are empty."""
    predicted, wanted = logits > 0, target > 0.5
    intersection = (predicted & wanted).sum(dim=(-2, -1)).float()
    union = (predicted | wanted).sum(dim=(-2, -1)).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))


def soft_boxes(logits: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n 4"]:
    """x0 y0 x1 y1 of each soft mask in shares of its sides; differentiable.

    A side lies where it is expected to: a column counts by its surest pixel, and the left side is the mean number of
    columns before the first one, as if columns were there or not by chance, each for itself. Logits are sharpened,
    as many columns that hardly count would add up.
    """
    probs = (SHARPER * logits).sigmoid()
    columns, rows = probs.amax(-2), probs.amax(-1)
    x0, x1 = _expected_ends(columns)
    y0, y1 = _expected_ends(rows)
    return torch.stack([x0, y0, x1, y1], dim=-1)


def _expected_ends(there: Float[Tensor, "*n m"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """The expected place of the first and the end of the last, in shares; the end is never before the first."""
    before = (1 - there).cumprod(-1).mean(-1)
    after = (1 - there).flip(-1).cumprod(-1).mean(-1)
    return before, torch.maximum(1 - after, before)
