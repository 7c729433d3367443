import torch

from anymask.models import mobile, mobile_keys, sam_keys
from originals import hq_package, sam_package


def shapes(state):
    return {name: tensor.shape for name, tensor in state.items()}


def conv_norm(key, outputs, inputs, side):
    """A convolution without bias and its batch norm."""
    yield f"{key}.c.weight", (outputs, inputs, side, side)
    yield from ((f"{key}.bn.{name}", (outputs,)) for name in ("weight", "bias", "running_mean", "running_var"))
    yield f"{key}.bn.num_batches_tracked", ()


def linear(key, outputs, inputs):
    yield from ((f"{key}.weight", (outputs, inputs)), (f"{key}.bias", (outputs,)))


def norm(key, width):
    yield from ((f"{key}.weight", (width,)), (f"{key}.bias", (width,)))


def original_encoder(widths=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(2, 4, 5, 10), windows=(7, 7, 14, 7)):
    """(key, shape) of the image encoder of `mobile_sam.pt`, written down from the names in its repository."""
    yield from conv_norm("patch_embed.seq.0", widths[0] // 2, 3, 3)
    yield from conv_norm("patch_embed.seq.2", widths[0], widths[0] // 2, 3)
    for stage, width in enumerate(widths):
        for block in range(depths[stage]):
            key = f"layers.{stage}.blocks.{block}"
            if stage == 0:
                yield from conv_norm(f"{key}.conv1", 4 * width, width, 1)
                yield from conv_norm(f"{key}.conv2", 4 * width, 1, 3)
                yield from conv_norm(f"{key}.conv3", width, 4 * width, 1)
                continue
            yield f"{key}.attn.attention_biases", (heads[stage], windows[stage] ** 2)
            yield from norm(f"{key}.attn.norm", width)
            yield from linear(f"{key}.attn.qkv", 3 * width, width)
            yield from linear(f"{key}.attn.proj", width, width)
            yield from norm(f"{key}.mlp.norm", width)
            yield from linear(f"{key}.mlp.fc1", 4 * width, width)
            yield from linear(f"{key}.mlp.fc2", width, 4 * width)
            yield from conv_norm(f"{key}.local_conv", width, 1, 3)
        if stage < 3:
            following = widths[stage + 1]
            yield from conv_norm(f"layers.{stage}.downsample.conv1", following, width, 1)
            yield from conv_norm(f"layers.{stage}.downsample.conv2", following, 1, 3)
            yield from conv_norm(f"layers.{stage}.downsample.conv3", following, following, 1)
    yield from norm("norm_head", widths[-1])
    yield from linear("head", 1000, widths[-1])
    yield "neck.0.weight", (256, widths[-1], 1, 1)
    yield from norm("neck.1", 256)
    yield "neck.2.weight", (256, 256, 3, 3)
    yield from norm("neck.3", 256)


def original_state():
    """A file's tensors, on the meta device: the list above for the encoder, SAM's own package for the heads."""
    with torch.device("meta"):
        heads = sam_package().sam_model_registry["vit_b"]().state_dict()
        encoder = {f"image_encoder.{key}": torch.empty(shape) for key, shape in original_encoder()}
    return encoder | {key: value for key, value in heads.items() if not key.startswith("image_encoder.")}


def test_every_tensor_of_the_full_size_has_its_place():
    original = original_state()
    assert mobile_keys.recognise(shapes(original)) == "vit_t"
    network = mobile.build(mobile.MobileSamConfig())
    assert shapes(mobile_keys.renamed(original, "vit_t")) == shapes(network.state_dict())
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 9.8


def test_the_list_of_names_is_that_of_the_package():
    package = hq_package().sam_model_registry["vit_tiny"]().image_encoder.state_dict()
    assert {key: tuple(value.shape) for key, value in package.items()} == dict(original_encoder())


def test_every_tensor_of_light_hq_has_its_place():
    original = hq_package().sam_model_registry["vit_tiny"]().state_dict()
    assert mobile_keys.recognise(shapes(original)) == "hq_vit_t"
    network = mobile.build(mobile.MobileSamConfig(high_quality=True))
    assert shapes(mobile_keys.renamed(original, "hq_vit_t")) == shapes(network.state_dict())


def test_sam_and_mobile_are_told_apart():
    assert sam_keys.recognise(shapes(original_state())) is None
    with torch.device("meta"):
        sam = sam_package().sam_model_registry["vit_b"]().state_dict()
    assert mobile_keys.recognise(shapes(sam)) is None
    assert mobile_keys.recognise({}) is None


def test_tables_and_classifier_are_left_aside_and_unknown_names_stay():
    names = ("image_encoder.layers.1.blocks.0.attn.attention_bias_idxs", "image_encoder.head.weight")
    renamed = mobile_keys.renamed(
        dict.fromkeys((*names, "image_encoder.adapter.weight", "extra"), torch.zeros(1)), "vit_t"
    )
    assert set(renamed) == {"image_encoder.adapter.weight", "extra"}
