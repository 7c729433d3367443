"""Original GroundingDINO files: recognised, renamed without loss, at full size the official list of tensors."""

import re

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, GroundingDinoForObjectDetection
from transformers.core_model_loading import revert_weight_conversion

from anymask.grounding import dino_keys
from anymask.grounding.detect import load_detector
from anymask.grounding.dino import DinoDetector, shipped_tokenizer
from anymask.grounding.dino_keys import config_of, recognise, renamed
from anymask.grounding.protocol import DetectionThresholds
from anymask.models.protocol import CheckpointError
from original_dino import original_shapes
from tiny_detectors import DINO, SWIN, noise_image, tiny_dino_network, tiny_dino_processor

ALL = DetectionThresholds(box=0.0, text=0.0)
UNUSED = "model.backbone.conv_encoder.model.swin.layernorm."  # of Swin's classifier


@pytest.mark.parametrize("kind", ["swint", "swinb"])
def test_at_full_size_the_official_tensors_are_those_of_transformers(kind):
    state = {name: torch.empty(shape, device="meta") for name, shape in original_shapes(dino_keys.SIZES[kind]).items()}
    with torch.device("meta"):
        network = GroundingDinoForObjectDetection(AutoConfig.for_model(**config_of(kind)))
    wanted = revert_weight_conversion(network, network.state_dict())  # under the names of the hub
    wanted = {name: tensor.shape for name, tensor in wanted.items() if not name.startswith(UNUSED)}
    assert recognise({name: tensor.shape for name, tensor in state.items()}) == kind
    assert {name: tensor.shape for name, tensor in renamed(state).items()} == wanted


# From the names of the hub back to those of the original repository, written out apart from the map under test.
BACK = (
    (r"^model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage2\.", "backbone.0.norm1."),
    (r"^model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage3\.", "backbone.0.norm2."),
    (r"^model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage4\.", "backbone.0.norm3."),
    (r"^model\.backbone\.conv_encoder\.model\.embeddings\.patch_embeddings\.projection", "backbone.0.patch_embed.proj"),
    (r"^model\.backbone\.conv_encoder\.model\.embeddings\.norm", "backbone.0.patch_embed.norm"),
    (r"^model\.backbone\.conv_encoder\.model\.encoder\.", "backbone.0."),
    (r"^(backbone.*)\.layernorm_before", r"\1.norm1"),
    (r"^(backbone.*)\.layernorm_after", r"\1.norm2"),
    (r"^(backbone.*)\.attention\.output\.dense", r"\1.attn.proj"),
    (r"^(backbone.*)\.attention\.self\.", r"\1.attn."),
    (r"^(backbone.*)\.intermediate\.dense", r"\1.mlp.fc1"),
    (r"^(backbone.*)\.output\.dense", r"\1.mlp.fc2"),
    (r"^model\.text_backbone\.", "bert."),
    (r"^model\.text_projection\.", "feat_map."),
    (r"^model\.input_proj_vision\.", "input_proj."),
    (r"^model\.query_position_embeddings", "transformer.tgt_embed"),
    (r"^model\.encoder_output_bbox_embed", "transformer.enc_out_bbox_embed"),
    (r"^model\.(level_embed|enc_output)", r"transformer.\1"),
    (r"^model\.encoder\.layers\.(\d)\.deformable_layer\.", r"transformer.encoder.layers.\1."),
    (r"^model\.encoder\.layers\.(\d)\.text_enhancer_layer\.", r"transformer.encoder.text_layers.\1."),
    (r"^model\.encoder\.layers\.(\d)\.fusion_layer\.", r"transformer.encoder.fusion_layers.\1."),
    (r"fusion_layers\.(\d)\.vision_param", r"fusion_layers.\1.gamma_v"),
    (r"fusion_layers\.(\d)\.text_param", r"fusion_layers.\1.gamma_l"),
    (r"layer_norm_vision", "layer_norm_v"),
    (r"layer_norm_text", "layer_norm_l"),
    (r"^(transformer.*fusion.*)vision_proj", r"\1v_proj"),
    (r"^(transformer.*fusion.*)text_proj", r"\1l_proj"),
    (r"^(transformer.encoder.layers.*)\.self_attn_layer_norm", r"\1.norm1"),
    (r"^(transformer.encoder.layers.*)\.final_layer_norm", r"\1.norm2"),
    (r"^(transformer.encoder.text_layers.*)\.layer_norm_before", r"\1.norm1"),
    (r"^(transformer.encoder.text_layers.*)\.layer_norm_after", r"\1.norm2"),
    (r"^model\.decoder\.layer_norm", "transformer.decoder.norm"),
    (r"^model\.decoder\.reference_points_head", "transformer.decoder.ref_point_head"),
    (r"^model\.decoder\.", "transformer.decoder."),
    (r"\.encoder_attn_text_layer_norm", ".catext_norm"),
    (r"\.encoder_attn_layer_norm", ".norm1"),
    (r"\.encoder_attn_text\.", ".ca_text."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"^(transformer.decoder.*)\.self_attn_layer_norm", r"\1.norm2"),
    (r"^(transformer.decoder.*)\.final_layer_norm", r"\1.norm3"),
    (r"^(transformer.*)\.fc([12])\.", r"\1.linear\2."),
)


def as_original(network) -> dict[str, Tensor]:
    """The weights of a tiny network as the original repository would save them."""
    state = {}
    for name, tensor in revert_weight_conversion(network, network.state_dict()).items():
        if not name.startswith(UNUSED):
            for pattern, replacement in BACK:
                name = re.sub(pattern, replacement, name)
            state[name] = tensor
    for name in [name for name in state if name.endswith((".query.weight", ".query.bias")) and "bert" not in name]:
        stem, kind = name.split(".query.")
        joined = f"{stem}.qkv.{kind}" if "backbone" in name else f"{stem}.in_proj_{kind}"
        state[joined] = torch.cat([state.pop(f"{stem}.{part}.{kind}") for part in ("query", "key", "value")])
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.fixture
def tiny_kind(monkeypatch):
    monkeypatch.setitem(dino_keys.SIZES, "tiny", SWIN)
    monkeypatch.setattr(dino_keys, "config_of", lambda kind: {"model_type": "grounding-dino", **DINO})


def test_an_original_file_gives_the_boxes_of_transformers_network(tmp_path, tiny_kind):
    network = tiny_dino_network()
    torch.save({"model": as_original(network)}, tmp_path / "groundingdino_tiny.pth")
    ours = load_detector(tmp_path / "groundingdino_tiny.pth", device="cpu")
    assert ours.processor.size == {"shortest_edge": 800, "longest_edge": 1333}
    ours.processor = tiny_dino_processor()
    theirs = DinoDetector(network, shipped_tokenizer(), tiny_dino_processor())
    found, expected = (model.detect(noise_image((90, 130)), ["red car", "dog"], ALL) for model in (ours, theirs))
    assert len(found) > 5 and found.labels == expected.labels
    assert (found.boxes == expected.boxes).all() and (found.scores == expected.scores).all()


def test_a_file_with_a_tensor_less_or_more_is_refused(tmp_path, tiny_kind):
    state = as_original(tiny_dino_network())
    state["module.extra.weight"] = torch.zeros(2)
    del state["module.transformer.decoder.norm.bias"]
    state["module.feat_map.bias"] = torch.zeros(3)
    torch.save({"model": state}, tmp_path / "broken.pth")
    message = (
        r"broken.pth is no GroundingDinoForObjectDetection: 1 tensors missing \(model.decoder.layer_norm.bias\); 1"
        r" tensors not known \(extra.weight\); 1 tensors of another shape"
        r" \(model.text_projection.bias \[3\] for \[32\]\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load_detector(tmp_path / "broken.pth", device="cpu")


def test_files_of_another_size_or_network_are_refused_by_name(tmp_path):
    torch.save(as_original(tiny_dino_network()), tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match="small.pth is GroundingDINO of an unknown size: known are swint, swinb"):
        load_detector(tmp_path / "small.pth")
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth is no detector: .* grounding-dino, .*begins with a.weight"):
        load_detector(tmp_path / "other.pth")
