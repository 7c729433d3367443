import pytest
import torch
from transformers import SamConfig, SamHQConfig, SamHQModel, SamModel

from anymask.models import sam_keys
from originals import hq_package, sam_package

KINDS = ("vit_b", "vit_l", "vit_h")


def shapes(module):
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def reference(kind):
    with torch.device("meta"):
        return sam_package().sam_model_registry[kind]()


def hq_reference(kind):
    with torch.device("meta"):
        return hq_package().sam_model_registry[kind]()


def transformers_model(kind):
    values = sam_keys.config_of(kind)
    with torch.device("meta"):
        return SamHQModel(SamHQConfig(**values)) if kind.startswith("hq_") else SamModel(SamConfig(**values))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_full_size_has_its_place(kind):
    original = reference(kind).state_dict()
    assert sam_keys.recognise(shapes(reference(kind))) == kind
    assert {k: v.shape for k, v in sam_keys.renamed(original, kind).items()} == shapes(transformers_model(kind))
    assert sam_keys.image_size(original) == 1024


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_full_size_of_hq_has_its_place(kind):
    original = hq_reference(kind)
    assert sam_keys.recognise(shapes(original)) == f"hq_{kind}"
    renamed = sam_keys.renamed(original.state_dict(), f"hq_{kind}")
    assert {k: v.shape for k, v in renamed.items()} == shapes(transformers_model(f"hq_{kind}"))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_the_reference(kind):
    encoder, config = reference(kind).image_encoder, sam_keys.config_of(kind)["vision_config"]
    assert [i for i, block in enumerate(encoder.blocks) if block.window_size == 0] == config["global_attn_indexes"]
    assert len(encoder.blocks) == config["num_hidden_layers"]
    assert encoder.blocks[0].attn.num_heads == config["num_attention_heads"]


def test_other_tensors_are_not_recognised():
    assert sam_keys.recognise({}) is None
    assert sam_keys.recognise({"image_encoder.trunk.pos_embed": torch.Size([1, 96, 7, 7])}) is None
    assert sam_keys.recognise({"image_encoder.pos_embed": torch.Size([1, 64, 64, 192])}) is None
    assert sam_keys.recognise({"image_encoder.pos_embed": torch.Size([1, 4096, 768])}) is None


def test_unknown_names_stay_and_nothing_is_lost():
    one = torch.zeros(1)
    state = {"image_encoder.blocks.3.Adapter.weight": one, "head.weight": one, "mask_decoder.hf_token.weight": one}
    names = {"vision_encoder.layers.3.Adapter.weight", "head.weight", "mask_decoder.hf_token.weight"}
    assert set(sam_keys.renamed(state, "vit_b")) == names


def test_a_positional_embedding_held_once_gets_both_names():
    held = torch.ones(2, 4)
    once = sam_keys.with_shared_position({"shared_image_embedding.positional_embedding": held})
    assert set(once) == {
        "shared_image_embedding.positional_embedding",
        "prompt_encoder.shared_embedding.positional_embedding",
    }
    assert all(value is held for value in once.values())
