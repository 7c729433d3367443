"""Tiny SAM 3 models with random weights, every tensor seeded by its own key, and a tokenizer of a few merges."""

import gzip
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from anymask.models.sam3 import Sam3
from anymask.models.sam3_text import MERGES
from tiny import seed_weights


def tiny_sam3(source: Path = Path("nowhere")) -> Sam3:
    """Detector and tracker on an input of 56 pixels; `source` is where the tokenizer lies (`write_tiny_merges`)."""
    return Sam3(tiny_sam3_network(), name="tiny-sam3", source=source)


def tiny_sam3_network() -> nn.Module:
    return seeded(AutoModel.from_config(AutoConfig.for_model(**tiny_sam3_config())))


def tiny_sam3_config() -> dict:
    """As facebook/sam3 has it."""
    parts = {"detector_config": tiny_sam3_detector_config(), "tracker_config": tiny_sam3_tracker_config()}
    return {"model_type": "sam3_video", **parts, "low_res_mask_size": 16}


def tiny_sam3_lite_text(source: Path = Path("nowhere")) -> Sam3:
    """The detector alone, with the light text transformer."""
    text = {"vocab_size": TINY_VOCABULARY, "hidden_size": 24, "intermediate_size": 48, "projection_dim": 16}
    text |= {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 40}
    config = AutoConfig.for_model(**tiny_sam3_detector_config() | {"model_type": "sam3_lite_text", "text_config": text})
    return Sam3(seeded(AutoModel.from_config(config)), name="tiny-lite-text", source=source)


TINY_MERGES = ("r e", "re d</w>", "c a", "ca r</w>", "d o", "do g</w>")
TINY_VOCABULARY = 512 + len(TINY_MERGES) + 2


def write_tiny_merges(folder: Path) -> Path:
    """A tokenizer as the original repository keeps it: bytes, a few merges, the marks."""
    with gzip.open(folder / MERGES, "wt", encoding="utf-8") as file:
        file.write("\n".join(["version", *TINY_MERGES]))
    return folder


def tiny_sam3_detector_config() -> dict:
    small = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    text = {"model_type": "clip_text_model", "vocab_size": TINY_VOCABULARY, "hidden_size": 24, "intermediate_size": 96}
    text |= {"projection_dim": 512, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    text |= {"hidden_act": "gelu", "bos_token_id": TINY_VOCABULARY - 2, "eos_token_id": TINY_VOCABULARY - 1}
    return {
        "model_type": "sam3",
        "vision_config": tiny_sam3_vision_config(),
        "text_config": text,
        "geometry_encoder_config": {**small, "num_layers": 1},
        "detr_encoder_config": {**small, "num_layers": 2},
        "detr_decoder_config": {**small, "num_layers": 2, "num_queries": 12},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 4},
    }


def tiny_sam3_tracker_config() -> dict:
    return {
        "model_type": "sam3_tracker_video",
        "vision_config": tiny_sam3_vision_config(),
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 56},
        "mask_decoder_config": {"hidden_size": 32},
        "image_size": 56,
        **dict.fromkeys(("memory_attention_hidden_size", "memory_encoder_hidden_size"), 32),
        **dict.fromkeys(("mask_downsampler_embed_dim", "memory_fuser_embed_dim"), 32),
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 48,
        "memory_encoder_output_channels": 64,
        "memory_fuser_num_layers": 1,
        "memory_fuser_intermediate_dim": 128,
    }


def tiny_sam3_vision_config() -> dict:
    """Two windows of four cells a side, every second layer global."""
    vit = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit |= {"image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 28}
    sizes = [[16, 16], [8, 8], [4, 4]]
    backbone = {"model_type": "sam3_vit_model", **vit}
    return {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": sizes,
    }


def seeded(network: nn.Module) -> nn.Module:
    """Random weights by key; norms near one, so that what goes in makes a difference to what comes out."""
    seed_weights(network)
    with torch.no_grad():
        for module in network.modules():
            if "Norm" in type(module).__name__:
                module.weight += 1
    return network.eval()
