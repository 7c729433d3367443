import functools
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
)

from anymask.models import sam2_keys

FILES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
KINDS = [f"hiera_{size}_{version}" for size in FILES for version in ("2.0", "2.1")]
PERCEIVER_LAYER = {  # of two layers (facebookresearch/EdgeTAM, sam2/modeling/perceiver.py and configs/edgetam.yaml)
    "attn.norm_x.weight": [64],
    "attn.norm_x.bias": [64],
    "attn.norm_latents.weight": [64],
    "attn.norm_latents.bias": [64],
    "attn.to_q.weight": [64, 64],
    "attn.to_kv.weight": [128, 64],
    "attn.to_out.weight": [64, 64],
    "ff.0.weight": [64],
    "ff.0.bias": [64],
    "ff.1.weight": [256, 64],
    "ff.3.weight": [64, 256],
    "self_attn.norm.weight": [64],
    "self_attn.norm.bias": [64],
    "self_attn.to_q.weight": [64, 64],
    "self_attn.to_kv.weight": [128, 64],
    "self_attn.to_out.weight": [64, 64],
    "self_ff.0.weight": [64],
    "self_ff.0.bias": [64],
    "self_ff.1.weight": [256, 64],
    "self_ff.3.weight": [64, 256],
}
PERCEIVER = {"latents": [256, 64], "latents_2d": [256, 64], "norm.weight": [64], "norm.bias": [64]}


def shapes(state):
    return {name: tensor.shape for name, tensor in state.items()}


@cache
def original(kind):
    """The video model of the sam2 package, full size, on the meta device."""
    sam2 = pytest.importorskip("sam2", reason="the original code comes with the extra `reference`")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    size, _, version = kind.removeprefix("hiera_").rpartition("_")
    family = "sam2" if version == "2.0" else "sam2.1"
    file = Path(sam2.__file__).parent / "configs" / family / f"{family}_hiera_{FILES[size]}.yaml"
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))  # Hiera reads its numbers
        return instantiate(OmegaConf.load(file).model)


def original_edgetam():
    """SAM 2's tensors with EdgeTAM's trunk, necks of its widths, half the memory attention and the perceiver."""
    import timm

    with torch.device("meta"):
        trunk = timm.create_model("repvit_m1", features_only=True, out_indices=(0, 1, 2, 3))
        state = {f"image_encoder.trunk.body.{name}": tensor for name, tensor in trunk.state_dict().items()}
        rest = original("hiera_tiny_2.0").state_dict()
        dropped = ("image_encoder.trunk.", "memory_attention.layers.2.", "memory_attention.layers.3.")
        state |= {name: tensor for name, tensor in rest.items() if not name.startswith(dropped)}
        for level, width in enumerate((384, 192, 96, 48)):
            state[f"image_encoder.neck.convs.{level}.conv.weight"] = torch.empty(256, width, 1, 1)
        perceiver = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in PERCEIVER_LAYER.items()}
        return state | {f"spatial_perceiver.{name}": torch.empty(s) for name, s in (PERCEIVER | perceiver).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_full_size_has_its_place(kind):
    state = original(kind).state_dict()
    assert sam2_keys.recognise(shapes(state)) == kind
    renamed, config, new = sam2_keys.renamed(state, kind), sam2_keys.config_of(kind), kind.endswith("2.1")
    memory = {"enable_occlusion_spatial_embedding": new, "enable_temporal_pos_encoding_for_object_pointers": new}
    with torch.device("meta"):
        video, image = Sam2VideoModel(Sam2VideoConfig(**config, **memory)), Sam2Model(Sam2Config(**config))
    assert shapes(renamed) == shapes(video.state_dict())
    assert shapes(sam2_keys.image_part(renamed)) == shapes(image.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_no_tensor_shows_are_those_of_the_original(kind):
    theirs = original(kind)
    with torch.device("meta"):
        ours = Sam2Model(Sam2Config(**sam2_keys.config_of(kind)))
    pairs = zip(theirs.image_encoder.trunk.blocks, ours.vision_encoder.backbone.blocks, strict=True)
    for original_block, block in pairs:
        assert original_block.window_size == block.window_size
        assert original_block.attn.num_heads == block.attn.num_attention_heads
        assert tuple(original_block.q_stride or ()) == tuple(block.query_stride or ())
    assert theirs.image_size == ours.prompt_encoder.input_image_size
    assert list(theirs.image_encoder.neck.fpn_top_down_levels) == ours.vision_encoder.neck.fpn_top_down_levels


def test_what_2_1_has_beyond_2_0_is_memory():
    old, new = (original(f"hiera_tiny_{version}").state_dict() for version in ("2.0", "2.1"))
    added = {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
    assert set(new) - set(old) == added
    assert not set(old) - set(new)
    named = sam2_keys.renamed({name: new[name] for name in added}, "hiera_tiny_2.1")
    assert sam2_keys.image_part(named) == {}


def test_every_tensor_of_edgetam_has_its_place():
    state = original_edgetam()
    assert sam2_keys.recognise(shapes(state)) == "edgetam"
    renamed, config = sam2_keys.renamed(state, "edgetam"), sam2_keys.config_of("edgetam")
    memory = ("enable_occlusion_spatial_embedding", "enable_temporal_pos_encoding_for_object_pointers")
    with torch.device("meta"):
        video = EdgeTamVideoModel(EdgeTamVideoConfig(**config, **dict.fromkeys(memory, False)))
        image = EdgeTamModel(EdgeTamConfig(**config))
    assert shapes(renamed) == shapes(video.state_dict())
    assert shapes(sam2_keys.image_part(renamed)) == shapes(image.state_dict())


@pytest.mark.parametrize(
    ("kind", "key", "name"),
    [
        (
            "hiera_tiny_2.1",
            "image_encoder.trunk.blocks.0.mlp.layers.1.bias",
            "vision_encoder.backbone.blocks.0.mlp.proj_out.bias",
        ),
        ("hiera_tiny_2.1", "image_encoder.trunk.blocks.1.proj.bias", "vision_encoder.backbone.blocks.1.proj.bias"),
        (
            "hiera_tiny_2.1",
            "sam_mask_decoder.pred_obj_score_head.layers.1.bias",
            "mask_decoder.pred_obj_score_head.layers.0.bias",
        ),
        (
            "hiera_tiny_2.1",
            "sam_mask_decoder.transformer.layers.0.norm4.bias",
            "mask_decoder.transformer.layers.0.layer_norm4.bias",
        ),
        ("hiera_tiny_2.1", "memory_attention.layers.3.linear2.bias", "memory_attention.layers.3.linear2.bias"),
        ("edgetam", "memory_attention.layers.1.linear2.bias", "memory_attention.layers.1.mlp.down_proj.bias"),
        (
            "edgetam",
            "image_encoder.trunk.body.stem.conv1.bn.bias",
            "vision_encoder.backbone.timm_model.stem.conv1.bn.bias",
        ),
        ("edgetam", "spatial_perceiver.latents", "spatial_perceiver.latents_1d"),
        ("edgetam", "spatial_perceiver.layers.0.attn.norm_x.bias", "spatial_perceiver.layers.0.layer_norm_input.bias"),
        (
            "edgetam",
            "spatial_perceiver.layers.0.self_attn.norm.bias",
            "spatial_perceiver.layers.0.layer_norm_self.bias",
        ),
        (
            "edgetam",
            "spatial_perceiver.layers.0.self_attn.to_q.weight",
            "spatial_perceiver.layers.0.self_attention.q_proj.weight",
        ),
        (
            "edgetam",
            "spatial_perceiver.layers.0.attn.to_out.weight",
            "spatial_perceiver.layers.0.cross_attention.o_proj.weight",
        ),
        (
            "edgetam",
            "spatial_perceiver.layers.0.self_ff.3.weight",
            "spatial_perceiver.layers.0.self_mlp.down_proj.weight",
        ),
        ("edgetam", "spatial_perceiver.norm.bias", "spatial_perceiver.layer_norm.bias"),
        ("edgetam", "something.of.another.model", "something.of.another.model"),
    ],
)
def test_keys_of_equal_shape_go_to_their_own_place(kind, key, name):
    assert list(sam2_keys.renamed({key: torch.zeros(1)}, kind)) == [name]


def test_tensors_that_are_joined_or_parted_keep_their_order():
    labels = {f"sam_prompt_encoder.point_embeddings.{i}.weight": torch.full((1, 2), float(i)) for i in (2, 0, 3, 1)}
    joined = sam2_keys.renamed(labels, "hiera_tiny_2.1")
    assert joined["prompt_encoder.point_embed.weight"][:, 0].tolist() == [0, 1, 2, 3]
    both = {"spatial_perceiver.layers.0.attn.to_kv.weight": torch.arange(4.0)[:, None]}
    parted = sam2_keys.renamed(both, "edgetam")
    prefix = "spatial_perceiver.layers.0.cross_attention"
    assert {name: tensor.flatten().tolist() for name, tensor in parted.items()} == {
        f"{prefix}.k_proj.weight": [0, 1],
        f"{prefix}.v_proj.weight": [2, 3],
    }


def test_the_position_code_is_given_twice_and_shared_by_none():
    key = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    renamed = sam2_keys.renamed({key: torch.ones(2, 3)}, "hiera_tiny_2.1")
    assert set(renamed) == {
        f"{p}.positional_embedding" for p in ("prompt_encoder.shared_embedding", "shared_image_embedding")
    }
    assert len({tensor.data_ptr() for tensor in renamed.values()}) == 2


def test_other_tensors_are_not_recognised():
    patch = "image_encoder.trunk.patch_embed.proj.weight"
    assert sam2_keys.recognise({}) is None
    assert sam2_keys.recognise({"image_encoder.pos_embed": torch.Size([1, 64, 64, 768])}) is None
    assert sam2_keys.recognise({patch: torch.Size([96, 3, 7, 7])}) is None  # no blocks
    few = {f"image_encoder.trunk.blocks.{i}.norm1.weight": torch.Size([96]) for i in range(12)}
    assert sam2_keys.recognise({patch: torch.Size([96, 3, 7, 7]), **few}) == "hiera_tiny_2.0"
    assert sam2_keys.recognise({patch: torch.Size([80, 3, 7, 7]), **few}) is None
