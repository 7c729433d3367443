import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anymask.models import mask_tokens, sam2_keys
from anymask.models.checkpoints import read_state
from anymask.models.decode import PromptTensors
from anymask.models.promptable import CHUNK
from anymask.models.protocol import CheckpointError, Model
from anymask.models.sam2 import LEVELS, Sam2
from anymask.prompting import predict
from anymask.types import Image, Prompt
from tiny_families import seed_sam2, tiny_edgetam, tiny_edgetam_config, tiny_sam2

SIZES = [(120, 160), (170, 101), (33, 77), (500, 300)]  # landscape, portrait, odd, larger than the input
TOLERANCE = 2e-5  # of logits up to 10; prompts are more than 0.1 apart


def picture(size, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    rows, columns = (np.arange(side) * n // side for side, n in zip(size, (6, 7), strict=True))
    noise = np.random.default_rng(seed + 1).integers(-20, 20, (*size, 3))
    return Image((coarse[rows][:, columns] + noise).clip(0, 255).astype(np.uint8))


def prompts_for(size, side=64):
    """Every kind and combination: name, clicks, labels, box, mask."""
    h, w = size
    clicks = np.asarray([[0.31 * w, 0.42 * h], [0.64 * w, 0.71 * h], [0.9 * w, 0.05 * h]], np.float32)
    box = (0.12 * w, 0.21 * h, 0.83 * w, 0.94 * h)
    mask = (np.random.default_rng(3).normal(size=(side, side)).astype(np.float32) * 20).clip(-32, 32)
    return {
        "click": (clicks[:1], [1], None, None),
        "negative click": (clicks[:1], [0], None, None),
        "clicks": (clicks, [1, 0, 1], None, None),
        "box": (None, None, box, None),
        "mask": (None, None, None, mask),
        "clicks, box": (clicks, [1, 0, 0], box, None),
        "click, mask": (clicks[1:2], [1], None, mask),
        "box, mask": (None, None, box, mask),
        "clicks, box, mask": (clicks, [0, 1, 1], box, mask),
    }


def as_prompt(clicks, labels, box, mask):
    prompt = Prompt() if clicks is None else Prompt.points(clicks, labels)
    if box is not None:
        prompt += Prompt.box(*box)
    return prompt if mask is None else prompt + Prompt.mask(mask)


class Repvit(nn.Module):
    """RepViT as EdgeTAM holds it (facebookresearch/EdgeTAM, sam2/modeling/backbones/timm.py)."""

    def __init__(self):
        import timm

        super().__init__()
        self.body = timm.create_model("repvit_m1", features_only=True, out_indices=(0, 1, 2, 3))
        self.channel_list = self.body.feature_info.channels()[::-1]

    def forward(self, pixels):
        return list(self.body(pixels))


def shrink(config):
    """Brings a config of the sam2 package to the sizes of `sam2_keys.SIZES["nano"]`."""
    size = sam2_keys.SIZES["nano"]
    d = size.hidden_size
    config.image_size = size.image_size
    config.image_encoder.trunk.update(embed_dim=size.embed_dim, num_heads=size.heads, stages=list(size.blocks))
    config.image_encoder.trunk.update(global_att_blocks=list(size.global_blocks))
    config.image_encoder.neck.update(d_model=d, backbone_channel_list=[size.embed_dim * 2**i for i in (3, 2, 1, 0)])
    attention, encoder = config.memory_attention, config.memory_encoder
    attention.update(d_model=d, num_layers=1)
    attention.layer.update(d_model=d, dim_feedforward=16)
    attention.layer.self_attention.update(embedding_dim=d)
    attention.layer.cross_attention.update(embedding_dim=d, kv_in_dim=d)
    encoder.update(out_dim=d, in_dim=d)
    encoder.mask_downsampler.update(embed_dim=d)
    encoder.fuser.layer.update(dim=d)


def original(kind):
    """A network of the sam2 package with random weights; EdgeTAM is that of SAM 2 with another trunk, on images."""
    sam2 = pytest.importorskip("sam2", reason="the original code comes with the extra `reference`")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder

    file = "sam2.1/sam2.1_hiera_t.yaml" if kind == "hiera_nano_2.1" else "sam2/sam2_hiera_t.yaml"
    config = OmegaConf.load(Path(sam2.__file__).parent / "configs" / file).model
    config.sam_mask_decoder_extra_args = {  # as `build_sam2` adds them
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    if kind != "edgetam":
        shrink(config)
    network = instantiate(config)
    if kind == "edgetam":
        neck, trunk = network.image_encoder.neck, Repvit()
        levels = {"fpn_top_down_levels": neck.fpn_top_down_levels, "fpn_interp_model": neck.fpn_interp_model}
        neck = FpnNeck(neck.position_encoding, neck.d_model, trunk.channel_list, **levels)
        network.image_encoder = ImageEncoder(trunk, neck, scalp=1)
    seed_sam2(network)
    if kind == "edgetam":
        settle(network.image_encoder.trunk)
    return network.eval()


def settle(trunk):
    """Running statistics of one batch, else deep features of random weights drown every prompt."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        trunk.train()(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


@cache
def pair(kind):
    """The original's predictor, and ours with the same weights."""
    network = original(kind)
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    with pytest.warns(FutureWarning, match=r"torch\.jit\.script"):
        predictor = SAM2ImagePredictor(network)
    predictor._bb_feat_sizes = [(network.image_size // stride,) * 2 for stride in (4, 8, 16)]
    state = network.state_dict()
    recognised = sam2_keys.recognise({key: tensor.shape for key, tensor in state.items()})
    assert recognised == kind
    return predictor, Sam2.from_original(state, kind, Path("x.pt"), "cpu", torch.float32, kind)


def compare(kind, size, multimask_output, some=None):
    """Largest difference of logits and predicted IoU over (some of) the prompts, and the least between two prompts.

    Masks must be equal where the original's logits are clear of zero.
    """
    predictor, ours = pair(kind)
    image = picture(size)
    predictor.set_image(image.pixels)
    features = ours.encode([image])[0]
    worst, found = 0.0, []
    for name, (clicks, labels, box, mask) in prompts_for(size, ours.mask_size[0]).items():
        if some is not None and name not in some:
            continue
        theirs, iou, low = predictor.predict(
            clicks,
            None if labels is None else np.asarray(labels),
            None if box is None else np.asarray(box),
            None if mask is None else mask[None],
            multimask_output=multimask_output,
            return_logits=True,
        )
        prompt = as_prompt(clicks, labels, box, mask)
        result = predict(ours, features, [prompt], multimask_output=multimask_output)
        worst = max(worst, np.abs(result.logits.clip(-32, 32) - low).max(), np.abs(result.scores - iou).max())
        clear = np.abs(theirs) > TOLERANCE
        np.testing.assert_array_equal(result.masks[clear], theirs[clear] > 0, err_msg=name)
        found.append(low)
    apart = min(np.abs(a - b).max() for i, a in enumerate(found) for b in found[:i])
    return worst, apart


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["hiera_nano_2.1", "hiera_nano_2.0"])
def test_masks_are_those_of_the_sam2_package(kind, size, multimask_output):
    worst, apart = compare(kind, size, multimask_output)
    assert worst < TOLERANCE
    assert apart > 100 * TOLERANCE  # else a wrong prompt would pass


def test_edgetam_is_the_image_path_of_sam2_with_another_trunk():
    worst, apart = compare("edgetam", (300, 421), multimask_output=False, some=("click", "box", "clicks, box, mask"))
    assert worst < 5 * TOLERANCE  # of logits up to 30
    assert apart > 100 * TOLERANCE


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_a_single_mask_gives_way_where_it_is_unstable(threshold, monkeypatch):
    """At 0 the single mask always counts as stable, above 1 never: both ways are the original's."""
    predictor, ours = pair("hiera_nano_2.1")
    for decoder in (predictor.model.sam_mask_decoder, ours.network.mask_decoder):
        monkeypatch.setattr(decoder, "dynamic_multimask_stability_thresh", threshold)
    assert compare("hiera_nano_2.1", SIZES[0], multimask_output=False)[0] < TOLERANCE
    features, prompts = ours.encode([picture(SIZES[0])]), [[Prompt.point(50, 40)]]
    single, candidates = (ours.decode(features, prompts, several)[0] for several in (False, True))
    surest = candidates.logits[0, candidates.predicted_iou[0].argmax()]
    assert torch.equal(single.logits[0, 0], surest) == (threshold > 1)


def test_a_result_is_refined_as_in_the_sam2_package():
    predictor, ours = pair("hiera_nano_2.1")
    image = picture(SIZES[0])
    predictor.set_image(image.pixels)
    features = ours.encode([image])[0]
    click = (np.asarray([[50.0, 40.0]], np.float32), np.asarray([1]))
    _, _, low = predictor.predict(*click, multimask_output=False)
    _, iou, again = predictor.predict(*click, mask_input=low, multimask_output=False)
    first = predict(ours, features, [Prompt.point(50, 40)], multimask_output=False)
    second = predict(ours, features, [Prompt.point(50, 40) + Prompt.refine(first)], multimask_output=False)
    np.testing.assert_allclose(second.logits, again, atol=TOLERANCE)
    np.testing.assert_allclose(second.scores, iou, atol=TOLERANCE)


def test_mask_prompts_are_clamped_as_the_sam2_package_hands_logits_back():
    model = tiny_sam2()
    features = model.encode([picture(SIZES[0])])
    mask = np.where(np.arange(64)[:, None] > 20, 90.0, -70.0) * np.ones(64)
    logits = [model.decode(features, [[Prompt.mask(one)]], False)[0].logits for one in (mask, mask.clip(-32, 32))]
    assert torch.equal(*logits)


def test_a_click_with_label_0_is_another_prompt():
    """That it is the original's is in the comparison above."""
    model = tiny_sam2()
    features = model.encode([picture(SIZES[0])])
    prompts = [Prompt.point(50, 40, label) for label in (0, 1)]
    negative, positive = model.decode(features, [prompts], False)[0].logits
    assert (negative - positive).abs().max() > 0.01
    assert "lower the mask" in model.capabilities.notes["negative points"]


@pytest.mark.parametrize("make", [tiny_sam2, tiny_edgetam])
def test_it_is_a_model_that_decodes_a_company_as_each_alone(make):
    model = make()
    assert isinstance(model, Model)
    images = [picture(size) for size in SIZES[:2]]
    features = model.encode(images)
    prompts = [[as_prompt(*one) for one in prompts_for(image.size).values()] for image in images]
    together = model.decode(features, prompts, True)
    for one, some, decoded in zip(features, prompts, together, strict=True):
        assert decoded.logits.shape == (len(some), 3, 64, 64)
        for row, prompt in enumerate(some):
            alone = model.decode([one], [[prompt]], True)[0]
            torch.testing.assert_close(decoded.logits[row], alone.logits[0], atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(decoded.predicted_iou[row], alone.predicted_iou[0], atol=TOLERANCE, rtol=0)
            assert 0 <= alone.predicted_iou.min() <= alone.predicted_iou.max() <= 1


def test_a_crop_is_seen_as_an_image_of_its_own():
    model, image = tiny_sam2(), picture((150, 200))
    part = Image(np.ascontiguousarray(image.pixels[30:130, 50:180]))
    cropped, alone = model.encode([image], [(50, 30, 180, 130)])[0], model.encode([part])[0]
    for name in LEVELS:
        assert torch.equal(cropped.tensors[name], alone.tensors[name])
    prompts = ([[Prompt.point(90, 70)]], [[Prompt.point(40, 40)]])
    logits = [model.decode([f], p, False)[0].logits for f, p in zip((cropped, alone), prompts, strict=True)]
    torch.testing.assert_close(*logits, atol=TOLERANCE, rtol=0)


class Drawer(Sam2):
    """Answers each box, as it arrives in the model's frame, with logits that rise towards its middle."""

    def respond(self, features, image_rows, prompts, multimask_output):
        centres = (torch.arange(self.mask_size[0]) + 0.5) * self.input_size[0] / self.mask_size[0]
        x0, y0, x1, y1 = prompts.boxes[:, :, None, None].unbind(1)
        across = torch.minimum(centres[None, None] - x0, x1 - centres[None, None])
        down = torch.minimum(centres[None, :, None] - y0, y1 - centres[None, :, None])
        return torch.minimum(across, down)[:, None], torch.ones(len(prompts), 1)


def test_a_known_rectangle_lands_where_it_belongs():
    model, random = Drawer(tiny_sam2().network), np.random.default_rng(0)
    for _ in range(50):
        h, w = (int(side) for side in random.integers(20, 700, 2))
        x0, y0 = int(random.integers(0, w // 2)), int(random.integers(0, h // 2))
        x1, y1 = x0 + max(4, int(0.4 * w)), y0 + max(4, int(0.4 * h))
        image = Image(random.integers(0, 256, (h, w, 3), dtype=np.uint8))
        found = predict(model, model.encode([image])[0], [Prompt.box(x0, y0, x1, y1)]).masks[0]
        wanted = np.zeros((h, w), bool)
        wanted[y0:y1, x0:x1] = True
        assert (found & wanted).sum() / (found | wanted).sum() > 0.9, (h, w)


def test_many_prompts_hold_one_copy_of_the_fine_features(monkeypatch):
    model, seen = tiny_sam2(), []

    def answer_tokens(decoder, tokens, iou_at, image, position, sparse, finer):
        seen.append((len(image), len(finer[0])))
        return mask_tokens.answer_tokens(decoder, tokens, iou_at, image, position, sparse, finer)

    monkeypatch.setattr("anymask.models.sam2.answer_tokens", answer_tokens)
    features = model.encode([picture(SIZES[0]), picture(SIZES[1])])
    mask = np.zeros(SIZES[0], bool)  # a mask prompt is what the staged decoder leaves to the stock one
    model.decode(features[:1], [[Prompt.point(5 + i, 9) + Prompt.mask(mask) for i in range(64)]], True)
    assert seen == [(CHUNK, 1)] * (64 // CHUNK)
    seen.clear()
    model.decode(features, [[Prompt.point(5, 9)], [Prompt.point(5, 9), Prompt.point(7, 9)]], True)
    assert seen == [(3, 3)]


@pytest.mark.parametrize("make", [tiny_sam2, tiny_edgetam])
def test_each_part_learns_and_the_position_code_does_not(make):
    model = make()
    model.network.requires_grad_(True)
    features = model.embed(torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    points = torch.tensor([[[40.0, 50.0], [200.0, 90.0]]])
    prompts = PromptTensors(points, torch.tensor([[1, 0]]), torch.tensor([[9.0, 9, 99, 99]]), torch.zeros(1, 64, 64))
    logits, iou = model.respond(features, torch.tensor([0]), prompts, True)
    (logits.square().sum() + iou.sum()).backward()
    counted = [id(parameter) for part in model.parts.values() for parameter in part.parameters()]
    assert sorted(counted) == sorted(id(parameter) for parameter in model.network.parameters())
    still = {name for name, parameter in model.network.named_parameters() if parameter.grad is None}
    unused = ("pred_obj_score_head", "no_mask_embed", "output_hypernetworks_mlps.0", "neck.convs.0")
    assert all(any(part in name for part in unused) for name in still), still
    assert not any("positional" in name for name, _ in model.network.named_parameters())


def test_frozen_features_leave_nothing_of_the_decoder_without_gradient():
    """What `embed` runs belongs to the encoder: cached features would otherwise keep two layers from learning."""
    model = tiny_sam2()
    names = {name for name, _ in model.parts["decoder"].named_parameters()}
    assert not any(name.startswith("conv_s") for name in names)
    assert any(name.startswith("transformer.") for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny_sam2, tiny_edgetam])
def test_what_is_saved_loads_as_the_same(make, dtype, tmp_path, capfd):
    model = make()
    model.save(tmp_path)
    again = Sam2.from_folder(tmp_path, "cpu", dtype, "again")
    assert (again.name, again.dtype) == ("again", dtype)
    assert capfd.readouterr() == ("", "")
    features = [one.encode([picture(SIZES[0])]) for one in (model, again)]
    prompts = [[as_prompt(*one) for one in prompts_for(SIZES[0]).values()]]
    before, after = (one.decode(f, prompts, True)[0] for one, f in zip((model, again), features, strict=True))
    close = TOLERANCE if dtype == torch.float32 else 0.2
    assert (before.logits - after.logits).abs().max() <= close
    position = again.network.shared_image_embedding.positional_embedding
    assert torch.equal(position, model.network.shared_image_embedding.positional_embedding)
    assert {p.dtype for p in again.network.parameters()} == {dtype}


def test_an_original_saves_as_transformers_has_it(tmp_path):
    ours = pair("hiera_nano_2.1")[1]
    ours.save(tmp_path)
    again = Sam2.from_folder(tmp_path, "cpu", torch.float32, "again")
    state = again.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.network.state_dict().items())


def video_folder(folder, edge):
    """As on the hub: the video model, with its memory."""
    from transformers import EdgeTamVideoConfig, EdgeTamVideoModel, Sam2VideoConfig, Sam2VideoModel

    d = 32
    small = {"memory_attention_hidden_size": d, "memory_encoder_hidden_size": d, "memory_encoder_output_channels": d}
    small |= {"mask_downsampler_embed_dim": d, "memory_fuser_embed_dim": d, "memory_attention_num_layers": 1}
    small |= {"image_size": 256}
    if edge:
        small |= {"perceiver_resampler_hidden_size": d, "perceiver_resampler_attention_head_dim": d}
        network = EdgeTamVideoModel(EdgeTamVideoConfig(**tiny_edgetam_config(), **small))
    else:
        network = Sam2VideoModel(Sam2VideoConfig(**sam2_keys.config_of("hiera_nano_2.1"), **small))
    seed_sam2(network)
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("edge", [False, True])
def test_a_folder_of_the_video_model_gives_its_image_part(edge, tmp_path, capfd):
    network = video_folder(tmp_path, edge)
    said = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert said == ("edgetam_video" if edge else "sam2_video")
    capfd.readouterr()
    model = Sam2.from_folder(tmp_path, "cpu", torch.float32, "video")
    assert capfd.readouterr() == ("", "")
    wanted = network.state_dict()
    found = model.network.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    aside = set(wanted) - set(found)
    assert aside and all(name.startswith(sam2_keys.MEMORY) for name in aside)


def test_a_folder_in_shards_loads(tmp_path):
    model = tiny_sam2()
    model.network.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = Sam2.from_folder(tmp_path, "cpu", torch.float32, "again")
    state = model.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())


def test_a_folder_of_something_else_says_what_is_wrong(tmp_path):
    def load():
        Sam2.from_folder(tmp_path, "cpu", torch.float32, "x")

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        CheckpointError, match=r"must be of model_type sam2, sam2_video, edgetam, edgetam_video, got bert"
    ):
        load()
    model = tiny_sam2()
    model.network.config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load()


def test_tensors_that_differ_are_named(tmp_path):
    model = tiny_sam2()
    state = model.network.state_dict()
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.surplus"] = torch.zeros(1)
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 7)
    model.network.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as caught:
        Sam2.from_folder(tmp_path, "cpu", torch.float32, "x")
    assert str(caught.value) == (
        f"{tmp_path} is no sam2 as its config.json says: 1 tensors missing (mask_decoder.iou_token.weight); 1 tensors"
        " not known (mask_decoder.surplus); 1 tensors of another shape"
        " (prompt_encoder.no_mask_embed.weight [1, 7] for [1, 32])"
    )


def test_an_original_with_other_tensors_is_refused(tmp_path):
    state = original("hiera_nano_2.1").state_dict()
    state["sam_mask_decoder.surplus"] = state.pop("sam_mask_decoder.iou_token.weight")
    del state["sam_prompt_encoder.point_embeddings.3.weight"]
    torch.save({"model": state}, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match=r"wrong\.pt is no hiera_nano_2\.1 of SAM 2: 1 tensors missing") as caught:
        Sam2.from_original(
            read_state(tmp_path / "wrong.pt"), "hiera_nano_2.1", tmp_path / "wrong.pt", "cpu", torch.float32, "x"
        )
    assert "mask_decoder.surplus" in str(caught.value)
    assert "prompt_encoder.point_embed.weight [3, 32] for [4, 32]" in str(caught.value)
