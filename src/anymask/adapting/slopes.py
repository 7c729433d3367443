"""How the loss of a phrase on some images changes with each of its vectors."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anymask.adapting.judging import Gallery
from anymask.models.word_space import Answers
from anymask.ops.losses import dice_loss, soft_iou
from anymask.prompting import place

MASK, SCORE = 5.0, 2.0  # what mask and score count for, as in learning


def slope(gallery: Gallery, rows: Sequence[int], vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The gradient of the mean loss on these images by the vectors."""
    turned = vectors.detach().clone().requires_grad_(True)
    total = torch.zeros_like(turned)
    for row in rows:
        loss = _loss(gallery, row, gallery.space.answer(gallery.features(row), turned))
        total += torch.autograd.grad(loss, turned)[0]
    return total / len(rows)


def _loss(gallery: Gallery, row: int, answers: Answers) -> Float[Tensor, ""]:
    """BCE and Dice of the mask that is most like the truth, and BCE of its score and of the presence."""
    truth = torch.from_numpy(gallery.truth(row)).to(answers.logits.device).float()[None]
    frame = gallery.space.model.frame(gallery.pairs[row].masks.size)
    with torch.no_grad():
        alike = soft_iou(place(answers.logits[0], frame), truth.expand(answers.logits.shape[1], -1, -1))
    query = int(alike.argmax())
    mask = place(answers.logits[0, query : query + 1], frame)
    sure = torch.stack([answers.scores[0, query], answers.presence[0]])
    bce = functional.binary_cross_entropy_with_logits
    return MASK * (bce(mask, truth) + dice_loss(mask, truth).mean()) + SCORE * bce(sure, torch.ones_like(sure))
