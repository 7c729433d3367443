"""SAM 1 at other input sizes and windows: what it has learned of places is resampled, and its config says so.

The position of a cell bicubically, as in ViTDet, of which SAM's encoder is made (detectron2, `get_abs_pos`); the tables
of relative positions linearly, as the encoder itself does at each run where they do not fit (`get_rel_pos`).
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from anymask.models.image_sizes import as_written
from anymask.types import Size


def fit_encoder(encoder: Any, size: Size) -> None:
    """Makes a `SamVisionEncoder` (or that of HQ-SAM) take an input of `size`, in whole patches."""
    patch = encoder.config.patch_size
    grid = (size[0] // patch, size[1] // patch)
    encoder.patch_embed.image_size, encoder.patch_embed.num_patches = size, grid[0] * grid[1]
    if encoder.pos_embed is not None:
        encoder.pos_embed = _like(encoder.pos_embed, resampled_places(encoder.pos_embed, grid))
    _fit_tables([layer for layer in encoder.layers if layer.window_size == 0], grid)


def fit_windows(encoder: Any, cells: int) -> None:
    """Gives the blocks that have windows others, of `cells` x `cells`; they are padded where they do not fit."""
    windowed = [layer for layer in encoder.layers if layer.window_size > 0]
    _fit_tables(windowed, (cells, cells))
    for layer in windowed:
        layer.window_size = cells


def fit_heads(network: Any, size: Size) -> None:
    """Makes the prompt encoder of a `SamModel` (or `SamHQModel`) take an input of `size`, and the config say so.

    It divides both coordinates by one number, here the height: see `promptable.as_in_square`.
    """
    config, prompts = network.config, network.prompt_encoder
    patch = config.prompt_encoder_config.patch_size
    prompts.input_image_size = size[0]
    prompts.image_embedding_size = (size[0] // patch, size[1] // patch)
    config.vision_config.image_size = config.prompt_encoder_config.image_size = as_written(size)
    config.prompt_encoder_config.image_embedding_size = size[0] // patch


def resampled_places(position: Float[Tensor, "1 gh gw c"], grid: Size) -> Float[Tensor, "1 h w c"]:
    """Learned positions of cells for another number of cells; the same tensor where it is the same number."""
    if position.shape[1:3] == grid:
        return position
    channels_first = position.detach().float().permute(0, 3, 1, 2)
    return functional.interpolate(channels_first, grid, mode="bicubic").permute(0, 2, 3, 1).to(position.dtype)


def resampled_table(table: Float[Tensor, "n c"], cells: int) -> Float[Tensor, "m c"]:
    """A table of relative positions along a side, for a side of `cells`."""
    if len(table) == 2 * cells - 1:
        return table
    channels_first = table.detach().float().T[None]
    return functional.interpolate(channels_first, 2 * cells - 1, mode="linear")[0].T.to(table.dtype)


def _fit_tables(layers: Sequence[Any], cells: Size) -> None:
    for attention in (layer.attn for layer in layers if layer.attn.use_rel_pos):
        attention.rel_pos_h = _like(attention.rel_pos_h, resampled_table(attention.rel_pos_h, cells[0]))
        attention.rel_pos_w = _like(attention.rel_pos_w, resampled_table(attention.rel_pos_w, cells[1]))


def _like(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().contiguous(), requires_grad=old.requires_grad)
