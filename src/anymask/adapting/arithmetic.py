"""Concepts compared with each other, mixed, and taken apart vector by vector."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anymask.adapting.judging import Gallery, mean_iou
from anymask.adapting.slopes import slope
from anymask.adapting.wording import nearest_pieces
from anymask.data.pairs import Pair
from anymask.models.word_space import WordSpace
from anymask.types import Concept, Masks


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosines of every concept with every other: of what the text transformer reads, and of the means of vectors."""

    names: tuple[str, ...]
    read: Float[np.ndarray, "n n"]
    vectors: Float[np.ndarray, "n n"]


@dataclass(frozen=True)
class Sensitivity:
    """What one vector of a concept counts for: mean IoU when it is left out (None if it is the only one), and when the
    mean of the table stands in its place; the norm of the loss's gradient there; and the word nearest to it.
    """

    nearest: str
    left_out_iou: float | None
    replaced_iou: float
    gradient_norm: float


def similarity(space: WordSpace, concepts: Sequence[Concept]) -> Similarity:
    """Of two or more concepts of one model."""
    if len(concepts) < 2:
        raise ValueError(f"similarity is of two or more concepts, got {len(concepts)}")
    all_vectors = [space.vectors_of(one) for one in concepts]
    with torch.no_grad():
        read = torch.stack([space.read(vectors) for vectors in all_vectors])
    means = torch.stack([vectors.mean(dim=0) for vectors in all_vectors])
    return Similarity(tuple(one.name for one in concepts), _cosines(read), _cosines(means))


def interpolate(first: Concept, second: Concept, share: float) -> Concept:
    """Between two concepts of one model: the first at share 0, the second at 1.

    Of unlike lengths each vector of the shorter stands several times in the mixture, in order, so that it holds no
    mean of neighbours, which no model has ever read.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share must be from 0 (the first concept) to 1 (the second), got {share}")
    one, other = _embedding(first), _embedding(second)
    bases = [(of.base_model, of.base_digest, vectors.shape[1]) for of, vectors in ((first, one), (second, other))]
    if bases[0] != bases[1]:
        raise ValueError(
            f"concepts must be of one model to be mixed, got {first.name!r} for {_base(first)} and {second.name!r} for"
            f" {_base(second)}: teach one of them again"
        )
    n = len(one) if share == 0 else len(other) if share == 1 else max(len(one), len(other))
    mixed = (1 - share) * _repeated(one, n) + share * _repeated(other, n)
    made_by = {"interpolated": [first.name, second.name], "share": share}
    name = f"{first.name} {1 - share:.0%} {second.name} {share:.0%}"
    return Concept(name, first.base_model, mixed.astype(np.float32), made_by, base_digest=first.base_digest)


def sensitivity(gallery: Gallery, concept: Concept) -> list[Sensitivity]:
    """For each vector of the concept, how the mean IoU over the images hangs on it."""
    vectors = gallery.space.vectors_of(concept)
    if not len(gallery):
        raise ValueError("sensitivity is measured on one or more images, got none")
    norms = slope(gallery, range(len(gallery)), vectors).norm(dim=1).tolist()
    nearest = nearest_pieces(gallery.space, vectors, 1)
    mean = gallery.space.table.float().mean(dim=0)
    found = []
    for i, norm in enumerate(norms):
        left = torch.cat([vectors[:i], vectors[i + 1 :]])
        replaced = torch.cat([vectors[:i], mean[None], vectors[i + 1 :]])
        left_out_iou = mean_iou(gallery.judge(left)) if len(left) else None
        found.append(Sensitivity(nearest[i][0].words, left_out_iou, mean_iou(gallery.judge(replaced)), norm))
    return found


def with_own_answers(gallery: Gallery, concept: Concept) -> Gallery:
    """The same images with what the concept finds as the truth, where there is no other: IoU is then agreement."""
    vectors = gallery.space.vectors_of(concept)
    pairs = [
        Pair(pair.image, Masks.from_dense(gallery.mask(row, vectors)[None])) for row, pair in enumerate(gallery.pairs)
    ]
    return replace(gallery, pairs=pairs)


def _embedding(concept: Concept) -> Float[np.ndarray, "n d"]:
    if concept.token_embeddings is None:
        raise ValueError(f"the concept {concept.name!r} holds thresholds alone, no vectors: nothing to mix")
    return concept.token_embeddings


def _repeated(vectors: Float[np.ndarray, "n d"], n: int) -> Float[np.ndarray, "m d"]:
    """Each vector as often as makes `n` of them, in order; of fewer an even choice."""
    return vectors[np.arange(n) * len(vectors) // n]


def _base(concept: Concept) -> str:
    width = _embedding(concept).shape[1]
    return f"{concept.base_model or 'an unknown model'} ({width} wide, weights {concept.base_digest[:8] or 'unknown'})"


def _cosines(rows: Float[Tensor, "n d"]) -> Float[np.ndarray, "n n"]:
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    return np.asarray((unit @ unit.T).clamp(-1, 1).cpu().numpy())
