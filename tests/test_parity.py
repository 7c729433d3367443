"""The parts that pocket writes out give what the libraries give that they are named after, with the same weights."""

import timm
import torch
from transformers import BertConfig, BertModel
from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig, Sam2PromptEncoderConfig
from transformers.models.sam2.modeling_sam2 import Sam2FeedForward, Sam2PromptEncoder, Sam2TwoWayTransformer

from anymask.models.bert import Bert
from anymask.models.efficientnet import EfficientNetLite
from anymask.models.two_way import FeedForward, PromptEncoder, TwoWayTransformer
from tiny import seed_weights


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@torch.no_grad()
def test_efficientnet_equals_timm() -> None:
    ours = EfficientNetLite("tf_efficientnet_lite0").eval()
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    assert shapes(ours) == shapes(theirs)
    assert ours.channels == theirs.feature_info.channels()
    seed_weights(ours)
    theirs.load_state_dict(ours.state_dict())
    for size in ((64, 64), (65, 95)):  # odd sides: TensorFlow's padding differs left and right
        pixels = torch.rand(1, 3, *size)
        for a, b in zip(ours(pixels), theirs(pixels), strict=True):
            assert (a - b).norm() / b.norm() < 1e-5


@torch.no_grad()
def test_folding_batch_norms_changes_nothing() -> None:
    encoder = EfficientNetLite("tiny").eval()
    seed_weights(encoder)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 2.0)
    pixels = torch.rand(1, 3, 64, 64)
    before = encoder(pixels)
    encoder.fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
    for a, b in zip(encoder(pixels), before, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_prompt_encoder_equals_sam2() -> None:
    ours = PromptEncoder(32)
    theirs = Sam2PromptEncoder(Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16)).eval()
    assert shapes(ours) == shapes(theirs)
    seed_weights(ours)
    theirs.load_state_dict(ours.state_dict())
    points, labels = torch.rand(3, 4, 2) * 64, torch.tensor([[1, 0, 2, 3], [1, -1, -1, -1], [0, 1, 2, -1]])
    stock, _ = theirs(points[:, None] - 0.5, labels[:, None], torch.zeros(3, 1, 4), None)
    torch.testing.assert_close(ours(points / 64, labels), stock[:, 0, :4], atol=1e-4, rtol=1e-4)
    masks = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(ours.mask_embed(masks), theirs.mask_embed(masks))


@torch.no_grad()
def test_the_two_way_transformer_equals_sam2() -> None:
    ours = TwoWayTransformer(width=32, heads=4, mlp=48, layers=2)
    config = Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=48, num_hidden_layers=2, num_attention_heads=4)
    theirs = Sam2TwoWayTransformer(config).eval()
    assert shapes(ours) == shapes(theirs)
    seed_weights(ours)
    theirs.load_state_dict(ours.state_dict())
    tokens, image, position = torch.randn(2, 5, 32), torch.randn(2, 32, 4, 4), torch.randn(16, 32)
    a, b = ours(tokens, image.flatten(2).transpose(1, 2), position)
    stock = theirs(tokens[:, None], image, position.T.unflatten(1, (4, 4)).expand(2, -1, -1, -1), None)
    torch.testing.assert_close(a, stock[0][:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(b, stock[1][:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_perceptron_equals_sam2() -> None:
    ours, theirs = FeedForward(8, 12, 3, 3), Sam2FeedForward(8, 12, 3, 3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 8)
    torch.testing.assert_close(ours(x), theirs(x))


@torch.no_grad()
def test_bert_equals_transformers() -> None:
    ours = Bert(50, 16, 2, 4, 24, 10)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=10,
        type_vocab_size=1,
    )
    theirs = BertModel(config, add_pooling_layer=False).eval()
    assert shapes(ours) == shapes(theirs)
    seed_weights(ours)
    theirs.load_state_dict(ours.state_dict())
    ids, mask = torch.randint(0, 50, (3, 7)), torch.arange(7) < torch.tensor([[7], [4], [1]])
    stock = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    found = ours(ours.embeddings.word_embeddings(ids), mask)
    torch.testing.assert_close(found[mask], stock[mask], atol=1e-5, rtol=1e-4)
