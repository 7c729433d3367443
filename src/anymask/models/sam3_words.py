"""The words of SAM 3 and SAM 3 LiteText: CLIP's table, and what a phrase of any vectors finds."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymask.models import sam3_detector, sam3_text
from anymask.models.sam3_detector import LEVELS
from anymask.models.word_space import Answers, WordSpace

if TYPE_CHECKING:
    from anymask.models.sam3 import Sam3

NO_EXEMPLAR = "no_exemplar"
SPACE = "</w>"  # how CLIP's tokenizer writes the end of a word


class Sam3Words(WordSpace):
    """Each of the detector's queries is one instance, with a box."""

    unions = False
    at_once = 1
    most_vectors = sam3_text.LENGTH - 2

    def __init__(self, model: "Sam3") -> None:
        self.model = self._sam3 = model

    @property
    def table(self) -> Float[Tensor, "v d"]:
        """As `WordSpace.table`."""
        return sam3_text.token_embedding(self._sam3.detector).weight.detach()

    @cached_property
    def pieces(self) -> Sequence[str]:
        """Of CLIP's byte-pair encoding."""
        tokenizer = self._sam3.tokenizer
        found: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        return found

    def spell(self, words: str) -> Int[Tensor, "n"]:
        """As `WordSpace.spell`; a long phrase is cut."""
        ids, [length] = sam3_text.word_pieces(self._sam3.tokenizer, [words])
        return ids[0, 1 : length - 1].to(self._sam3.device)

    def spoken(self, rows: Sequence[int]) -> str:
        """As `WordSpace.spoken`."""
        return "".join(self.pieces[row] for row in rows).replace(SPACE, " ").strip()

    def tokens(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "l d2"]:
        """As `WordSpace.tokens`."""
        ids, lengths = sam3_text.blank_pieces(self._sam3.tokenizer, len(vectors))
        return sam3_text.encode_words(self._sam3.detector, ids.to(vectors.device), lengths, [vectors])[0]

    @torch.no_grad()
    def prepare(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With the token of no exemplar, which hangs on the image alone."""
        detector = self._sam3.detector
        return {**features, NO_EXEMPLAR: sam3_detector.no_exemplar(detector, features)}

    def answer(self, features: Mapping[str, Tensor], vectors: Float[Tensor, "n d"]) -> Answers:
        """As `WordSpace.answer`."""
        tokens = self.tokens(vectors)
        output = sam3_detector.detect_everywhere(self._sam3.detector, features, tokens, features[NO_EXEMPLAR])
        return Answers(
            output.pred_masks.float(),
            output.pred_logits.float(),
            output.presence_logits[:, 0].float(),
            output.pred_boxes.float(),
        )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """As `WordSpace.feature_names`."""
        return tuple(f"detector_{i}" for i in range(LEVELS))

    @property
    def readers(self) -> Mapping[str, nn.Module]:
        """All of the detector but its ViT with the neck."""
        return {name: part for name, part in self._sam3.detector.named_children() if name != "vision_encoder"}
