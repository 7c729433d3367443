"""Checkpoints of the original SAM 2 and EdgeTAM repositories: which kind they are, and their keys in transformers.

The files (`sam2_hiera_*.pt`, `sam2.1_hiera_*.pt`, `edgetam.pt`) hold the video model: the image model and its memory.
SAM 2.1 adds `no_obj_embed_spatial` and `obj_ptr_tpos_proj`, both memory; its image part has the tensors of SAM 2.
Sources: the configs of facebookresearch/sam2 and facebookresearch/EdgeTAM, transformers' Sam2VideoModel.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anymask.models.checkpoints import rename
from anymask.models.sam_keys import HEADS

NAME = "SAM 2"
MODEL_TYPES = ("sam2", "sam2_video", "edgetam", "edgetam_video")  # in a folder's config.json
EDGETAM = "edgetam"
_TRUNK = "image_encoder.trunk"
MARKERS = (
    f"{_TRUNK}.pos_embed",
    f"{_TRUNK}.patch_embed.proj.weight",
    "image_encoder.neck.convs.0.conv.weight",
    *(f"sam_{name}" for name in HEADS),
)


@dataclass(frozen=True)
class Hiera:
    """Sizes of a SAM 2 network; widths and heads double from each of the four stages to the next."""

    embed_dim: int
    heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    background: int = 7  # side of the position code that is stretched over the image
    hidden_size: int = 256
    image_size: int = 1024


KINDS = ("tiny", "small", "base_plus", "large", EDGETAM)
SIZES = {
    "tiny": Hiera(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "small": Hiera(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "base_plus": Hiera(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
    "large": Hiera(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
    "nano": Hiera(8, 1, (1, 1, 2, 1), (3,), hidden_size=32, image_size=256),  # of the tests
}

# Of the video model, in the names of transformers: tensors that the image model leaves aside.
MEMORY = (
    "mask_downsample.",
    "memory_attention.",
    "memory_encoder.",
    "memory_temporal_positional_encoding",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj.",
    "occlusion_spatial_embedding_parameter",
    "spatial_perceiver.",
    "temporal_positional_encoding_projection_layer.",
)

_MLP = r"^(.*(?:head|obj_ptr_proj|hypernetworks_mlps\.\d))\.layers"  # three linear layers: in, layers.0, out

# Pattern and replacement, applied one after another to each key.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^image_encoder\.trunk\.body\.", "vision_encoder.backbone.timm_model."),
    (r"^image_encoder\.trunk\.patch_embed\.proj\.", "vision_encoder.backbone.patch_embed.projection."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (_MLP + r"\.0\.", r"\1.proj_in."),
    (_MLP + r"\.2\.", r"\1.proj_out."),
    (_MLP + r"\.1\.", r"\1.layers.0."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv", ".pointwise_conv"),
    (r"\.gamma$", ".scale"),
    *((rf"\.encoder\.{3 * i}\.", f".layers.{i}.conv.") for i in range(4)),
    *((rf"\.encoder\.{3 * i + 1}\.", f".layers.{i}.layer_norm.") for i in range(4)),
    (r"\.encoder\.12\.", ".final_conv."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.norm(\d?|_final_attn)\.", r".layer_norm\1."),
)

# Of EdgeTAM, before the others: its perceiver, and the memory attention that transformers names anew there.
_EDGETAM_RULES: tuple[tuple[str, str], ...] = (
    (r"^(memory_attention\.layers\.\d)\.linear1\.", r"\1.mlp.up_proj."),
    (r"^(memory_attention\.layers\.\d)\.linear2\.", r"\1.mlp.down_proj."),
    (r"^spatial_perceiver\.latents$", "spatial_perceiver.latents_1d"),
    (r"\.attn\.norm_x\.", ".layer_norm_input."),
    (r"\.attn\.norm_latents\.", ".layer_norm_latents."),
    (r"\.self_attn\.norm\.", ".layer_norm_self."),
    (r"^(spatial_perceiver\..*)\.attn\.", r"\1.cross_attention."),
    (r"^(spatial_perceiver\..*)\.self_attn\.", r"\1.self_attention."),
    (r"\.to_q\.", ".q_proj."),
    (r"\.to_out\.", ".o_proj."),
    (r"\.ff\.", ".mlp."),
    (r"\.self_ff\.", ".self_mlp."),
    (r"mlp\.0\.", "mlp.layer_norm."),
    (r"mlp\.1\.", "mlp.up_proj."),
    (r"mlp\.3\.", "mlp.down_proj."),
)


def recognise(shapes: Mapping[str, torch.Size]) -> str | None:
    """`hiera_<size>_2.0`, `hiera_<size>_2.1` or `edgetam`; None for tensors of another family or size."""
    if f"{_TRUNK}.body.stem.conv1.c.weight" in shapes:
        return EDGETAM
    if f"{_TRUNK}.patch_embed.proj.weight" not in shapes:
        return None
    width = shapes[f"{_TRUNK}.patch_embed.proj.weight"][0]
    blocks = sum(re.fullmatch(rf"{re.escape(_TRUNK)}\.blocks\.\d+\.norm1\.weight", key) is not None for key in shapes)
    version = "2.1" if "no_obj_embed_spatial" in shapes else "2.0"
    fitting = (name for name, size in SIZES.items() if (size.embed_dim, sum(size.blocks)) == (width, blocks))
    return next((f"hiera_{name}_{version}" for name in fitting), None)


def config_of(kind: str) -> dict[str, Any]:
    """What `Sam2Config` (or for EdgeTAM `EdgeTamConfig`) is made of."""
    if kind == EDGETAM:
        return {"vision_config": {"model_type": "edgetam_vision_model", "backbone_config": _REPVIT}}
    size = SIZES[kind.removeprefix("hiera_").rpartition("_")[0]]
    widths, heads = ([first * 2**stage for stage in range(4)] for first in (size.embed_dim, size.heads))
    cells = [size.image_size // stride for stride in (4, 8, 16)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": size.embed_dim,
        "num_attention_heads": size.heads,
        "image_size": [size.image_size] * 2,
        "window_positional_embedding_background_size": [size.background] * 2,
        "blocks_per_stage": list(size.blocks),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": heads,
        "window_size_per_stage": list(size.windows),
        "global_attention_blocks": list(size.global_blocks),
    }
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[side, side] for side in cells],
            "fpn_hidden_size": size.hidden_size,
        },
        "prompt_encoder_config": {"hidden_size": size.hidden_size, "image_size": size.image_size},
        "mask_decoder_config": {"hidden_size": size.hidden_size},
    }


def renamed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """All tensors, the memory's too, under the keys of transformers' video model; unknown ones keep their names."""
    rules = (_EDGETAM_RULES if kind == EDGETAM else ()) + _RULES
    named = {rename(key, rules): tensor for key, tensor in state.items()}
    labels = [named.pop(key) for i in range(4) if (key := f"prompt_encoder.point_embeddings.{i}.weight") in named]
    if labels:
        named["prompt_encoder.point_embed.weight"] = torch.cat(labels)
    for key in [key for key in named if ".to_kv." in key]:
        halves = named.pop(key).chunk(2)
        named |= {key.replace("to_kv", to): half.clone() for to, half in zip(("k_proj", "v_proj"), halves, strict=True)}
    shared = named.get("prompt_encoder.shared_embedding.positional_embedding")
    if shared is not None:
        named["shared_image_embedding.positional_embedding"] = shared.clone()
    return named


def image_part(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the tensors of the memory."""
    return {key: tensor for key, tensor in named.items() if not key.startswith(MEMORY)}


_REPVIT: dict[str, Any] = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "num_classes": 1000,
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}
