"""The words of the pocket model: its text tower's table, and what a phrase of any vectors finds."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymask.models.decode import PromptTensors
from anymask.models.word_space import Answers, WordSpace

if TYPE_CHECKING:
    from anymask.models.pocket import PocketModel


class PocketWords(WordSpace):
    """Without queries and boxes: the one mask is the union of all instances, and its score is the presence."""

    unions = True
    at_once = 8

    def __init__(self, model: "PocketModel") -> None:
        self.model = self._pocket = model
        self.most_vectors = model.tower.config.max_tokens - 2  # without [CLS] and [SEP]

    @property
    def table(self) -> Float[Tensor, "v d"]:
        """As `WordSpace.table`."""
        return self._pocket.tower.transformer.embeddings.word_embeddings.weight.detach()

    @cached_property
    def pieces(self) -> Sequence[str]:
        """WordPieces: `##ing` goes on with a word."""
        return self._pocket.tokenizer.pieces

    def spell(self, words: str) -> Int[Tensor, "n"]:
        """As `WordSpace.spell`."""
        return self._pocket.tokenizer([words])[0][0, 1:-1].to(self._pocket.device)

    def spoken(self, rows: Sequence[int]) -> str:
        """As `WordSpace.spoken`."""
        return " ".join(self.pieces[row] for row in rows).replace(" ##", "")

    def tokens(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "l d2"]:
        """As `WordSpace.tokens`."""
        marked = self.marked(vectors)[None]
        whole = torch.ones(marked.shape[:2], dtype=torch.bool, device=marked.device)
        return self._pocket.tower.encode_embeddings(marked, whole).tokens[0]

    def answer(self, features: Mapping[str, Tensor], vectors: Float[Tensor, "n d"]) -> Answers:
        """As `WordSpace.answer`."""
        tokens = self.tokens(vectors)
        rows = torch.arange(len(features["s16"]), device=tokens.device)
        nowhere = PromptTensors(tokens.new_zeros(len(rows), 0, 2), rows.new_zeros(len(rows), 0), text=tokens)
        output = self._pocket.run(features, rows, nowhere)
        presence = output.presence.float()  # it may be bfloat16 on a GPU
        return Answers(output.logits[:, :1].float(), presence[:, None], presence)

    def marked(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n_plus_two d"]:
        """Between the vectors of [CLS] and [SEP]."""
        begin, end = self.table[self._pocket.tokenizer([""])[0][0].to(self._pocket.device)]
        return torch.cat([begin[None], vectors, end[None]])

    @property
    def feature_names(self) -> tuple[str, ...]:
        """As `WordSpace.feature_names`."""
        return self._pocket.feature_names

    @property
    def readers(self) -> Mapping[str, nn.Module]:
        """All but encoder and pyramid."""
        network = self._pocket.network
        return {"tower": self._pocket.tower, "text_score": network.text_score, "decoder": network.decoder}
