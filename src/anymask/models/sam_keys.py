"""Tensors of the original SAM 1 and HQ-SAM files (`sam_vit_*.pth`, `sam_hq_vit_*.pth`): recognised, sized, renamed.

Names from facebookresearch/segment-anything and SysCV/sam-hq; the new ones are those of transformers' SamModel and
SamHQModel. Fine-tunes such as MedSAM keep the original names.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anymask.models.checkpoints import POSITION, rename

NAME = "SAM 1"
MODEL_TYPES = ("sam", "sam_hq")  # in a folder's config.json
HEADS = ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "mask_decoder.iou_token.weight")
MARKERS = (  # tensors by which a person would know an original file; an error counts them
    "image_encoder.pos_embed",
    "image_encoder.patch_embed.proj.weight",
    "image_encoder.blocks.0.attn.rel_pos_h",
    "image_encoder.neck.0.weight",
    *HEADS,
)

PATCH = 16
DECODER_NORM_EPS = 1e-5  # of the transformer's layer norms in the original; transformers takes 1e-6 by default
HIGH_QUALITY = "hq_"  # begins the kinds of HQ-SAM

ENCODERS: dict[str, dict[str, Any]] = {
    "vit_b": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "global_attn_indexes": [2, 5, 8, 11],
    },
    "vit_l": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "vit_h": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    },
}
KINDS = tuple(ENCODERS)

# The random frequencies of the position code, which encoder and prompt encoder share.
_SHARED_POSITION = (f"shared_image_embedding.{POSITION}", f"prompt_encoder.shared_embedding.{POSITION}")
_ORIGINAL_POSITION = HEADS[0]

_ENCODER_NAMES = (
    (r"^image_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
)
_NECK_NAMES = (
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
)
_HEAD_NAMES = (
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.transformer\.layers\.(\d+)\.norm(\d)\.", r".transformer.layers.\1.layer_norm\2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(_mlps\.\d+|_head|hf_mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"(_mlps\.\d+|_head|hf_mlp)\.layers\.1\.", r"\1.layers.0."),
    (r"(_mlps\.\d+|_head|hf_mlp)\.layers\.2\.", r"\1.proj_out."),
)
_HIGH_QUALITY_NAMES = (
    (r"\.hf_token\.", ".hq_token."),
    (r"\.hf_mlp\.", ".hq_mask_mlp."),
    (r"\.compress_vit_feat\.0\.", ".compress_vit_conv1."),
    (r"\.compress_vit_feat\.1\.", ".compress_vit_norm."),
    (r"\.compress_vit_feat\.3\.", ".compress_vit_conv2."),
    (r"\.embedding_encoder\.0\.", ".encoder_conv1."),
    (r"\.embedding_encoder\.1\.", ".encoder_norm."),
    (r"\.embedding_encoder\.3\.", ".encoder_conv2."),
    (r"\.embedding_maskfeature\.0\.", ".mask_conv1."),
    (r"\.embedding_maskfeature\.1\.", ".mask_norm."),
    (r"\.embedding_maskfeature\.3\.", ".mask_conv2."),
)


def recognise(shapes: Mapping[str, torch.Size]) -> str | None:
    """vit_b, vit_l or vit_h, of HQ-SAM with hq_ before it; None if the tensors are not of SAM 1."""
    position = shapes.get("image_encoder.pos_embed")
    if position is None or len(position) != 4:
        return None
    kind = next((kind for kind, encoder in ENCODERS.items() if encoder["hidden_size"] == position[-1]), None)
    return HIGH_QUALITY + kind if kind and "mask_decoder.hf_token.weight" in shapes else kind


def config_of(kind: str, image_size: int = 1024) -> dict[str, Any]:
    """The keyword arguments of transformers' SamConfig, or SamHQConfig, for a kind."""
    encoder = ENCODERS[kind.removeprefix(HIGH_QUALITY)]
    decoder: dict[str, Any] = {"layer_norm_eps": DECODER_NORM_EPS}
    if kind.startswith(HIGH_QUALITY):
        decoder["vit_dim"] = encoder["hidden_size"]
    return {
        "vision_config": {**encoder, "image_size": image_size, "patch_size": PATCH},
        "prompt_encoder_config": {"image_size": image_size, "patch_size": PATCH},
        "mask_decoder_config": decoder,
    }


def image_size(state: Mapping[str, Tensor]) -> int:
    """The side of the input that an original file was made for: 1024, in some fine-tunes 256."""
    return PATCH * state["image_encoder.pos_embed"].shape[1]


def renamed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors under transformers' names. Unknown names stay as they are, for `load_strictly` to show."""
    encoder = {rename(key, _ENCODER_NAMES + _NECK_NAMES): value for key, value in state.items() if _is_encoder(key)}
    return encoder | renamed_heads(state, kind)


def renamed_heads(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """All but the image encoder, as MobileSAM has it too."""
    names = _HEAD_NAMES + (_HIGH_QUALITY_NAMES if kind.startswith(HIGH_QUALITY) else ())
    return with_shared_position({rename(key, names): value for key, value in state.items() if not _is_encoder(key)})


def renamed_neck(key: str) -> str:
    """The new name of a tensor of the neck, which MobileSAM has too."""
    return rename(key, _NECK_NAMES)


def with_shared_position(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The positional embedding under both of its names; files hold it once or twice."""
    found = next((state[key] for key in (_ORIGINAL_POSITION, *_SHARED_POSITION) if key in state), None)
    rest = {key: value for key, value in state.items() if key != _ORIGINAL_POSITION}
    return rest if found is None else {**rest, **dict.fromkeys(_SHARED_POSITION, found)}


def _is_encoder(key: str) -> bool:
    return key.startswith("image_encoder.")
