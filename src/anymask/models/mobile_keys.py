"""Tensors of `mobile_sam.pt`, and of Light HQ-SAM (`sam_hq_vit_tiny.pth`): recognised and renamed.

Names from ChaoningZhang/MobileSAM; the new ones are timm's for the TinyViT and transformers' for neck and heads. The
original holds its downsampling layers at the end of a stage, timm at the beginning of the next one.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from anymask.models.checkpoints import rename
from anymask.models.sam_keys import HEADS, HIGH_QUALITY, renamed_heads, renamed_neck

NAME = "MobileSAM"
MODEL_TYPES = ("mobile_sam",)  # in a folder's config.json
MARKERS = (
    "image_encoder.patch_embed.seq.0.c.weight",
    "image_encoder.layers.1.blocks.0.attn.attention_biases",
    "image_encoder.neck.0.weight",
    *HEADS,
)
KIND = "vit_t"
HQ_KIND = f"{HIGH_QUALITY}{KIND}"
KINDS = (KIND, HQ_KIND)

_HEAD = r"image_encoder\.(norm_head|head)\."  # of ImageNet's classes, which are of no use here
_CACHE = ".attention_bias_idxs"  # a table of whole numbers, which the network makes for itself
_NAMES = (
    (r"^image_encoder\.patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^image_encoder\.patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^image_encoder\.layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"^image_encoder\.layers\.0\.downsample\.", "stages.1.downsample."),
    (r"^image_encoder\.layers\.1\.downsample\.", "stages.2.downsample."),
    (r"^image_encoder\.layers\.2\.downsample\.", "stages.3.downsample."),
    (r"(\.conv\d|\.local_conv|^patch_embed\.conv\d)\.c\.", r"\1.conv."),
)


def recognise(shapes: Mapping[str, torch.Size]) -> str | None:
    """vit_t, or hq_vit_t for Light HQ-SAM; None if the tensors are of neither."""
    if not {MARKERS[0], "mask_decoder.iou_token.weight"} <= shapes.keys():
        return None
    return HQ_KIND if "mask_decoder.hf_token.weight" in shapes else KIND


def renamed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors under the names of `mobile.build`, without the classifier. Unknown names stay as they are."""
    encoder = {
        _encoder_name(key): value
        for key, value in state.items()
        if key.startswith("image_encoder.") and not re.match(_HEAD, key) and not key.endswith(_CACHE)
    }
    return encoder | renamed_heads(state, kind)


def _encoder_name(key: str) -> str:
    if key.startswith("image_encoder.neck."):
        return renamed_neck(key)
    name = rename(key, _NAMES)
    return key if name.startswith("image_encoder.") else f"vision_encoder.vit.{name}"
