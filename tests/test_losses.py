"""Losses against the formula written out."""

import pytest
import torch

from anymask.ops.losses import area_bce_loss, dice_loss, soft_iou


def test_dice_is_the_formula() -> None:
    logits, target = torch.randn(3, 4, 5), torch.rand(3, 4, 5)
    for i in range(3):
        p = torch.sigmoid(logits[i])
        expected = 1 - (2 * (p * target[i]).sum() + 1) / (p.sum() + target[i].sum() + 1)
        assert dice_loss(logits, target)[i].item() == pytest.approx(expected.item(), abs=1e-5)


def test_bce_counts_a_small_object_as_much_as_a_large_one() -> None:
    small, large = torch.zeros(1, 100, 100), torch.zeros(1, 100, 100)
    small[:, :10, :10], large[:, :50, :50] = 1, 1
    missed = [float(area_bce_loss(10.0 * (0 * t) - 10.0, t)) for t in (small, large)]
    assert missed[0] > 0.4 * missed[1]


def test_soft_iou_counts_cells() -> None:
    logits = torch.tensor([[[1.0, 1, -1, -1]], [[-1.0, -1, -1, -1]]])
    target = torch.tensor([[[1.0, 0, 1, 0]], [[0.0, 0, 0, 0]]])
    assert soft_iou(logits, target).tolist() == pytest.approx([1 / 3, 1.0])
