"""How the loss of a phrase on some images changes with each of its vectors."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anymask.adapting.judging import Gallery
from anymask.adapting.objective import Wanted, judge_image
from anymask.adapting.settings import Objective
from anymask.training.interaction import targets_in


def slope(gallery: Gallery, rows: Sequence[int], vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The gradient, by the vectors, of the mean loss on these images with the usual weights."""
    turned = vectors.detach().clone().requires_grad_(True)
    total = torch.zeros_like(turned)
    for row in rows:
        total += torch.autograd.grad(loss_of(gallery, row, turned), turned)[0]
    return total / len(rows)


def loss_of(gallery: Gallery, row: int, vectors: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """What a phrase of these vectors loses on one image."""
    space, objects = gallery.space, gallery.pairs[row].masks
    targets = targets_in(space.model.frame(objects.size), objects.masks, space.model.mask_size)
    wanted = Wanted.of(targets, space.model.input_size, vectors.device)
    return judge_image(space.answer(gallery.features(row), vectors), 0, wanted, space.unions, Objective()).loss
