"""A layer of SAM's image encoder that never holds a whole attention map, nor computes what it then cuts away.

transformers' layers write out the bias of relative positions for every pair of cells (805 MB for ViT-B at 1024
pixels), and project the zeros that fill up the last windows. Here queries take turns, some rows of the image at a time,
each with its part of the bias, and windows are filled up after the projection: the same numbers in less memory and time
(Kirillov et al. 2023, section A; Li et al. 2022, Exploring Plain Vision Transformer Backbones for Object Detection).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

BIAS_ENTRIES = 2**26  # of the bias at once, in all heads and windows: 268 MB of float32 at most


class SamLayer(nn.Module):
    """In place of transformers' SamVisionLayer or SamHQVisionLayer, with its modules and so its tensors' names."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2, self.mlp = stock.layer_norm1, stock.layer_norm2, stock.mlp
        self.attn = WindowAttention(stock.attn)
        self.window_size = stock.window_size  # HQ-SAM's encoder keeps what comes out of layers that have none

    def forward(self, hidden_states: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        attended = hidden_states + self.attn(self.layer_norm1(hidden_states), self.window_size)
        out: Tensor = attended + self.mlp(self.layer_norm2(attended))
        return out


class WindowAttention(nn.Module):
    """Attention within windows of a side (0: over the whole image), with SAM's bias of relative positions."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.qkv, self.proj = stock.qkv, stock.proj
        self.num_attention_heads = stock.num_attention_heads
        if stock.use_rel_pos:
            self.rel_pos_h, self.rel_pos_w = stock.rel_pos_h, stock.rel_pos_w
        self.use_rel_pos = stock.use_rel_pos

    def forward(self, x: Float[Tensor, "b h w c"], side: int) -> Float[Tensor, "b h w c"]:
        h, w = x.shape[1:3]
        qkv = self.qkv(x)
        if not side:
            return self._projected(self._attend(qkv))
        filling = x.new_zeros(qkv.shape[-1]) if self.qkv.bias is None else self.qkv.bias
        qkv = torch.cat([qkv, filling.expand(len(x), h, -w % side, -1)], dim=2)
        qkv = torch.cat([qkv, filling.expand(len(x), -h % side, qkv.shape[2], -1)], dim=1)
        windows = qkv.unflatten(1, (-1, side)).unflatten(3, (-1, side)).transpose(2, 3)
        attended = self._attend(windows.flatten(0, 2)).unflatten(0, windows.shape[:3])
        whole = attended.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return self._projected(whole[:, :h, :w])

    def _projected(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out

    def _attend(self, qkv: Float[Tensor, "b h w c3"]) -> Float[Tensor, "b h w c"]:
        b, h, w, _ = qkv.shape
        query, *rest = (part.unflatten(-1, (self.num_attention_heads, -1)) for part in qkv.chunk(3, dim=-1))
        queries, keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (query, *rest))  # b n k d
        biases = self._biases(query) if self.use_rel_pos else None
        rows, parts = _rows_at_once(h, b * self.num_attention_heads * h * w * w), []
        for start in range(0, h, rows):
            bias = None
            if biases is not None:
                down, across = (one[:, :, start : start + rows] for one in biases)
                bias = (down[..., None] + across[..., None, :]).flatten(4).flatten(2, 3)
            some = queries[:, :, start * w : (start + rows) * w]
            parts.append(functional.scaled_dot_product_attention(some, keys, values, attn_mask=bias))
        return torch.cat(parts, dim=2).transpose(1, 2).reshape(b, h, w, -1)

    def _biases(
        self, query: Float[Tensor, "b h w n d"]
    ) -> tuple[Float[Tensor, "b n h w h"], Float[Tensor, "b n h w w"]]:
        """Of each query to every row and to every column of keys: the bias of a key is the sum of its two."""
        h, w, n = query.shape[1:4]
        down = (query.flatten(2, 3) @ _relative(self.rel_pos_h, h).transpose(1, 2)).unflatten(2, (w, n))
        across = query @ _relative(self.rel_pos_w, w).transpose(1, 2)
        return down.movedim(3, 1), across.movedim(3, 1)


def with_lean_layers(encoder: Any) -> None:
    """Puts `SamLayer` in place of the layers of transformers' SamVisionEncoder or SamHQVisionEncoder, if it is one."""
    if hasattr(encoder, "layers"):
        encoder.layers = nn.ModuleList(SamLayer(layer) for layer in encoder.layers)


def _relative(table: Float[Tensor, "r d"], n: int) -> Float[Tensor, "q k d"]:
    """The entry for every pair of n positions; a table for another number of positions is stretched."""
    if len(table) != 2 * n - 1:
        table = functional.interpolate(table.T[None], 2 * n - 1, mode="linear")[0].T
    steps = torch.arange(n, device=table.device)
    return table[steps[:, None] - steps + n - 1]


def _rows_at_once(rows: int, entries_a_row: int) -> int:
    """As many as `BIAS_ENTRIES` allows, evened out so that no last part is much smaller."""
    parts = -(-rows // max(1, BIAS_ENTRIES // entries_a_row))
    return -(-rows // parts)
