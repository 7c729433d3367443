"""SAM's prompt encoder and two-way transformer (Kirillov et al. 2023, section A; SAM 2's `sam/transformer.py`).

The names of the tensors and the results are those of transformers' `Sam2PromptEncoder`, `Sam2TwoWayTransformer` and
`Sam2FeedForward`; a test compares them. They are written out here because importing transformers' file costs 0.25 GB
and 2.7 seconds of every start, and because weights that we ship should not hang on another library's internals.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class PromptEncoder(nn.Module):
    """Points (labels 0, 1), box corners (2, 3) and padding (-1) to tokens; masks to a map."""

    def __init__(self, width: int, mask_channels: int = 16) -> None:
        super().__init__()
        self.shared_embedding = FourierEmbedding(width)
        self.mask_embed = MaskEmbedding(width, mask_channels)
        self.no_mask_embed = nn.Embedding(1, width)
        self.point_embed = nn.Embedding(4, width)
        self.not_a_point_embed = nn.Embedding(1, width)

    def forward(self, points_01: Float[Tensor, "n p 2"], labels: Int[Tensor, "n p"]) -> Float[Tensor, "n p d"]:
        """Tokens of points whose coordinates are shares of the input's side."""
        known = (labels >= 0)[..., None]
        position = torch.where(known, self.shared_embedding(points_01), self.not_a_point_embed.weight)
        tokens: Tensor = position + self.point_embed(labels.clamp(min=0)) * known
        return tokens


class FourierEmbedding(nn.Module):
    """Random Fourier features of a position (Tancik et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positional_embedding: Tensor
        self.register_buffer("positional_embedding", torch.randn(2, width // 2))

    def forward(self, position_01: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n d"]:
        angle = 2 * math.pi * ((2 * position_01 - 1) @ self.positional_embedding)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def grid(self, size: tuple[int, int]) -> Float[Tensor, "k d"]:
        """The embedding of every cell of a map of h x w, row by row."""
        down, across = ((torch.arange(n, device=self.positional_embedding.device) + 0.5) / n for n in size)
        y, x = torch.meshgrid(down, across, indexing="ij")
        return self.forward(torch.stack([x, y], dim=-1).flatten(0, 1))


class MaskEmbedding(nn.Module):
    """A mask at stride 4 to a map at stride 16."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.layer_norm1 = nn.Conv2d(1, channels // 4, 2, 2), ChannelNorm(channels // 4, eps=1e-6)
        self.conv2, self.layer_norm2 = nn.Conv2d(channels // 4, channels, 2, 2), ChannelNorm(channels, eps=1e-6)
        self.conv3 = nn.Conv2d(channels, width, 1)

    def forward(self, masks: Float[Tensor, "n 1 qh qw"]) -> Float[Tensor, "n d gh gw"]:
        x = functional.gelu(self.layer_norm1(self.conv1(masks)))
        embedded: Tensor = self.conv3(functional.gelu(self.layer_norm2(self.conv2(x))))
        return embedded


class TwoWayTransformer(nn.Module):
    """Tokens look at themselves and at the image, the image looks at the tokens, a few times over."""

    def __init__(self, width: int, heads: int, mlp: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, mlp, first=i == 0) for i in range(layers))
        self.final_attn_token_to_image = Attention(width, heads, 2)
        self.layer_norm_final_attn = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "n k d"], image: Float[Tensor, "n i d"], position: Float[Tensor, "i d"]
    ) -> tuple[Float[Tensor, "n k d"], Float[Tensor, "n i d"]]:
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, position)
        found = self.final_attn_token_to_image(queries + tokens, keys + position, keys)
        return self.layer_norm_final_attn(queries + found), keys


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP, image to tokens; each with a residual and a norm."""

    def __init__(self, width: int, heads: int, mlp: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads, 1)
        self.cross_attn_token_to_image = Attention(width, heads, 2)
        self.cross_attn_image_to_token = Attention(width, heads, 2)
        self.mlp = FeedForward(width, mlp, width, 2)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layer_norm3, self.layer_norm4 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, queries: Tensor, keys: Tensor, tokens: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:  # the tokens are their own position, and there is nothing yet to add them to
            queries = self.layer_norm1(self.self_attn(queries, queries, queries))
        else:
            placed = queries + tokens
            queries = self.layer_norm1(queries + self.self_attn(placed, placed, queries))
        placed_keys = keys + position
        queries = self.layer_norm2(queries + self.cross_attn_token_to_image(queries + tokens, placed_keys, keys))
        queries = self.layer_norm3(queries + self.mlp(queries))
        keys = self.layer_norm4(keys + self.cross_attn_image_to_token(placed_keys, queries + tokens, queries))
        return queries, keys


class Attention(nn.Module):
    """Multi-head attention at `1 / downsample` of the width."""

    def __init__(self, width: int, heads: int, downsample: int) -> None:
        super().__init__()
        inner, self.heads = width // downsample, heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in "qkv")
        self.o_proj = nn.Linear(inner, width)

    def forward(
        self, query: Float[Tensor, "n k d"], key: Float[Tensor, "n i d"], value: Float[Tensor, "n i d"]
    ) -> Float[Tensor, "n k d"]:
        projected = zip((self.q_proj, self.k_proj, self.v_proj), (query, key, value), strict=True)
        q, k, v = (linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear, x in projected)
        weights = ((q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])).softmax(dim=3)
        attended: Tensor = self.o_proj((weights @ v).transpose(1, 2).flatten(2))
        return attended


class FeedForward(nn.Module):
    """A multi-layer perceptron with ReLU."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 2))

    def forward(self, x: Float[Tensor, "*n a"]) -> Float[Tensor, "*n b"]:
        x = functional.relu(self.proj_in(x))
        for layer in self.layers:
            x = functional.relu(layer(x))
        out: Tensor = self.proj_out(x)
        return out


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of an image."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)
