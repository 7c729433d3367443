"""Where a learned phrase begins: at words, at noise, at the best of a list of phrases, or at another concept."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from anymask.adapting.judging import Gallery, mean_iou
from anymask.data.concepts import read_concept
from anymask.models.word_space import WordSpace

NOISE = "noise"
APART = 0.01  # noise beside repeated vectors, in deviations of the table, so that each learns a way of its own


def begin(space: WordSpace, start: str, tokens: int | None = None, seed: int = 0) -> Float[Tensor, "n d"]:
    """The first vectors, `tokens` of them: of "noise", of a concept's file (*.safetensors), or of the words `start`.

    Without a number there are as many as the words have pieces or the concept has vectors, and one of noise. Where
    there are more, they are repeated with a little noise; where fewer, neighbours are averaged.
    """
    if tokens is not None and not 1 <= tokens <= space.most_vectors:
        raise ValueError(f"tokens must be 1 to {space.most_vectors} for {space.model.name}, got {tokens}")
    generator = torch.Generator().manual_seed(seed)
    if start == NOISE:
        return drawn(space, tokens or 1, generator)
    vectors = space.vectors_of(read_concept(Path(start))) if start.endswith(".safetensors") else space.vectors(start)
    return _as_many(vectors, tokens or len(vectors), space, generator)


def best_phrase(gallery: Gallery, phrases: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Of plain phrases the one with the highest mean IoU on the images, and the mean IoU of each."""
    if not phrases:
        raise ValueError("the nearest phrase must be chosen from a list: give --phrase, once for each")
    found = {phrase: mean_iou(gallery.judge(gallery.space.vectors(phrase))) for phrase in dict.fromkeys(phrases)}
    return max(found, key=found.__getitem__), found


def drawn(space: WordSpace, count: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Random vectors with the mean and the deviation of the table."""
    table = space.table.float()
    noise = torch.randn(count, space.width, generator=generator).to(table.device)
    return table.mean(dim=0) + noise * table.std(dim=0)


def _as_many(
    vectors: Float[Tensor, "m d"], count: int, space: WordSpace, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """The vectors themselves where they are as many."""
    if count < len(vectors):
        return torch.stack([part.mean(dim=0) for part in vectors.tensor_split(count)])
    more = torch.arange(len(vectors), count) % len(vectors)
    noise = torch.randn(len(more), space.width, generator=generator).to(vectors) * space.table.float().std()
    return torch.cat([vectors, vectors[more.to(vectors.device)] + APART * noise])
