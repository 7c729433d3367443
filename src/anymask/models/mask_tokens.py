"""transformers' SAM mask decoders through their modules, with what every mask token says and not only those chosen.

Stock `forward` gives either the single mask or the candidates; which to take is decided in Python, the same for eager
modules and for graphs made of them (segment-anything, `MaskDecoder.predict_masks`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anymask.models.promptable import Clicks


def answer_tokens(
    decoder: Any,
    tokens: Float[Tensor, "o c"],
    iou_at: int,
    image: Float[Tensor, "n c h w"],
    position: Float[Tensor, "1 c h w"],
    sparse: Float[Tensor, "n l c"],
    finer: Sequence[Tensor] = (),
) -> tuple[Float[Tensor, "n k lh lw"], Float[Tensor, "n k"]]:
    """Logits and predicted IoU of the k masks; `tokens`, `iou_at` and `finer` as in `decode.SharedStage`."""
    read, cells = through_transformer(decoder, tokens, image, position, sparse)
    fine, middle = finer or (0.0, 0.0)
    coarse = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(cells) + middle))
    coarse = decoder.activation(decoder.upscale_conv2(coarse) + fine)
    return masks_of(decoder, read[:, iou_at + 1 :], coarse), decoder.iou_prediction_head(read[:, iou_at])


def through_transformer(
    decoder: Any,
    tokens: Float[Tensor, "o c"],
    image: Float[Tensor, "n c h w"],
    position: Float[Tensor, "1 c h w"],
    sparse: Float[Tensor, "n l c"],
) -> tuple[Float[Tensor, "n k c"], Float[Tensor, "n c h w"]]:
    """The decoder's own tokens and those of the prompts, and the image, after they have looked at each other."""
    both = torch.cat([tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
    read, cells = decoder.transformer(both[:, None], image, position, attention_similarity=None)
    return read[:, 0], cells[:, 0].transpose(1, 2).unflatten(2, image.shape[-2:])


def masks_of(
    decoder: Any, read: Float[Tensor, "n k c"], upscaled: Float[Tensor, "n e lh lw"]
) -> Float[Tensor, "n t lh lw"]:
    """The product of each mask token's weights and the upscaled image; tokens after the masks' are left aside."""
    networks = decoder.output_hypernetworks_mlps
    weights = torch.stack([network(read[:, i]) for i, network in enumerate(networks)], dim=1)
    logits: Tensor = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
    return logits


def dense_prompts(encoder: Any, clicks: Clicks, limit: float = float("inf")) -> Float[Tensor, "n c h w"]:
    """What a transformers' prompt encoder adds to the image for mask prompts, clamped to `limit`, or for none."""
    none = encoder.no_mask_embed.weight[:, :, None, None]
    embedded = encoder.mask_embed(clicks.masks[:, None].clamp(-limit, limit).to(none.dtype))
    return torch.where(clicks.has_mask[:, None, None, None] > 0, embedded, none)
