"""Digests of weights and graphs: whether a result, or a file in a cache, is of this very model."""

import hashlib

import torch
from torch import nn

from anymask.data.files import sha256_of
from anymask.models.promptable import PromptableModel


def digest_of_model(model: PromptableModel) -> str:
    """Of its weights; of an exported model, which has none, of its graphs."""
    if not model.graphs:
        return digest_of_weights(model.network)
    return hashlib.sha256("".join(map(sha256_of, model.graphs)).encode()).hexdigest()[:32]


def digest_of_weights(network: nn.Module) -> str:
    """Of all weights of a network by name."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
