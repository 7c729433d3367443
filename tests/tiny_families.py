"""Tiny models of the Segment Anything families with random weights, every tensor seeded by its own key."""

import torch
from torch import nn
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)

from anymask.models import mobile
from anymask.models.sam import Sam
from anymask.models.sam2 import Sam2
from anymask.models.sam2_keys import config_of
from tiny import seed_weights


def tiny_sam2() -> Sam2:
    """Input of 256 pixels; ready for use on the CPU."""
    network = Sam2Model(Sam2Config(**config_of("hiera_nano_2.1")))
    seed_sam2(network)
    return Sam2(network, name="tiny-sam2")


def tiny_edgetam() -> Sam2:
    """As `tiny_sam2`, with a small RepViT as encoder."""
    network = EdgeTamModel(EdgeTamConfig(**tiny_edgetam_config()))
    seed_sam2(network)
    return Sam2(network, name="tiny-edgetam")


def tiny_edgetam_config() -> dict[str, dict]:
    config, full = config_of("hiera_nano_2.1"), config_of("edgetam")["vision_config"]
    backbone = dict(full["backbone_config"])
    backbone["model_args"] = {**backbone["model_args"], "embed_dim": [8, 16, 24, 32], "depth": [1, 1, 1, 1]}
    vision = {**config["vision_config"], **full, "backbone_config": backbone, "backbone_channel_list": [32, 24, 16, 8]}
    return {**config, "vision_config": vision}


def seed_sam2(network: nn.Module) -> None:
    """Weights that a prompt passes through: of unit gain, norms near one, clicks and labels that count."""
    seed_weights(network)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "point_embed" in name or "not_a_point_embed" in name:
                tensor *= 10
            elif tensor.ndim > 1 and "embedding" not in name:
                tensor *= 1 / (0.15 * tensor[0].numel() ** 0.5)
        for module in network.modules():
            if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter):
                module.weight += 1


def tiny_sam() -> Sam:
    """SAM 1: input of 128 pixels; ready for use on the CPU."""
    network = SamModel(SamConfig(**tiny_sam_config()))
    seed_sam(network)
    return Sam(network, name="tiny-sam")


def tiny_sam_hq() -> Sam:
    """HQ-SAM, as `tiny_sam`."""
    network = SamHQModel(SamHQConfig(**tiny_sam_config(vit_dim=32)))
    seed_sam(network)
    return Sam(network, name="tiny-sam-hq")


def seed_sam(network: nn.Module) -> None:
    """Weights that a prompt passes through, under the original names too: norms near one, and tokens that count."""
    seed_weights(network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Embedding):
                module.weight *= 10
            elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.weight *= min(1.0, (32 / module.weight[0].numel()) ** 0.5)
            elif "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter):
                module.weight += 1


def tiny_sam_config(**decoder: int) -> dict[str, dict]:
    """Two blocks, the first with windows of 3 (which do not fit 8 cells), the second global; as `originals` has it."""
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2.0, "window_size": 3}
    vision |= {"global_attn_indexes": [1], "output_channels": 32, "num_pos_feats": 16, "image_size": 128}
    heads = {"hidden_size": 32, "num_attention_heads": 4, "mlp_dim": 64, "iou_head_hidden_dim": 32}
    return {
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128},
        "mask_decoder_config": {**heads, "layer_norm_eps": 1e-5, **decoder},
    }


def tiny_mobile(high_quality: bool = False) -> mobile.MobileSam:
    """MobileSAM, or Light HQ-SAM: input of 128 pixels; ready for use on the CPU."""
    network = mobile.build(tiny_mobile_config(high_quality))
    ones = {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in network.state_dict().items()}
    network.load_state_dict(ones, assign=True)
    seed_sam(network)
    return mobile.MobileSam(network, name="tiny-mobile")


def tiny_mobile_config(high_quality: bool = False) -> mobile.MobileSamConfig:
    """As `originals` has it."""
    return mobile.MobileSamConfig(
        image_size=128,
        embed_dims=(16, 32, 48, 320),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 3, 10),
        decoder_mlp_dim=64,
        iou_head_hidden_dim=32,
        high_quality=high_quality,
    )
