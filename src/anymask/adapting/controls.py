"""What a learned embedding must beat: plain phrases, random vectors, where it began, and the mean of all embeddings.

A control is judged on the very images that the embedding is judged on. The best phrase is chosen on the images that the
embedding learned from, so that it is chosen with what the embedding had.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anymask.adapting.beginnings import drawn
from anymask.adapting.judging import Gallery
from anymask.models.word_space import WordSpace

SEED_PHRASE, BEST_PHRASE = "seed phrase", "best phrase"
RANDOM, INITIALISER, MEAN = "random vectors", "initialiser", "mean embedding"


@dataclass(frozen=True, eq=False)
class Judged:
    """IoU and presence score of r phrases (runs, draws) on each of n images, and whether they count as found."""

    names: tuple[str, ...]
    ious: Float[np.ndarray, "r n"]
    scores: Float[np.ndarray, "r n"]
    found: Bool[np.ndarray, "r n"]


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vectors that one run began with, and those that it learned."""

    start: Float[Tensor, "n d"]
    end: Float[Tensor, "n d"]


def judged(gallery: Gallery, phrases: Sequence[Float[Tensor, "_ d"]]) -> Judged:
    """What each of several phrases finds in a gallery."""
    found = [gallery.judge(vectors) for vectors in phrases]
    return Judged(
        names=tuple(one.name for one in found[0]),
        ious=np.asarray([[one.iou for one in row] for row in found]),
        scores=np.asarray([[one.score for one in row] for row in found]),
        found=np.asarray([[one.found for one in row] for row in found]),
    )


def judge_controls(
    held_out: Gallery,
    seed_phrase: str,
    best_phrase: str,
    embeddings: Sequence[Embedding],
    means: Sequence[Float[Tensor, "_ d"]],
    draws: int,
    seed: int = 0,
) -> dict[str, Judged]:
    """Every control by name on the held-out images: as many random vectors as were learned, drawn `draws` times.

    `means` are the mean embeddings of each run; none of a single class, where the mean is the embedding itself.
    """
    space, count = held_out.space, len(embeddings[0].end)
    phrases: dict[str, Sequence[Tensor]] = {
        SEED_PHRASE: [space.vectors(seed_phrase)],
        BEST_PHRASE: [space.vectors(best_phrase)],
        RANDOM: random_vectors(space, count, draws, seed),
        INITIALISER: [one.start for one in embeddings],
        MEAN: means,
    }
    return {name: judged(held_out, several) for name, several in phrases.items() if several}


def random_vectors(space: WordSpace, count: int, draws: int, seed: int = 0) -> list[Float[Tensor, "n d"]]:
    """`draws` times `count` vectors with the mean and the deviation of the word table, so with its norms."""
    generator = torch.Generator().manual_seed(seed)
    return [drawn(space, count, generator) for _ in range(draws)]


def mean_embedding(embeddings: Sequence[Float[Tensor, "_ d"]]) -> Float[Tensor, "n d"]:
    """The mean over classes, vector by vector; of those that have a vector there, where they are not equally many."""
    places = range(max(map(len, embeddings)))
    return torch.stack([torch.stack([one[i] for one in embeddings if i < len(one)]).mean(dim=0) for i in places])
