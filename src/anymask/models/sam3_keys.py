"""Tensors of the original SAM 3 file (`sam3.pt`) under the names of transformers' `Sam3VideoModel`.

The original keeps a detector (text and exemplars) and a tracker (points, boxes, masks, memory) that share one ViT.
Its names are those of facebookresearch/sam3, `model_builder.build_sam3_video_model`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from anymask.models.checkpoints import rename

NAME = "SAM 3"
MODEL_TYPES = ("sam3_video", "sam3", "sam3_lite_text")  # of config.json; facebook/sam3 is the first
MARKERS = (
    "detector.backbone.vision_backbone.trunk.patch_embed.proj.weight",
    "detector.backbone.language_backbone.encoder.token_embedding.weight",
    "detector.transformer.decoder.query_embed.weight",
    "tracker.sam_mask_decoder.iou_token.weight",
)
WHOLE, DETECTOR = "sam3", "sam3_detector"  # kinds: with the tracker, and as `build_sam3_image_model` saves it
KINDS = (WHOLE, DETECTOR)
MARK = "backbone.vision_backbone.trunk.pos_embed"

# What transformers computes anew, or has no place for: its detector takes boxes and no points.
_UNUSED = re.compile(r"\.attn\.freqs_cis$|^geometry_encoder\.points_|^backbone\.vision_backbone\.sam2_convs\.")

_NECK = {
    r"\.dconv_2x2_0\.": ".scale_layers.0.",
    r"\.dconv_2x2_1\.": ".scale_layers.2.",
    r"\.dconv_2x2\.": ".scale_layers.0.",
    r"\.conv_1x1\.": ".proj1.",
    r"\.conv_3x3\.": ".proj2.",
}
_DETECTOR = _NECK | {
    r"^backbone\.vision_backbone\.convs\.": "vision_encoder.neck.fpn_layers.",
    r"^backbone\.vision_backbone\.trunk\.": "vision_encoder.backbone.",
    r"\.patch_embed\.proj\.": ".embeddings.patch_embeddings.projection.",
    r"\.pos_embed$": ".embeddings.position_embeddings",
    r"\.ln_pre\.": ".layer_norm.",
    r"^(vision_encoder\.backbone\.)blocks\.(\d+)\.norm": r"\1layers.\2.layer_norm",
    r"^(vision_encoder\.backbone\.)blocks\.": r"\1layers.",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"\.attn\.qkv\.": ".attention.qkv.",
    r"^backbone\.language_backbone\.resizer\.": "text_projection.",
    r"^backbone\.language_backbone\.encoder\.text_projection$": "text_encoder.text_projection.weight",
    r"^backbone\.language_backbone\.encoder\.": "text_encoder.text_model.",
    r"^text_encoder\.text_model\.token_embedding\.": "text_encoder.text_model.embeddings.token_embedding.",
    r"\.positional_embedding$": ".embeddings.position_embedding.weight",
    r"\.ln_final\.": ".final_layer_norm.",
    r"\.transformer\.resblocks\.": ".encoder.layers.",
    r"\.ln_(\d)\.": r".layer_norm\1.",
    r"\.c_fc\.": ".fc1.",
    r"\.c_proj\.": ".fc2.",
    r"(encoder\.layers\.\d+)\.attn\.": r"\1.self_attn.",
    r"^geometry_encoder\.encode\.": "geometry_encoder.layers.",
    r"^geometry_encoder\.encode_norm\.": "geometry_encoder.output_layer_norm.",
    r"^geometry_encoder\.norm\.": "geometry_encoder.prompt_layer_norm.",
    r"^geometry_encoder\.img_pre_norm\.": "geometry_encoder.vision_layer_norm.",
    r"^transformer\.encoder\.": "detr_encoder.",
    r"^transformer\.decoder\.norm\.": "detr_decoder.output_layer_norm.",
    r"^transformer\.decoder\.": "detr_decoder.",
    r"^(detr_decoder\.layers\.\d+\.)norm1\.": r"\1vision_cross_attn_layer_norm.",
    r"^(detr_decoder\.layers\.\d+\.)norm2\.": r"\1self_attn_layer_norm.",
    r"^(detr_decoder\.layers\.\d+\.)norm3\.": r"\1mlp_layer_norm.",
    r"\.catext_norm\.": ".text_cross_attn_layer_norm.",
    r"\.ca_text\.": ".text_cross_attn.",
    r"^(detr_decoder\.layers\.\d+\.)cross_attn\.": r"\1vision_cross_attn.",
    r"\.cross_attn_image\.": ".cross_attn.",
    r"\.norm(\d)\.": r".layer_norm\1.",
    r"\.linear(\d)\.": r".mlp.fc\1.",
    r"\.bbox_embed\.": ".box_head.",
    r"\.boxRPB_embed_([xy])\.": r".box_rpb_embed_\1.",
    r"\.presence_token_head\.": ".presence_head.",
    r"\.presence_token_out_norm\.": ".presence_layer_norm.",
    r"^dot_prod_scoring\.prompt_mlp\.out_norm\.": "dot_product_scoring.text_mlp_out_norm.",
    r"^dot_prod_scoring\.prompt_": "dot_product_scoring.text_",
    r"^dot_prod_scoring\.hs_proj\.": "dot_product_scoring.query_proj.",
    r"(_head|_point_head|_embed_[xy]|text_mlp)\.layers\.0\.": r"\1.layer1.",
    r"(_head|_point_head|_embed_[xy]|text_mlp)\.layers\.1\.": r"\1.layer2.",
    r"(_head|_point_head|_embed_[xy]|text_mlp)\.layers\.2\.": r"\1.layer3.",
    r"^segmentation_head\.mask_predictor\.mask_embed\.": "mask_decoder.mask_embedder.",
    r"^segmentation_head\.instance_seg_head\.": "mask_decoder.instance_projection.",
    r"^segmentation_head\.semantic_seg_head\.": "mask_decoder.semantic_projection.",
    r"^segmentation_head\.cross_attend_prompt\.": "mask_decoder.prompt_cross_attn.",
    r"^segmentation_head\.cross_attn_norm\.": "mask_decoder.prompt_cross_attn_norm.",
    r"^segmentation_head\.": "mask_decoder.",
    r"^(?!text_encoder)(.*)\.out_proj\.": r"\1.o_proj.",
}
_TRACKER = {
    r"^sam_prompt_encoder\.": "prompt_encoder.",
    r"^sam_mask_decoder\.": "mask_decoder.",
    r"^transformer\.encoder\.": "memory_attention.",
    r"^maskmem_backbone\.out_proj\.": "memory_encoder.projection.",
    r"^maskmem_backbone\.pix_feat_proj\.": "memory_encoder.feature_projection.",
    r"^maskmem_backbone\.fuser\.": "memory_encoder.memory_fuser.",
    r"^maskmem_backbone\.": "memory_encoder.",
    r"\.gamma$": ".scale",
    r"\.dwconv\.": ".depthwise_conv.",
    r"\.pwconv": ".pointwise_conv",
    r"^maskmem_tpos_enc$": "memory_temporal_positional_encoding",
    r"^no_mem_embed$": "no_memory_embedding",
    r"^no_mem_pos_enc$": "no_memory_positional_encoding",
    r"^no_obj_ptr$": "no_object_pointer",
    r"^no_obj_embed_spatial$": "occlusion_spatial_embedding_parameter",
    r"^obj_ptr_tpos_proj\.": "temporal_positional_encoding_projection_layer.",
    r"^obj_ptr_proj\.": "object_pointer_proj.",
    r"\.pe_layer\.positional_encoding_gaussian_matrix$": ".shared_embedding.positional_embedding",
    r"\.mask_downscaling\.0\.": ".mask_embed.conv1.",
    r"\.mask_downscaling\.1\.": ".mask_embed.layer_norm1.",
    r"\.mask_downscaling\.3\.": ".mask_embed.conv2.",
    r"\.mask_downscaling\.4\.": ".mask_embed.layer_norm2.",
    r"\.mask_downscaling\.6\.": ".mask_embed.conv3.",
    r"\.output_upscaling\.0\.": ".upscale_conv1.",
    r"\.output_upscaling\.1\.": ".upscale_layer_norm.",
    r"\.output_upscaling\.3\.": ".upscale_conv2.",
    r"\.mask_downsampler\.encoder\.12\.": ".mask_downsampler.final_conv.",
    r"\.norm_final_attn\.": ".layer_norm_final_attn.",
    r"\.norm(\d?)\.": r".layer_norm\1.",
    r"\.lin1\.": ".proj_in.",
    r"\.lin2\.": ".proj_out.",
    r"(_mlps\.\d|_head|pointer_proj)\.layers\.0\.": r"\1.proj_in.",
    r"(_mlps\.\d|_head|pointer_proj)\.layers\.1\.": r"\1.layers.0.",
    r"(_mlps\.\d|_head|pointer_proj)\.layers\.2\.": r"\1.proj_out.",
    r"\.out_proj\.": ".o_proj.",
}


def recognise(shapes: Mapping[str, torch.Size]) -> str | None:
    """The kind of SAM 3 whose original tensors these are; None if they are of another model."""
    if f"detector.{MARK}" in shapes:
        return WHOLE if "tracker.no_mem_embed" in shapes else DETECTOR
    return DETECTOR if MARK in shapes and "transformer.decoder.presence_token.weight" in shapes else None


def config_of(kind: str) -> dict[str, Any]:
    """What makes the configuration: there is one size, and transformers' defaults are its numbers."""
    return {"model_type": {WHOLE: "sam3_video", DETECTOR: "sam3"}[kind]}


def renamed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """All tensors that transformers' model has, by its names: `Sam3VideoModel`, or `Sam3Model` without the tracker."""
    detector = {key.removeprefix("detector."): value for key, value in state.items() if not key.startswith("tracker.")}
    found = dict(_detector(detector))
    if kind == DETECTOR:
        return found
    tracker = {key.removeprefix("tracker."): value for key, value in state.items() if key.startswith("tracker.")}
    return {
        **{f"detector_model.{key}": value for key, value in found.items()},
        **{f"tracker_neck.{key}": value for key, value in _tracker_neck(detector)},
        **{f"tracker_model.{key}": value for key, value in _tracker(tracker).items()},
    }


def _detector(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if _UNUSED.search(key):
            continue
        name = rename(key, _DETECTOR.items())
        if name.endswith("position_embeddings"):
            yield name, value[:, 1:]  # the first is of a class token that the ViT of SAM 3 has not
        elif name == "text_encoder.text_projection.weight":
            yield name, value.T
        elif "qkv." in name or "in_proj_" in name:
            yield from _apart(name, value)
        else:
            yield name, value


def _tracker_neck(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    start = "backbone.vision_backbone.sam2_convs."
    for key, value in state.items():
        if key.startswith(start):
            yield rename("fpn_layers." + key.removeprefix(start), _NECK.items()), value


def _tracker(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {rename(_downsampler(key), _TRACKER.items()): value for key, value in state.items()}
    points = [key for key in found if key.startswith("prompt_encoder.point_embeddings.")]
    if points:
        found["prompt_encoder.point_embed.weight"] = torch.cat([found.pop(key) for key in sorted(points)])
    if "prompt_encoder.shared_embedding.positional_embedding" in found:
        shared = found["prompt_encoder.shared_embedding.positional_embedding"]
        found["shared_image_embedding.positional_embedding"] = shared.clone()
    return found


def _downsampler(key: str) -> str:
    """The layers of the mask downsampler, three in a row each (convolution, norm, activation), one after another."""
    found = re.search(r"\.mask_downsampler\.encoder\.(\d+)\.", key)
    if found is None or int(found[1]) == 12:
        return key
    layer, part = divmod(int(found[1]), 3)
    return key.replace(found[0], f".mask_downsampler.layers.{layer}.{('conv', 'norm')[part]}.")


def _apart(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Query, key and value, which the original keeps in one tensor."""
    for letter, part in zip("qkv", value.chunk(3), strict=True):
        yield name.replace("qkv.", f"{letter}_proj.").replace("in_proj_", f"{letter}_proj."), part
