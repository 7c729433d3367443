"""Checkpoints of the original GroundingDINO repository: which size they are, and their keys on the hub.

The files (`groundingdino_swint_ogc.pth`, `groundingdino_swinb_cogcoor.pth`) hold a Swin, a BERT and the detector. The
new names are those of IDEA-Research/grounding-dino-tiny and -base, which every version of transformers reads.
Sources: the models and configs of IDEA-Research/GroundingDINO, transformers' GroundingDinoForObjectDetection.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anymask.models.checkpoints import rename

NAME = "GroundingDINO"
_STEM = "backbone.0.patch_embed.proj.weight"
MARKERS = (
    _STEM,
    "bert.embeddings.word_embeddings.weight",
    "transformer.encoder.fusion_layers.0.gamma_v",
    "transformer.tgt_embed.weight",
)

# Of each kind what its Swin is made of; all else is as in transformers' defaults.
SIZES: dict[str, dict[str, Any]] = {
    "swint": {
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "image_size": 224,
    },
    "swinb": {
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "window_size": 12,
        "image_size": 384,
    },
}

_SWIN = "model.backbone.conv_encoder.model"
_FUSION = r"^(model\.encoder\.layers\.\d+\.fusion_layer\..*)"
_ENCODER, _DECODER = r"^(model\.encoder\.layers\.\d+", r"^(model\.decoder\.layers\.\d+"

# Pattern and replacement, applied one after another to each key.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.0\.patch_embed\.proj\.", f"{_SWIN}.embeddings.patch_embeddings.projection."),
    (r"^backbone\.0\.patch_embed\.norm\.", f"{_SWIN}.embeddings.norm."),
    *((rf"^backbone\.0\.norm{i}\.", f"{_SWIN}.hidden_states_norms.stage{i + 1}.") for i in range(4)),
    (r"^backbone\.0\.layers\.(\d+\.blocks\.\d+)\.norm1\.", rf"{_SWIN}.encoder.layers.\1.layernorm_before."),
    (r"^backbone\.0\.layers\.(\d+\.blocks\.\d+)\.norm2\.", rf"{_SWIN}.encoder.layers.\1.layernorm_after."),
    (r"^backbone\.0\.layers\.(\d+\.blocks\.\d+)\.attn\.proj\.", rf"{_SWIN}.encoder.layers.\1.attention.output.dense."),
    (r"^backbone\.0\.layers\.(\d+\.blocks\.\d+)\.attn\.", rf"{_SWIN}.encoder.layers.\1.attention.self."),
    (r"^backbone\.0\.layers\.(\d+\.blocks\.\d+)\.mlp\.fc1\.", rf"{_SWIN}.encoder.layers.\1.intermediate.dense."),
    (r"^backbone\.0\.layers\.(\d+\.blocks\.\d+)\.mlp\.fc2\.", rf"{_SWIN}.encoder.layers.\1.output.dense."),
    (r"^backbone\.0\.layers\.", f"{_SWIN}.encoder.layers."),
    (r"^bert\.", "model.text_backbone."),
    (r"^feat_map\.", "model.text_projection."),
    (r"^input_proj\.", "model.input_proj_vision."),
    (r"^transformer\.tgt_embed\.", "model.query_position_embeddings."),
    (r"^transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed."),
    (r"^transformer\.encoder\.layers\.(\d+)\.", r"model.encoder.layers.\1.deformable_layer."),
    (r"^transformer\.encoder\.text_layers\.(\d+)\.", r"model.encoder.layers.\1.text_enhancer_layer."),
    (r"^transformer\.encoder\.fusion_layers\.(\d+)\.", r"model.encoder.layers.\1.fusion_layer."),
    (r"^transformer\.", "model."),
    (_ENCODER + r"\.deformable_layer)\.norm1\.", r"\1.self_attn_layer_norm."),
    (_ENCODER + r"\.deformable_layer)\.norm2\.", r"\1.final_layer_norm."),
    (_ENCODER + r"\.text_enhancer_layer)\.norm1\.", r"\1.layer_norm_before."),
    (_ENCODER + r"\.text_enhancer_layer)\.norm2\.", r"\1.layer_norm_after."),
    (_FUSION + r"gamma_v$", r"\1vision_param"),
    (_FUSION + r"gamma_l$", r"\1text_param"),
    (_FUSION + r"layer_norm_v\.", r"\1layer_norm_vision."),
    (_FUSION + r"layer_norm_l\.", r"\1layer_norm_text."),
    (_FUSION + r"\bv_proj\.", r"\1vision_proj."),
    (_FUSION + r"\bl_proj\.", r"\1text_proj."),
    (_FUSION + r"(values|out)_v_proj\.", r"\1\2_vision_proj."),
    (_FUSION + r"(values|out)_l_proj\.", r"\1\2_text_proj."),
    (_DECODER + r")\.cross_attn\.", r"\1.encoder_attn."),
    (_DECODER + r")\.ca_text\.", r"\1.encoder_attn_text."),
    (_DECODER + r")\.catext_norm\.", r"\1.encoder_attn_text_layer_norm."),
    (_DECODER + r")\.norm1\.", r"\1.encoder_attn_layer_norm."),
    (_DECODER + r")\.norm2\.", r"\1.self_attn_layer_norm."),
    (_DECODER + r")\.norm3\.", r"\1.final_layer_norm."),
    (r"\.linear([12])\.", r".fc\1."),
    (r"^model\.decoder\.norm\.", "model.decoder.layer_norm."),
    (r"^model\.decoder\.ref_point_head\.", "model.decoder.reference_points_head."),
)

# Of the files, but of no use: labels of training, BERT's head, and tables that the network computes itself.
_LEFT_ASIDE = re.compile(r"^label_enc\.|^bert\.pooler\.|\.position_ids$|\.relative_position_index$")
_JOINED = re.compile(r"(.*\.)(?:qkv\.|in_proj_)(weight|bias)")  # query, key and value in one


def recognise(shapes: Mapping[str, torch.Size]) -> str | None:
    """`swint` or `swinb`; None for tensors of another family or size."""
    if any(name not in shapes for name in MARKERS):
        return None
    width = shapes[_STEM][0]
    blocks = sum(
        re.fullmatch(r"backbone\.0\.layers\.\d+\.blocks\.\d+\.norm1\.weight", name) is not None for name in shapes
    )
    fitting = (kind for kind, size in SIZES.items() if (size["embed_dim"], sum(size["depths"])) == (width, blocks))
    return next(fitting, None)


def config_of(kind: str) -> dict[str, Any]:
    """As config.json of the hub's folders has it."""
    swin = {"model_type": "swin", "out_indices": [2, 3, 4], **SIZES[kind]}
    return {"model_type": "grounding-dino", "backbone_config": swin, "text_config": {"model_type": "bert"}}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors that count, under the names of the hub; unknown ones keep theirs."""
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if _LEFT_ASIDE.search(key):
            continue
        new = rename(key, _RULES)
        if joined := _JOINED.fullmatch(new):
            thirds = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            named |= {f"{joined[1]}{part}.{joined[2]}": third.clone() for part, third in thirds}
        else:
            named[new] = tensor
    return named
