"""A SAM ViT-B of random weights whose masks still look like masks, for benchmarks/everything.py.

Masks of plain random weights are one and the same grain all over the photo: non-maximum suppression keeps one of a
thousand, and run lengths are as long as the mask. No real model works like that, and times would mean little. So all
is PyTorch's own random initialisation but three things, each in closed form, for the photo that is measured:

- the encoder's position table holds SAM's own code of a place, smooth over the photo (a random one is noise);
- the last layer of each mask's hypernetwork is a least-squares fit to a disk around the click, a size per candidate;
- the last layer of the IoU head is one to a wave over the photo, so that survivors of a threshold lie here and there.

What the random rest adds gives the disks ragged edges, islands and the outlines of things in the photo.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RADII = (0.07, 0.14, 0.28)  # of the disks, as shares of the longest side, a candidate each
LOGITS = (250.0, 120.0, 100.0)  # at the middle of each disk: the stability of most masks is then just above 0.95
IOU_MEAN, IOU_WAVE = 0.85, 0.07
WAVES = ((3, 2), (-2, 4), (4, 1))  # periods of the IoU over the photo's longest side in x and y, a candidate each
SMOOTH = 0.7  # of the frequencies of SAM's position code: from its random start a finer one than masks need
PROMPTS_PER_SIDE, BATCH = 16, 32
LOW = 256  # side of the low-resolution masks


def make_weights(path: Path, photo: np.ndarray, seed: int) -> None:
    """Writes the tensors as facebookresearch/segment-anything names them."""
    from segment_anything import SamPredictor, sam_model_registry

    torch.manual_seed(seed)
    sam = sam_model_registry["vit_b"]()
    with torch.no_grad():
        _make_smooth(sam)
        predictor = SamPredictor(sam)
        predictor.set_image(photo)
        _fit(predictor, _clicks(photo, np.random.default_rng(seed)))
    torch.save(sam.state_dict(), path)


def _make_smooth(sam: Any) -> None:
    """Positions as a smooth code; one kernel for all four pixels of an upsampled one, else masks are chequered."""
    code = sam.prompt_encoder.pe_layer
    code.positional_encoding_gaussian_matrix *= SMOOTH
    side = sam.image_encoder.pos_embed.shape[1]
    sam.image_encoder.pos_embed[..., : sam.prompt_encoder.embed_dim] = 4 * code((side, side)).permute(1, 2, 0)
    for place in (0, 3):
        kernel = sam.mask_decoder.output_upscaling[place].weight
        kernel.copy_(2 * kernel.mean((2, 3), keepdim=True).expand_as(kernel))


def _clicks(photo: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A jittered grid over the photo, in pixels of the model's input."""
    h, w = photo.shape[:2]
    cells = np.stack(np.meshgrid(np.arange(PROMPTS_PER_SIDE), np.arange(PROMPTS_PER_SIDE)), -1).reshape(-1, 2)
    shares = (cells + rng.uniform(0, 1, cells.shape)) / PROMPTS_PER_SIDE
    return torch.from_numpy(shares * (w, h) * 1024 / max(h, w)).float()


def _fit(predictor: Any, clicks: Tensor) -> None:
    """The last layers of hypernetworks and IoU head, from what reaches them for these clicks."""
    decoder = predictor.model.mask_decoder
    heads = [decoder.iou_prediction_head, *list(decoder.output_hypernetworks_mlps)[1:]]
    layers = [head.layers[2] for head in heads]
    seen: dict[int, Tensor] = {}
    hooks = [decoder.output_upscaling.register_forward_hook(lambda _m, _i, made: seen.update({-1: made}))]
    for k, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(lambda _m, given, k=k: seen.update({k: given[0]})))
    inputs: list[list[Tensor]] = [[] for _ in layers]
    targets: list[list[Tensor]] = [[] for _ in layers]
    for batch in clicks.split(BATCH):
        predictor.predict_torch(batch[:, None], torch.ones(len(batch), 1), multimask_output=True)
        wanted = [_waves(batch), *(_disks(seen[-1], batch, k, predictor) for k in range(len(RADII)))]
        for k in range(len(layers)):
            inputs[k].append(seen[k])
            targets[k].append(wanted[k])
    for hook in hooks:
        hook.remove()
    for k, layer in enumerate(layers):
        weight, bias = _ridge(torch.cat(inputs[k]), torch.cat(targets[k]))
        layer.weight[-len(weight) :], layer.bias[-len(weight) :] = (
            weight,
            bias,
        )  # the IoU head's first is no candidate's


def _waves(clicks: Tensor) -> Tensor:
    """The predicted IoU that each candidate of each click is to have."""
    phases = clicks / 1024 @ torch.tensor(WAVES).float().T
    return IOU_MEAN + IOU_WAVE * torch.cos(2 * torch.pi * phases + torch.tensor([0.0, 2.0, 4.0]))


def _disks(upscaled: Tensor, clicks: Tensor, candidate: int, predictor: Any) -> Tensor:
    """For each click the 32 numbers whose product with the upscaled embedding is nearest to a disk around it."""
    radius, rows = RADII[candidate], -(-predictor.input_size[0] * LOW // 1024)
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(LOW) + 0.5, indexing="ij")
    distance = (torch.stack([x, y], -1).reshape(1, -1, 2) / LOW - clicks[:, None] / 1024).norm(dim=-1)
    wanted = LOGITS[candidate] * ((radius - distance) / radius).clamp(-1, 1)
    weight = 1 + 4 * (distance < 1.5 * radius).float()
    basis = upscaled[:, :, :rows].flatten(2).transpose(1, 2)
    weighted = (basis * weight[..., None]).transpose(1, 2)
    square = weighted @ basis
    square += 1e-3 * square.diagonal(dim1=1, dim2=2).mean() * torch.eye(square.shape[1])
    return torch.linalg.solve(square, weighted @ wanted[..., None])[..., 0]


def _ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer nearest to the targets."""
    x, y = inputs.double(), targets.double()
    centred, mean = x - x.mean(0), y.mean(0)
    square = centred.T @ centred
    square += 1e-4 * square.diagonal().mean() * torch.eye(len(square))
    weight = torch.linalg.solve(square, centred.T @ (y - mean)).T
    return weight.float(), (mean - weight @ x.mean(0)).float()
