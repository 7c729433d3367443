"""What a model that understands names must offer to be taught one: the vectors of its words, answers to any vectors.

A learned vector enters before the text transformer, where the vector of a word piece would stand (textual inversion,
Gal et al. 2022): all weights rest, and the gradient goes through decoder, fusion and text transformer to it. A further
model needs one subclass of `WordSpace`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymask.models.digests import digest_of_weights
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Model
from anymask.types import Concept, Prompt

LEVEL = "word vectors before the text transformer"


@dataclass(frozen=True, eq=False)
class Answers:
    """What one phrase says of b images: q masks each. All logits; differentiable in the vectors of the phrase.

    `boxes` are x0 y0 x1 y1 in shares of the input; None where the model predicts none.
    """

    logits: Float[Tensor, "b q lh lw"]
    scores: Float[Tensor, "b q"]
    presence: Float[Tensor, "b"]
    boxes: Float[Tensor, "b q 4"] | None = None


class WordSpace(ABC):
    """The word vectors of a model, before its text transformer.

    `unions`: each mask is of all instances at once, and not of one.
    """

    unions: ClassVar[bool]
    at_once: ClassVar[int]  # images that are answered together, as memory allows
    most_vectors: int  # of a phrase without its marks
    model: PromptableModel

    @property
    @abstractmethod
    def table(self) -> Float[Tensor, "v d"]:
        """The vectors of all word pieces, frozen."""

    @property
    @abstractmethod
    def pieces(self) -> Sequence[str]:
        """The word piece of each row of the table, as its tokenizer writes it."""

    @abstractmethod
    def spell(self, words: str) -> Int[Tensor, "n"]:
        """The rows of a phrase, without the marks of beginning and end."""

    @abstractmethod
    def spoken(self, rows: Sequence[int]) -> str:
        """The phrase that rows of the table spell."""

    def prepare(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features of images with what else they alone decide, for `answer`; without gradients."""
        return dict(features)

    @abstractmethod
    def tokens(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "l d2"]:
        """What the text transformer makes of a phrase of these vectors, marks included; differentiable in them."""

    @abstractmethod
    def answer(self, features: Mapping[str, Tensor], vectors: Float[Tensor, "n d"]) -> Answers:
        """What the phrase of these vectors says of the images of a batch of features, as `prepare` gives them.

        Differentiable in the vectors, if the features are no inference tensors.
        """

    @property
    def sure(self) -> float:
        """The score from which on the model says that the thing is there."""
        limits = self.model.capabilities.thresholds
        return limits.presence if self.unions else limits.product

    @property
    @abstractmethod
    def feature_names(self) -> tuple[str, ...]:
        """Those of the encoder that `prepare` and `answer` read."""

    @property
    @abstractmethod
    def readers(self) -> Mapping[str, nn.Module]:
        """All modules that stand between the vectors and the answers."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.table.shape[1])

    def read(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "d2"]:
        """A phrase of these vectors as one vector, the mean of its `tokens`: to compare phrases of any length."""
        return self.tokens(vectors).float().mean(dim=0)

    def written(self, prompt: Prompt) -> Float[Tensor, "n d"]:
        """The vectors of a phrase without its marks: of its words, and those that stand for concepts among them."""
        parts = [
            self.table[self.spell(one)] if isinstance(one, str) else self.vectors_of(one).to(self.table)
            for one in prompt.phrase
        ]
        return torch.cat(parts)

    def vectors(self, words: str) -> Float[Tensor, "n d"]:
        """The vectors of a phrase without its marks. Raises ValueError for an empty one, or one that is too long."""
        count = sum(len(self.spell(word)) for word in words.split())  # a tokenizer cuts what is too long
        if not 0 < count <= self.most_vectors:
            few = f"1 to {self.most_vectors} pieces, got {count} of {words!r}"
            raise ValueError(f"a phrase for {self.model.name} must have {few}")
        return self.table[self.spell(words)].float()

    @cached_property
    def digest(self) -> str:
        """Of all weights that read the vectors."""
        whole = nn.ModuleDict({name.replace(".", "_"): module for name, module in self.readers.items()})
        return digest_of_weights(whole)

    def vectors_of(self, concept: Concept) -> Float[Tensor, "n d"]:
        """The vectors of a concept. Raises ValueError for one that was made for another model.

        In half precision the weights cannot be told from others, so that their width must do.
        """
        vectors = concept.token_embeddings
        if vectors is None:
            raise ValueError(f"the concept {concept.name!r} holds thresholds alone, no vectors: nothing to read")
        made = f"the concept {concept.name!r} was made for {concept.base_model or 'an unknown model'}"
        if vectors.shape[1] != self.width:
            raise ValueError(
                f"{made} with vectors of {vectors.shape[1]}, but those of {self.model.name} have {self.width}: give"
                " that model, or teach it again"
            )
        known = concept.base_digest and self.table.dtype == torch.float32
        if known and concept.base_digest != self.digest:
            raise ValueError(
                f"{made} with other weights than those of {self.model.name}: give those, or teach it again"
            )
        return torch.from_numpy(np.asarray(vectors, np.float32)).to(self.table.device)


def word_space_of(model: Model) -> WordSpace:
    """That of a model. Raises ValueError for one without."""
    words = getattr(model, "words", None)
    if not isinstance(words, WordSpace):
        raise ValueError(f"{model.name} knows no text, so that it cannot be taught a word: use pocket or sam3")
    return words
