"""The pocket model's text tower: a small BERT with the words of all-MiniLM-L6-v2, its teacher (`training/text.py`).

The word embeddings are a stage of their own, so that textual inversion can put learned vectors among them.
`projection` maps the pooled tokens into the teacher's sentence space: the distillation needs it, and it compares
phrases with phrases.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from anymask.data.files import write_whole
from anymask.models.bert import Bert


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower."""

    vocab_size: int = 30522
    width: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    max_tokens: int = 32
    teacher_width: int = 384


TEXT_CONFIGS: dict[str, TextConfig] = {
    "pocket": TextConfig(),
    "tiny": TextConfig(vocab_size=120, width=16, layers=2, heads=2, intermediate=32, max_tokens=12, teacher_width=24),
}


@dataclass(frozen=True)
class TextFeatures:
    """What the tower says of b phrases: one vector per token, which tokens are real, and their mean."""

    tokens: Float[Tensor, "b l c"]
    mask: Bool[Tensor, "b l"]
    pooled: Float[Tensor, "b c"]


class TextTower(nn.Module):
    """Token ids -> contextual tokens and their mean, both `width` wide."""

    def __init__(self, config: TextConfig = TextConfig()) -> None:
        super().__init__()
        self.config = config
        sizes = (config.vocab_size, config.width, config.layers, config.heads, config.intermediate, config.max_tokens)
        self.transformer = Bert(*sizes)
        self.projection = nn.Linear(config.width, config.teacher_width)

    def token_embeddings(self, token_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l c"]:
        """Rows of the word table, before positions are added and before the transformer: here concepts are injected."""
        embeddings: Tensor = self.transformer.embeddings.word_embeddings(token_ids)
        return embeddings

    def forward(self, token_ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> TextFeatures:
        return self.encode_embeddings(self.token_embeddings(token_ids), mask)

    def encode_embeddings(self, embeddings: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"]) -> TextFeatures:
        """The rest of `forward`, from (possibly learned) word embeddings."""
        if embeddings.shape[1] > self.config.max_tokens:
            limit = self.config.max_tokens
            raise ValueError(f"a phrase may have at most {limit} tokens, got {embeddings.shape[1]}: shorten the text")
        tokens = self.transformer(embeddings, mask)
        return TextFeatures(tokens, mask, mean_of_tokens(tokens, mask))

    def sentence_vectors(self, features: TextFeatures) -> Float[Tensor, "b t"]:
        """Unit vectors in the teacher's space; their dot product is the similarity of two phrases."""
        return nn.functional.normalize(self.projection(features.pooled), dim=-1)


class Tokenizer:
    """Lower-case WordPiece: phrases -> (token ids, mask) as long as the longest phrase, at most `max_tokens`."""

    def __init__(self, vocabulary: Path, max_tokens: int = 32) -> None:
        if not vocabulary.is_file():
            raise FileNotFoundError(f"the vocabulary must be a file with one word piece a line, got {vocabulary}")
        from tokenizers import BertWordPieceTokenizer  # not loaded where no text is asked for

        self._tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding()

    def __call__(self, texts: Sequence[str]) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts must be a list of one or more phrases, got {texts!r}: pass [text]")
        encodings = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([encoding.ids for encoding in encodings])
        return ids, torch.tensor([encoding.attention_mask for encoding in encodings]).bool()

    @property
    def pieces(self) -> list[str]:
        """Every word piece, by its id."""
        return sorted(self._tokenizer.get_vocab(), key=self._tokenizer.get_vocab().__getitem__)


def mean_of_tokens(tokens: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b c"]:
    """The mean over real tokens, [CLS] and [SEP] included, as all-MiniLM-L6-v2 pools."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def save_text_tower(tower: TextTower, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the weights as float16 safetensors, with the config as JSON in the metadata."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in tower.state_dict().items()}
    whole = save(tensors, {"config": json.dumps(asdict(tower.config)), **(metadata or {})})
    with write_whole(path) as temporary:
        temporary.write_bytes(whole)


def load_text_tower(path: Path) -> TextTower:
    """The tower of a file written by `save_text_tower`, in float32, for evaluation."""
    with safe_open(path, framework="pt") as file:
        tower = TextTower(TextConfig(**json.loads(file.metadata()["config"])))
        tower.load_state_dict({name: file.get_tensor(name).float() for name in tower.state_dict()})
    return tower.eval()
