"""SAM's two-way transformer for many prompts on one image, without an image of its own for each of them.

Stock decoders repeat the image embedding for every prompt (p cells of width c), project it anew in nine attentions and
normalise it twice. But the cells of a prompt differ from the shared image only by what they read from a handful of
tokens: the attention of cells to tokens adds `weights.T @ read`, of rank k = heads * tokens (56 of 256), and a layer
norm is a scale and a shift a cell. So the cells x of a prompt after any layer are

    x = scale * shared + coefficients.T @ basis,      scale [p], coefficients [j, p], basis [j, c], j = k + 2 a layer

with `shared` the same for all. Scores against the cells, their weighted means and the statistics of the layer norms all
follow from products of this form, with `shared` projected once an image; nothing of size p x c is computed for a
prompt, until its masks are asked for (`SharedTwoWay.project`). The result is the stock transformer's up to rounding.

Works on the modules of transformers' SamMaskDecoder, Sam2MaskDecoder and the trackers of SAM 3.
Axes: n prompts, t tokens, h heads, d width of a head, p cells, c width, k = h * t, j rows of the basis, e outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Projection:
    """A linear layer applied to the cells: `shared` and `constant` (bias, or position and bias) for all prompts."""

    weight: Float[Tensor, "h d c"]
    shared: Float[Tensor, "h p d"]
    constant: Float[Tensor, "h p d"]

    @classmethod
    def prepared(cls, linear: nn.Linear, heads: int, image: Tensor, position: Tensor | None = None) -> "Projection":
        """Of cells whose shared part is `image`, with their position added if one is given."""
        bias = linear.bias.expand(len(image), -1)
        constant = bias if position is None else position @ linear.weight.T + bias
        weight = linear.weight.unflatten(0, (heads, -1))
        return cls(weight, *(x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (image @ linear.weight.T, constant)))

    def of(self, basis: Float[Tensor, "n j c"]) -> Float[Tensor, "n h j d"]:
        """The layer without its bias."""
        return basis[:, None] @ self.weight.transpose(1, 2)


@dataclass(frozen=True)
class Cells:
    """The image as n prompts see it between two layers, by the formula above.

    The first rows of the basis are vectors that all prompts share, the last of these with coefficient 1 everywhere; the
    others are what cells have read, layer by layer: `codes[i] @ Layer.dictionary`.
    """

    scale: Float[Tensor, "n p"]
    coefficients: Float[Tensor, "n j p"]
    basis: Float[Tensor, "n j c"]
    codes: tuple[Float[Tensor, "n h t d"], ...] = ()

    def __getitem__(self, rows: Int[Tensor, "m"]) -> "Cells":
        """Of some prompts."""
        codes = tuple(one[rows] for one in self.codes)
        return Cells(self.scale[rows], self.coefficients[rows], self.basis[rows], codes)

    def scores(self, queries: Float[Tensor, "n h t d"], keys: Projection) -> Float[Tensor, "n h t p"]:
        """Dot products of queries with the projected cells."""
        along = queries @ keys.of(self.basis).transpose(2, 3)
        scores: Tensor = torch.bmm(along.flatten(1, 2), self.coefficients).unflatten(1, queries.shape[1:3])
        scores.addcmul_(_with_all(queries, keys.shared), self.scale[:, None, None])
        scores += _with_all(queries, keys.constant)
        return scores

    def mean(self, shares: Float[Tensor, "n h t p"], values: Projection) -> Float[Tensor, "n h t d"]:
        """The projected cells averaged by `shares`, which sum to 1 over the cells and are used up."""
        through = torch.bmm(shares.flatten(1, 2), self.coefficients.transpose(1, 2)).unflatten(1, shares.shape[1:3])
        found: Tensor = through @ values.of(self.basis) + values.constant[:, :1]
        found += _mean_of_all(shares.mul_(self.scale[:, None, None]), values.shared)
        return found

    def project(self, weight: Float[Tensor, "e c"], shared: Float[Tensor, "p e"]) -> Float[Tensor, "n p e"]:
        """`cells @ weight.T`, given the same of their shared part."""
        read = self.coefficients.transpose(1, 2) @ (self.basis @ weight.T)
        return read.addcmul_(shared, self.scale[..., None])


class SharedTwoWay:
    """The transformer of a mask decoder, made ready for one image, whose positional code is `position`."""

    def __init__(self, transformer: Any, image: Float[Tensor, "p c"], position: Float[Tensor, "p c"]) -> None:
        self.transformer = transformer
        final = transformer.final_attn_token_to_image
        self.first = vectors = image.new_zeros(1, image.shape[1])
        dictionaries = list[Tensor]()
        self.layers = list[_Layer]()
        for layer in transformer.layers:
            one = _Layer(layer, image, position, vectors, dictionaries)
            image, vectors, dictionaries = one.image_after, one.vectors_after, one.dictionaries_after
            self.layers.append(one)
        self.image = image
        self.attention = _ToImage(final, image, position)

    def __call__(self, tokens: Float[Tensor, "n t c"]) -> tuple[Float[Tensor, "n t c"], Cells]:
        """The tokens after the transformer, and the cells as each prompt sees them; their shared part is `image`."""
        ones = tokens.new_ones(len(tokens), 1, len(self.image))
        queries, cells = tokens, Cells(ones[:, 0], ones, self.first.expand(len(tokens), 1, -1))
        for layer in self.layers:
            queries, cells = layer(queries, tokens, cells)
        queries = queries + self.attention(queries + tokens, cells)
        final: Tensor = self.transformer.layer_norm_final_attn(queries)
        return final, cells


class _ToImage:
    """Cross-attention of tokens to the cells."""

    def __init__(self, attention: Any, image: Tensor, position: Tensor) -> None:
        self.attention, self.heads = attention, attention.num_attention_heads
        self.keys = Projection.prepared(attention.k_proj, self.heads, image, position)
        self.values = Projection.prepared(attention.v_proj, self.heads, image)

    def __call__(self, queries: Float[Tensor, "n t c"], cells: Cells) -> Float[Tensor, "n t c"]:
        asked = _by_heads(self.attention.q_proj(queries), self.heads) * self.attention.scaling
        found = cells.mean(cells.scores(asked, self.keys).softmax(dim=3), self.values)
        out: Tensor = _out(self.attention)(found.transpose(1, 2).flatten(2))
        return out


class _Layer:
    """A two-way block: tokens to tokens, tokens to cells, perceptron, cells to tokens, each with its norm.

    `image` and `vectors` are the shared part of the cells and of their basis before it.
    """

    def __init__(
        self, layer: Any, image: Tensor, position: Tensor, vectors: Tensor, dictionaries: Sequence[Tensor]
    ) -> None:
        self.layer, self.norm = layer, layer.layer_norm4
        self.to_image = _ToImage(layer.cross_attn_token_to_image, image, position)
        self.reading = layer.cross_attn_image_to_token
        heads, out = self.to_image.heads, _out(self.reading)
        self.asking = Projection.prepared(self.reading.q_proj, heads, image, position)
        self.own_dictionary = out.weight.T.unflatten(0, (heads, -1))
        self.vectors = torch.cat([vectors[:-1], vectors[-1:] + out.bias])
        # What the norm needs of the image alone, and its products with each row of the basis.
        self.square, self.mean = image.square().sum(1), image.mean(1)
        self.on_vectors = self.vectors @ image.T
        self.on_read = [image @ one.transpose(1, 2) for one in (*dictionaries, self.own_dictionary)]
        gain, bias = self.norm.weight, self.norm.bias
        self.image_after = image * gain
        self.vectors_after = torch.cat([self.vectors * gain, gain[None], bias[None]])
        self.dictionaries_after = [one * gain for one in (*dictionaries, self.own_dictionary)]

    def __call__(
        self, queries: Float[Tensor, "n t c"], position: Float[Tensor, "n t c"], cells: Cells
    ) -> tuple[Float[Tensor, "n t c"], Cells]:
        layer = self.layer
        queries = self._to_tokens(queries, position)
        queries = layer.layer_norm2(queries + self.to_image(queries + position, cells))
        queries = layer.layer_norm3(queries + layer.mlp(queries))
        return queries, self._normed(self._read(queries, position, cells))

    def _to_tokens(self, queries: Tensor, position: Tensor) -> Tensor:
        """The self-attention of the tokens; the first layer replaces them and adds no position."""
        placed = (queries if self.layer.skip_first_layer_pe else queries + position)[None]
        mixed, _ = self.layer.self_attn(query=placed, key=placed, value=queries[None])
        normed: Tensor = self.layer.layer_norm1(mixed[0] if self.layer.skip_first_layer_pe else queries + mixed[0])
        return normed

    def _read(self, queries: Tensor, position: Tensor, cells: Cells) -> Cells:
        """The cells plus what they read from the tokens."""
        heads = self.to_image.heads
        keys = _by_heads(self.reading.k_proj(queries + position), heads) * self.reading.scaling
        weights = cells.scores(keys, self.asking).softmax(dim=2).flatten(1, 2)
        codes = _by_heads(self.reading.v_proj(queries), heads)
        read = (codes @ self.own_dictionary).flatten(1, 2)
        own = self.vectors.expand(len(queries), -1, -1)
        basis = torch.cat([own, cells.basis[:, len(self.vectors) :], read], dim=1)
        coefficients = torch.cat([cells.coefficients, weights], dim=1)
        return Cells(cells.scale, coefficients, basis, (*cells.codes, codes))

    def _normed(self, cells: Cells) -> Cells:
        """Layer norm: a cell becomes (cell - mean) / deviation * gain + bias."""
        mean, scale = self._statistics(cells)
        n, j, p = cells.coefficients.shape
        v = len(self.vectors)
        coefficients = mean.new_empty(n, j + 2, p)
        torch.mul(cells.coefficients[:, :v], scale[:, None], out=coefficients[:, :v])
        torch.mul(mean, -scale, out=coefficients[:, v])
        coefficients[:, v + 1] = 1
        torch.mul(cells.coefficients[:, v:], scale[:, None], out=coefficients[:, v + 2 :])
        own = self.vectors_after.expand(n, -1, -1)
        basis = torch.cat([own, cells.basis[:, v:] * self.norm.weight], dim=1)
        return Cells(cells.scale * scale, coefficients, basis, cells.codes)

    def _statistics(self, cells: Cells) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p"]]:
        """Mean and 1 / deviation of each cell, from E[x] and E[x^2]."""
        basis, coefficients, scale = cells.basis, cells.coefficients, cells.scale
        mean = (basis.mean(2)[:, None] @ coefficients)[:, 0].addcmul_(scale, self.mean)
        read = [_with_all(*pair).flatten(1, 2) for pair in zip(cells.codes, self.on_read, strict=True)]
        products: Tensor = torch.cat([self.on_vectors.expand(len(basis), -1, -1), *read], dim=1)
        products.mul_(2 * scale[:, None]).baddbmm_(basis @ basis.transpose(1, 2), coefficients)
        square = products.mul_(coefficients).sum(1).addcmul_(scale.square(), self.square)
        variance: Tensor = (square / basis.shape[2] - mean.square()).clamp_(min=0)
        return mean, (variance + self.norm.eps).rsqrt_()


def _out(attention: Any) -> nn.Linear:
    """The last projection of an attention: `out_proj` in SAM, `o_proj` in SAM 2 and 3."""
    out: nn.Linear = attention.out_proj if hasattr(attention, "out_proj") else attention.o_proj
    return out


def _by_heads(x: Float[Tensor, "n t e"], heads: int) -> Float[Tensor, "n h t d"]:
    split: Tensor = x.unflatten(2, (heads, -1))
    return split.transpose(1, 2)


def _with_all(queries: Float[Tensor, "n h t d"], shared: Float[Tensor, "h p d"]) -> Float[Tensor, "n h t p"]:
    """Products of every prompt's queries with what all share, as one matrix product a head."""
    n, h, t, d = queries.shape
    products: Tensor = queries.transpose(0, 1).reshape(h, n * t, d) @ shared.transpose(1, 2)
    return products.view(h, n, t, -1).transpose(0, 1)


def _mean_of_all(shares: Float[Tensor, "n h t p"], shared: Float[Tensor, "h p d"]) -> Float[Tensor, "n h t d"]:
    n, h, t, p = shares.shape
    means: Tensor = shares.transpose(0, 1).reshape(h, n * t, p) @ shared
    return means.view(h, n, t, -1).transpose(0, 1)
