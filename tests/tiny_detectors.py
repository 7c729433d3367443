"""Tiny GroundingDINO, MM-GroundingDINO and OWLv2 with random weights, every tensor seeded by its own key."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    CLIPTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    MMGroundingDinoForObjectDetection,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
)

from anymask.grounding.dino import DinoDetector, shipped_tokenizer
from anymask.grounding.owl import OwlDetector
from anymask.models.sam3_text import MERGES, tokenizer_of
from anymask.types import Image
from tiny import seed_weights

SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "image_size": 64}
DINO = {
    "backbone_config": {"model_type": "swin", "out_indices": [2, 3, 4], **SWIN},
    "text_config": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 30,
}
DINO_KINDS = {
    "grounding-dino": GroundingDinoForObjectDetection,
    "mm-grounding-dino": MMGroundingDinoForObjectDetection,
}


def tiny_dino(kind: str = "grounding-dino") -> DinoDetector:
    """Images of 96 pixels on the shorter side; ready for use on the CPU."""
    return DinoDetector(tiny_dino_network(kind), shipped_tokenizer(), tiny_dino_processor(), name=f"tiny-{kind}")


def tiny_dino_network(kind: str = "grounding-dino") -> nn.Module:
    network = DINO_KINDS[kind](AutoConfig.for_model(kind, **DINO))
    seed_detector(network)
    return network.eval().requires_grad_(False)


def tiny_dino_processor() -> GroundingDinoImageProcessor:
    return GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})


def seed_detector(network: nn.Module) -> None:
    """Weights that image and text pass through: of unit gain, norms near one; shared layers stay shared."""
    seed_weights(network)
    with torch.no_grad():
        for name, tensor in network.named_parameters():  # shared ones once
            if tensor.ndim > 1 and "embedding" not in name:
                tensor *= 1 / (0.15 * tensor[0].numel() ** 0.5)
        for module in network.modules():
            if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter):
                module.weight += 1


OWL = {
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    },
    "projection_dim": 16,
}


def tiny_owl() -> OwlDetector:
    """A square of 64 pixels, 64 patches; ready for use on the CPU."""
    return OwlDetector(tiny_owl_network(), clip_tokenizer(), tiny_owl_processor(), name="tiny-owlv2")


def tiny_owl_network() -> nn.Module:
    network = Owlv2ForObjectDetection(AutoConfig.for_model("owlv2", **OWL))
    seed_detector(network)
    return network.eval().requires_grad_(False)


def tiny_owl_processor() -> Owlv2ImageProcessor:
    return Owlv2ImageProcessor(size={"height": 64, "width": 64})


def clip_tokenizer() -> CLIPTokenizer:
    """From the file of merges in the package open_clip."""
    return tokenizer_of(Path(find_spec("open_clip").origin).parent / MERGES)


def noise_image(size: tuple[int, int]) -> Image:
    """Of (h, w), always the same."""
    return Image(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def saved_detector(kind: str, folder: Path) -> Path:
    """A folder as the hub has it."""
    detector = tiny_owl() if kind == "owlv2" else tiny_dino(kind)
    if kind == "owlv2":
        detector.network.save_pretrained(folder)
    else:
        detector.network.model.backbone.conv_encoder = detector.encoder.encoder
        detector.network.save_pretrained(folder)
    detector.processor.save_pretrained(folder)
    detector.tokenizer.save_pretrained(folder)
    return folder
