"""An original MobileSAM of tiny size whose masks are disks around the clicks: something for everything mode to find.

Weights are random but for the last layers of hypernetworks and IoU head, which are fitted in closed form.
"""

import torch
from torch import Tensor, nn

from anymask.types import Image
from originals import SIDE, original_mobile, sam_package

RADII = (0.12, 0.2, 0.3)  # of the candidates' disks, as shares of the input's side
LOW = SIDE // 4


@torch.no_grad()
def disk_sam(image: Image) -> nn.Module:
    """Fitted to this image."""
    model = original_mobile()
    model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix *= 0.7
    for place in (0, 3):  # one kernel for the four pixels of an upsampled one, else masks are chequered
        kernel = model.mask_decoder.output_upscaling[place].weight
        kernel.copy_(3 * kernel.mean((2, 3), keepdim=True).expand_as(kernel))
    steps = (torch.arange(12) + 0.5) / 12 * SIDE
    clicks = torch.cartesian_prod(steps, steps)
    seen, layers = _seen(model, image, clicks)
    _fit(layers[0], seen[0], _waves(clicks))
    for k, radius in enumerate(RADII, start=1):
        _fit(layers[k], seen[k], _disks(seen["upscaled"], clicks, radius))
    return model


def _seen(model: nn.Module, image: Image, clicks: Tensor):
    """What enters the last layers of the IoU head and the hypernetworks, and the upscaled embedding."""
    decoder, seen = model.mask_decoder, {}
    heads = [decoder.iou_prediction_head, *list(decoder.output_hypernetworks_mlps)[1:]]
    layers = [head.layers[-1] for head in heads]
    hooks = [decoder.output_upscaling.register_forward_hook(lambda _m, _i, made: seen.update(upscaled=made))]
    for k, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(lambda _m, given, k=k: seen.update({k: given[0]})))
    predictor = sam_package().SamPredictor(model)
    predictor.set_image(image.pixels)
    predictor.predict_torch(clicks[:, None], torch.ones(len(clicks), 1), multimask_output=True)
    for hook in hooks:
        hook.remove()
    return seen, layers


def _waves(clicks: Tensor) -> Tensor:
    x, y = clicks.T / SIDE
    return torch.stack([0.8 + 0.1 * torch.cos(6.3 * (k * x + (3 - k) * y)) for k in range(3)], dim=1)


def _disks(upscaled: Tensor, clicks: Tensor, radius: float) -> Tensor:
    """For each click the weights of the upscaled channels that are nearest to a disk."""
    y, x = torch.meshgrid(torch.arange(LOW) + 0.5, torch.arange(LOW) + 0.5, indexing="ij")
    distance = (torch.stack([x, y], -1).reshape(1, -1, 2) / LOW - clicks[:, None] / SIDE).norm(dim=-1)
    wanted = 60 * ((radius - distance) / radius).clamp(-1, 1)
    basis = upscaled.flatten(2).transpose(1, 2)
    return torch.linalg.lstsq(basis, wanted[..., None]).solution[..., 0]


def _fit(layer: nn.Linear, given: Tensor, wanted: Tensor) -> None:
    """The linear layer nearest to the wanted answers; an IoU head's first is of the single mask, and stays."""
    x, y = given - given.mean(0), wanted - wanted.mean(0)
    square = x.T @ x
    square += 1e-2 * square.diagonal().mean() * torch.eye(len(square))
    weight = torch.linalg.solve(square, x.T @ y).T
    layer.weight[-len(weight) :] = weight
    layer.bias[-len(weight) :] = wanted.mean(0) - weight @ given.mean(0)
