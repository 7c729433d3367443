"""The lean layers of SAM's encoder give what transformers' own give, in any division of the work."""

import copy

import pytest
import torch
from transformers import SamHQVisionConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionEncoder

from anymask.models import sam_layers
from anymask.models.sam_layers import with_lean_layers
from tiny import seed_weights

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2.0, "image_size": 128}
SIZES |= {"output_channels": 16, "global_attn_indexes": [1], "window_size": 3}  # 8 cells: windows of 3 do not fit


def pair(kind=SamVisionEncoder, config=SamVisionConfig, **other):
    stock = kind(config(**SIZES | other)).eval()
    seed_weights(stock)
    lean = copy.deepcopy(stock)
    with_lean_layers(lean)
    return stock, lean


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("entries", [1, 2 * 2 * 8 * 8 * 8 * 3, 2**26])
def test_the_same_features_with_any_number_of_rows_at_once(monkeypatch, entries):
    monkeypatch.setattr(sam_layers, "BIAS_ENTRIES", entries)
    stock, lean = pair()
    with torch.no_grad():
        torch.testing.assert_close(lean(pixels())[0], stock(pixels())[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("other", [{"use_rel_pos": False}, {"qkv_bias": False}, {"window_size": 4}])
def test_the_same_features_without_biases_or_where_windows_fit(other):
    stock, lean = pair(**other)
    with torch.no_grad():
        torch.testing.assert_close(lean(pixels())[0], stock(pixels())[0], atol=1e-5, rtol=1e-5)


def test_hq_keeps_its_early_tokens():
    stock, lean = pair(SamHQVisionEncoder, SamHQVisionConfig)
    with torch.no_grad():
        ours, theirs = lean(pixels()), stock(pixels())
    torch.testing.assert_close(ours.intermediate_embeddings[0], theirs.intermediate_embeddings[0], atol=1e-5, rtol=1e-5)
    assert len(ours.intermediate_embeddings) == 1


def test_names_and_gradients_are_those_of_the_stock_layers():
    stock, lean = pair()
    assert set(lean.state_dict()) == set(stock.state_dict())
    for network in (stock, lean):
        network(pixels())[0].square().sum().backward()
    found = dict(lean.named_parameters())
    for name, one in stock.named_parameters():
        torch.testing.assert_close(found[name].grad, one.grad, atol=2e-3, rtol=1e-3, msg=name)


def test_no_whole_attention_map_is_held(monkeypatch):
    monkeypatch.setattr(sam_layers, "BIAS_ENTRIES", 2 * 2 * 8 * 8 * 8)
    seen, stock = [], torch.nn.functional.scaled_dot_product_attention
    attend = lambda *given, attn_mask: seen.append(tuple(attn_mask.shape)) or stock(*given, attn_mask=attn_mask)  # noqa: E731
    monkeypatch.setattr(sam_layers.functional, "scaled_dot_product_attention", attend)
    _, lean = pair()
    with torch.no_grad():
        lean.layers[1](torch.zeros(2, 8, 8, 32))
    assert seen == [(2, 2, 8, 64)] * 8
