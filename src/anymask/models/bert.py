"""A small BERT encoder (Devlin et al. 2019) with the tensor names and results of transformers' `BertModel`.

Written out for the same reason as `two_way.py`: a photo should be segmented without importing all of transformers.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-12


class Bert(nn.Module):
    """Word embeddings to contextual tokens; no pooling, no dropout, one token type."""

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, intermediate: int, most_tokens: int
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocabulary, width, most_tokens)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer(width, heads, intermediate) for _ in range(layers))
        self.apply(_initialise)

    def forward(self, embeddings: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l c"]:
        """Contextual tokens of (possibly learned) word embeddings; padding is attended to by nobody."""
        x: Tensor = self.embeddings(embeddings)
        for layer in self.encoder.layer:  # type: ignore[union-attr]  # a ModuleList
            x = layer(x, mask)
        return x


class Embeddings(nn.Module):
    """The word table, and what is added to its rows."""

    def __init__(self, vocabulary: int, width: int, most_tokens: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(most_tokens, width)
        self.token_type_embeddings = nn.Embedding(1, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, words: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        positions = torch.arange(words.shape[1], device=words.device)
        placed = words + self.token_type_embeddings.weight + self.position_embeddings(positions)
        normed: Tensor = self.LayerNorm(placed)
        return normed


class Layer(nn.Module):
    """Attention and MLP, each followed by residual and norm; the nesting is that of the names."""

    def __init__(self, width: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict({"self": Projections(width), "output": Residual(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, intermediate)})
        self.output = Residual(intermediate, width)

    def forward(self, x: Float[Tensor, "b l c"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l c"]:
        attended = self.attention["output"](self._attend(x, mask), x)
        out: Tensor = self.output(functional.gelu(self.intermediate["dense"](attended)), attended)
        return out

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in self.attention["self"](x))
        scores = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        attended: Tensor = (scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2)
        return attended


class Projections(nn.Module):
    """Query, key and value of every token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in "qkv")

    def forward(self, x: Float[Tensor, "b l c"]) -> tuple[Tensor, Tensor, Tensor]:
        return self.query(x), self.key(x), self.value(x)


class Residual(nn.Module):
    """A linear layer, added to what came before, and a norm."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, width), nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Float[Tensor, "b l a"], before: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        out: Tensor = self.LayerNorm(self.dense(x) + before)
        return out


def _initialise(module: nn.Module) -> None:
    """Normal with deviation 0.02, as BERT."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
