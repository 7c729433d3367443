"""Original models of tiny size whose masks are disks around the clicks: something for everything mode to find.

Weights are random but for the last layers of hypernetworks and IoU head, which are fitted to an image in closed form.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anymask.types import Image
from originals import SIDE, original_mobile, sam_package

RADII = (0.12, 0.2, 0.3)  # of the candidates' disks, as shares of the input's side
WIDE = (0.3, 0.4, 0.5)  # for SAM 2, whose random weights leave of smaller ones nothing


@torch.no_grad()
def disk_sam(image: Image) -> nn.Module:
    """An original MobileSAM."""
    model = original_mobile()
    predictor = sam_package().SamPredictor(model)
    predictor.set_image(image.pixels)
    clicks = _clicks(SIDE)
    _shape(model.mask_decoder, SIDE, RADII, lambda: predictor.predict_torch(clicks, _ones(clicks)))
    return model


@torch.no_grad()
def disk_sam2(image: Image, predictor: Any) -> None:
    """The weights of this SAM2ImagePredictor's model become such."""
    predictor.set_image(image.pixels)
    side = predictor.model.image_size
    clicks = _clicks(side)
    _shape(predictor.model.sam_mask_decoder, side, WIDE, lambda: predictor._predict(clicks, _ones(clicks)))


def _clicks(side: int) -> Tensor:
    steps = (torch.arange(12) + 0.5) / 12 * side
    return torch.cartesian_prod(steps, steps)[:, None]


def _ones(clicks: Tensor) -> Tensor:
    return torch.ones(clicks.shape[:2])


def _shape(decoder: nn.Module, side: int, radii: Sequence[float], answer: Callable[[], object]) -> None:
    """Fits the decoder's last layers to the 144 clicks that `answer` has it decode."""
    for place in (0, 3):  # kernels nearly alike for the four pixels of an upsampled one, else masks are chequered
        kernel = decoder.output_upscaling[place].weight
        kernel.copy_(0.2 * kernel + 2.8 * kernel.mean((2, 3), keepdim=True))
    heads = [decoder.iou_prediction_head, *list(decoder.output_hypernetworks_mlps)[1:]]
    layers = [head.layers[-1] for head in heads]
    seen = _seen(decoder, layers, answer)
    clicks = _clicks(side)[:, 0] / side
    _fit(layers[0], seen[0], _waves(clicks), 1e-3)
    for k, radius in enumerate(radii, start=1):
        _fit(layers[k], seen[k], _disks(seen["upscaled"], clicks, radius), 1.0)


def _seen(decoder: nn.Module, layers: Sequence[nn.Module], answer: Callable[[], object]) -> dict[int | str, Tensor]:
    """What enters each of the layers, and the upscaled embedding."""
    seen: dict[int | str, Tensor] = {}
    hooks = [decoder.output_upscaling[-1].register_forward_hook(lambda _m, _i, made: seen.update(upscaled=made))]
    for k, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(lambda _m, given, k=k: seen.update({k: given[0]})))
    answer()
    for hook in hooks:
        hook.remove()
    return seen


def _waves(clicks: Tensor) -> Tensor:
    x, y = clicks.T
    return torch.stack([0.8 + 0.1 * torch.cos(6.3 * (k * x + (3 - k) * y)) for k in range(3)], dim=1)


def _disks(upscaled: Tensor, clicks: Tensor, radius: float) -> Tensor:
    """For each click the weights of the upscaled channels that are nearest to a disk."""
    places = (torch.arange(upscaled.shape[-1]) + 0.5) / upscaled.shape[-1]
    distance = (torch.cartesian_prod(places, places).flip(1) - clicks[:, None]).norm(dim=-1)
    wanted = 60 * ((radius - distance) / radius).clamp(-1, 1)
    basis = upscaled.flatten(2).transpose(1, 2)
    return _nearest(basis, wanted[..., None], 1e-3)[..., 0]


def _fit(layer: nn.Linear, given: Tensor, wanted: Tensor, ridge: float) -> None:
    """The linear layer nearest to the wanted answers; an IoU head's first is of the single mask, and stays."""
    x, y = given - given.mean(0), wanted - wanted.mean(0)
    weight = _nearest(x, y, ridge).T
    layer.weight[-len(weight) :] = weight
    layer.bias[-len(weight) :] = wanted.mean(0) - weight @ given.mean(0)


def _nearest(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """The small w with x @ w near y: a large one would make the roundings of x large, too."""
    square = x.mT @ x
    scale = square.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return torch.linalg.solve(square + ridge * scale * torch.eye(square.shape[-1]), x.mT @ y)
