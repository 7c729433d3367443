"""A pocket model of the tests' size with random weights: the real classes, every tensor seeded by its own key."""

import zlib
from dataclasses import replace

import torch
from torch import nn

from anymask.models.pocket import PocketModel
from anymask.models.pocket_files import read_tokenizer
from anymask.models.pocket_network import CONFIGS, PocketNetwork
from anymask.models.pocket_text import TEXT_CONFIGS, TextTower

TINY_TEXT = replace(TEXT_CONFIGS["tiny"], vocab_size=30522)


def seed_weights(module: nn.Module) -> None:
    """Small random numbers that depend on the key: a swap of two equal shapes changes the result."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and "running_var" not in name:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim == 1 else 0.15))


def tiny_model() -> PocketModel:
    """Ready for use on the CPU."""
    network, tower = PocketNetwork(CONFIGS["tiny"]), TextTower(TINY_TEXT)
    seed_weights(network)
    seed_weights(tower)
    frozen = tower.eval().requires_grad_(False)
    return PocketModel(network.eval().requires_grad_(False), lambda: (frozen, read_tokenizer(TINY_TEXT)))
