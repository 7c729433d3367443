import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig, SamHQModel, SamModel

from anymask.models import sam, sam_keys
from anymask.models.checkpoints import read_state
from anymask.models.decode import PromptTensors
from anymask.models.protocol import CheckpointError
from anymask.prompting import predict
from anymask.types import Image, Prompt
from originals import (
    assert_equal_weights,
    assert_same,
    hq_package,
    original_hq,
    original_sam,
    picture,
    reference,
    sam_package,
)
from tiny_families import tiny_sam, tiny_sam_config, tiny_sam_hq

SIZES = ((60, 97), (213, 150), (128, 128), (77, 301))  # landscape, portrait, the input itself, odd and larger
KINDS = ("point", "clicks", "box", "mask", "box and clicks", "mask and point", "everything")


def prompts(size, side=32):
    """One of each kind, in pixels of an image of this size."""
    h, w = size
    logits = np.random.default_rng(7).normal(0, 4, (side, side)).astype(np.float32)
    point, mask = Prompt.point(0.3 * w, 0.6 * h), Prompt.mask(logits)
    clicks = Prompt.points([(0.2 * w, 0.3 * h), (0.7 * w, 0.5 * h), (0.9 * w, 0.1 * h)], [1, 0, 1])
    box = Prompt.box(0.15 * w, 0.1 * h, 0.8 * w, 0.75 * h)
    return dict(zip(KINDS, (point, clicks, box, mask, box + clicks, mask + point, mask + box + clicks), strict=True))


def converted(original, path, kind, build_config=SamConfig, **decoder):
    """Our model from a file that the original's author would have saved."""
    torch.save(original.state_dict(), path)
    network = sam.build(build_config(**tiny_sam_config(**decoder)))
    sam.fill(network, sam_keys.renamed(read_state(path), kind), torch.float32, path, kind)
    return sam.Sam(network)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    original = original_sam()
    return original, converted(original, tmp_path_factory.mktemp("sam") / "tiny.pth", "vit_b")


@pytest.fixture(scope="module")
def hq_pair(tmp_path_factory):
    original = original_hq()
    path = tmp_path_factory.mktemp("hq") / "tiny.pth"
    return original, converted(original, path, "hq_vit_b", sam.SamHQConfig, vit_dim=32)


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_those_of_segment_anything(pair, size):
    original, model = pair
    predictor, image = sam_package().SamPredictor(original), picture(size)
    predictor.set_image(image.pixels)
    features = model.encode([image])[0]
    torch.testing.assert_close(features.tensors["image_embedding"], predictor.features, atol=1e-4, rtol=0)
    for prompt in prompts(size).values():
        for multimask in (True, False):
            ours = predict(model, features, [prompt], multimask_output=multimask)
            assert_same(ours, reference(predictor, prompt, multimask))


def test_random_weights_listen_to_every_kind_of_prompt(pair):
    _, model = pair
    features = model.encode([picture((60, 97))])
    answers = [model.decode(features, [[prompt]], False)[0].logits for prompt in prompts((60, 97)).values()]
    gaps = [float((one - other).abs().max()) for i, one in enumerate(answers) for other in answers[:i]]
    assert min(gaps) > 0.01, gaps


@pytest.mark.parametrize("size", SIZES[:2])
def test_hq_masks_are_those_of_its_authors(hq_pair, size):
    original, model = hq_pair
    predictor, image = hq_package().SamPredictor(original), picture(size)
    predictor.set_image(image.pixels)
    features = model.encode([image])[0]
    for prompt in prompts(size).values():
        single = predict(model, features, [prompt], multimask_output=False)
        assert_same(single, reference(predictor, prompt, False))
        several = predict(model, features, [prompt], multimask_output=True)
        assert (np.diff(several.scores) <= 0).all()
        assert_same(several[0], reference(predictor, prompt, True))  # the authors give the surest alone


def stock(model, image, features, prompt, multimask):
    points = torch.from_numpy(features.frame.to_model(prompt.point_coords))[None, None]
    labels = torch.from_numpy(prompt.point_labels)[None, None]
    pixels = model.preprocess(image, features.frame)[None]
    with torch.no_grad():
        output = model.network(
            pixel_values=pixels, input_points=points, input_labels=labels, multimask_output=multimask
        )
    return output.pred_masks[0], output.iou_scores[0]


@pytest.mark.parametrize("multimask", [True, False])
def test_masks_are_those_of_transformers(multimask):
    model, image = tiny_sam(), picture((60, 97))
    features, prompt = model.encode([image])[0], prompts((60, 97))["clicks"]
    ours, (logits, iou) = (
        model.decode([features], [[prompt]], multimask)[0],
        stock(model, image, features, prompt, multimask),
    )
    torch.testing.assert_close(ours.logits, logits)
    torch.testing.assert_close(ours.predicted_iou, iou)


def mend(decoder):
    """Upscales what comes out of the transformer, as HQ-SAM's authors do; transformers 5.23 upscales what went in."""
    seen = {}

    def keep(module, given, output):
        seen["cells"] = output[1][:, 0].transpose(1, 2)

    def replace(module, given):
        return (seen["cells"].unflatten(2, given[0].shape[-2:]),)

    decoder.transformer.register_forward_hook(keep)
    decoder.upscale_conv1.register_forward_pre_hook(replace)


@pytest.mark.parametrize("multimask", [True, False])
def test_hq_masks_are_those_of_transformers_once_it_is_mended(multimask):
    model, image = tiny_sam_hq(), picture((60, 97))
    features, prompt = model.encode([image])[0], prompts((60, 97))["clicks"]
    ours = model.decode([features], [[prompt]], multimask)[0]
    mend(model.network.mask_decoder)
    logits, iou = stock(model, image, features, prompt, multimask)
    torch.testing.assert_close(ours.logits, logits)
    torch.testing.assert_close(ours.predicted_iou, iou)


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam_hq])
def test_many_prompts_on_many_images_are_each_alone(make):
    model, sizes = make(), SIZES[:3]
    features = model.encode([picture(size, seed) for seed, size in enumerate(sizes)])
    several = [[*prompts(size).values()][i:] for i, size in enumerate(sizes)]
    together = model.decode(features, several, True)
    for one, some, result in zip(features, several, together, strict=True):
        alone = [model.decode([one], [[prompt]], True)[0] for prompt in some]
        torch.testing.assert_close(result.logits, torch.cat([part.logits for part in alone]))
        torch.testing.assert_close(result.predicted_iou, torch.cat([part.predicted_iou for part in alone]))


def points_at(coords, labels):
    return PromptTensors(torch.tensor(coords, dtype=torch.float32), torch.tensor(labels))


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam_hq])
def test_gradients_reach_every_part_but_the_positional_embedding(make):
    model = make()
    for part in model.parts.values():
        part.requires_grad_(True)
    assert set(model.parts) == {"encoder", "prompt_encoder", "decoder"}
    image = picture((60, 97))
    features = model.embed(model.preprocess(image, model.frame(image.size))[None])
    given = points_at([[[30.0, 40.0]], [[90.0, 60.0]]], [[1], [0]])
    rows = torch.tensor([0, 0])
    logits, iou = model.respond(features, rows, given, True)
    with_mask = PromptTensors(given.point_coords, given.point_labels, torch.ones(2, 4) * 50, torch.ones(2, 32, 32))
    single, _ = model.respond(features, rows, with_mask, False)
    (logits.square().mean() + iou.square().mean() + single.square().mean()).backward()
    names = {name for name, parameter in model.network.named_parameters() if parameter.grad is None}
    assert not names
    assert not any("positional_embedding" in name for name, _ in model.network.named_parameters())


def test_negative_clicks_learn_to_lower_the_mask_around_them():
    """Two bright squares belong together, unless one of them is clicked away."""
    torch.manual_seed(0)
    model = tiny_sam()
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[32:96, 8:56], pixels[32:96, 72:120] = 255, 255
    with torch.no_grad():
        features = model.embed(model.preprocess(Image(pixels), model.frame((128, 128)))[None])
    left, right = ((torch.zeros(32, 32)) for _ in range(2))
    left[8:24, 2:14], right[8:24, 18:30] = 1, 1
    given = points_at([[[32, 64], [100, 64]]] * 2 + [[[100, 64], [32, 64]]] * 2, [[1, 1], [1, 0]] * 2)
    target = torch.stack([left + right, left, left + right, right])
    learned = [*model.parts["decoder"].requires_grad_(True).parameters()]
    learned += model.parts["prompt_encoder"].requires_grad_(True).parameters()
    optimizer = torch.optim.Adam(learned, lr=3e-3)
    for _ in range(100):
        logits = model.respond(features, torch.zeros(4, dtype=torch.long), given, False)[0][:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoded = model.encode([Image(pixels)])[0]
    both = predict(model, encoded, [Prompt.points([(32, 64), (100, 64)])], multimask_output=False)
    one = predict(model, encoded, [Prompt.points([(32, 64), (100, 64)], [1, 0])], multimask_output=False)
    around = np.s_[0, 56:72, 92:108]
    assert both.masks[around].mean() > 0.9 > 0.1 > one.masks[around].mean()
    assert one.masks[0, 56:72, 24:40].mean() > 0.9


def seen_rectangle(model, monkeypatch):
    """The network finds what is bright in the input, within the box of the prompt: both ways of coordinates count."""

    def respond(features, image_rows, prompts, multimask_output):
        bright = torch.nn.functional.adaptive_avg_pool2d(features["pixels"].mean(1), model.mask_size)[image_rows] - 0.3
        down, across = ((torch.arange(n) + 0.5) * i / n for n, i in zip(model.mask_size, model.input_size, strict=True))
        x0, y0, x1, y1 = (prompts.boxes[:, i, None, None] for i in range(4))
        x, y = across[None, None, :], down[None, :, None]
        inside = torch.minimum(torch.minimum(x - x0, x1 - x), torch.minimum(y - y0, y1 - y))
        return torch.minimum(bright, inside)[:, None], torch.ones(len(image_rows), 1)

    monkeypatch.setattr(model, "embed", lambda pixels: {"pixels": pixels})
    monkeypatch.setattr(model, "respond", respond)
    return model


def test_a_rectangle_lands_where_it_belongs(monkeypatch):
    config = tiny_sam_config()
    for part in ("vision_config", "prompt_encoder_config"):
        config[part] |= {"image_size": 1024}
    rectangles_land(seen_rectangle(sam.Sam(SamModel(SamConfig(**config))), monkeypatch))


def rectangles_land(model):
    rng = np.random.default_rng(3)
    for _ in range(50):
        h, w = (int(side) for side in rng.integers(20, 700, 2))
        x0, y0 = (int(side * rng.uniform(0, 0.5)) for side in (w, h))
        x1, y1 = (low + max(8, int(side * rng.uniform(0.3, 0.5))) for low, side in ((x0, w), (y0, h)))
        pixels = np.zeros((h, w, 3), np.uint8)
        pixels[y0:y1, x0:x1] = 255
        features = model.encode([Image(pixels)])[0]
        mask = predict(model, features, [Prompt.box(x0, y0, x1, y1)]).masks[0]
        truth = pixels[..., 0] > 0
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9, (h, w, x0, y0, x1, y1)


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam_hq])
def test_saved_and_loaded_again_it_is_equal(make, tmp_path):
    model, image = make(), picture((60, 97))
    model.save(tmp_path)
    again = sam.Sam.from_folder(tmp_path, "cpu", torch.float32, "again")
    assert (again.name, again.family, again.input_size, again.mask_size) == ("again", "sam", (128, 128), (32, 32))
    some = [[*prompts(image.size).values()]]
    first, second = (one.decode(one.encode([image]), some, True)[0] for one in (model, again))
    torch.testing.assert_close(first.logits, second.logits)
    torch.testing.assert_close(first.predicted_iou, second.predicted_iou)
    assert_equal_weights(again.network, model.network)


@pytest.mark.parametrize(("make", "stock_class"), [(tiny_sam, SamModel), (tiny_sam_hq, SamHQModel)])
def test_transformers_reads_what_is_saved(make, stock_class, tmp_path):
    model = make()
    model.save(tmp_path)
    network, info = stock_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_equal_weights(network, model.network)


def test_a_folder_of_transformers_is_read_in_every_layout(tmp_path):
    network, image = SamModel(SamConfig(**tiny_sam_config())), picture((60, 97))
    expected = sam.Sam(network).encode([image])[0].tensors["image_embedding"]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    names = sorted(state)
    shards = {"model-1.safetensors": names[:50], "model-2.safetensors": names[50:]}

    def reads(files, write, index=""):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        network.config.save_pretrained(folder)
        for file, held in files.items():
            write({name: state[name] for name in held}, folder / file)
        if index:
            weight_map = {name: file for file, held in files.items() for name in held}
            (folder / index).write_text(json.dumps({"weight_map": weight_map}))
        loaded = sam.Sam.from_folder(folder, "cpu", torch.float32, "").encode([image])[0]
        return torch.equal(loaded.tensors["image_embedding"], expected)

    assert reads({"model.safetensors": names}, save_file)
    assert reads({"pytorch_model.bin": names}, torch.save)
    assert reads({"model.safetensors": [n for n in names if "shared_embedding" not in n]}, save_file)
    assert reads(shards, save_file, "model.safetensors.index.json")


def test_weights_are_in_the_format_asked_for_and_places_stay_fine(tmp_path):
    model, image = tiny_sam(), picture((60, 97))
    model.save(tmp_path)
    half = sam.Sam.from_folder(tmp_path, "cpu", torch.bfloat16, "")
    assert half.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}
    assert half.network.shared_image_embedding.positional_embedding.dtype == torch.float32
    some = [[*prompts(image.size).values()]]
    exact, rough = (one.decode(one.encode([image]), some, True)[0] for one in (model, half))
    assert rough.logits.dtype == torch.float32
    assert (exact.logits - rough.logits).abs().mean() < 0.1 * exact.logits.std()


def weightless(shapes):
    """Tensors of any size in one number's memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def full_size(kind, side=1024):
    package = hq_package() if kind.startswith("hq_") else sam_package()
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in package.sam_model_registry[kind.removeprefix("hq_")]().state_dict().items()}
    cells, full = side // 16, "image_encoder.blocks.2.attn.rel_pos"
    for name, shape in shapes.items():
        if name.endswith("pos_embed"):
            shapes[name] = (1, cells, cells, shape[-1])
        elif shape[0] == 127 and "rel_pos" in name:
            shapes[name] = (2 * cells - 1, shape[1])
    assert f"{full}_h" in shapes
    return weightless(shapes)


@pytest.mark.parametrize(("kind", "side"), [("vit_b", 1024), ("vit_h", 1024), ("hq_vit_l", 1024), ("vit_b", 256)])
def test_a_fine_tuned_file_of_full_size_is_read(kind, side, tmp_path):
    """MedSAM has the plain names; others wrap them, and SAM-Med2D's has an input of 256."""
    path = tmp_path / "fine_tuned.pth"
    torch.save({"model": full_size(kind, side), "epoch": 3}, path)
    state = read_state(path)
    found = sam_keys.recognise({name: tensor.shape for name, tensor in state.items()})
    assert found == kind
    model = sam.Sam.from_original(state, found, path, "cpu", torch.float32, "medsam")
    assert (model.name, model.input_size, model.mask_size) == ("medsam", (side, side), (side // 4, side // 4))


def test_a_file_of_another_network_is_refused_by_its_first_differing_keys(tmp_path):
    state = full_size("vit_b")
    del state["mask_decoder.iou_token.weight"]
    state["image_encoder.blocks.0.Adapter.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        sam.Sam.from_original(state, "vit_b", tmp_path / "other.pth", "cpu", torch.float32, "")
    assert str(error.value) == (
        f"{tmp_path / 'other.pth'} is no SAM vit_b: 1 tensors missing (mask_decoder.iou_token.weight);"
        " 1 tensors not known (vision_encoder.layers.0.Adapter.weight)"
    )


def test_a_folder_whose_weights_differ_from_its_config_is_refused(tmp_path):
    tiny_sam().save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["vision_encoder.pos_embed"]
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 64)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        sam.Sam.from_folder(tmp_path, "cpu", torch.float32, "")
    assert str(error.value) == (
        f"{tmp_path} is no sam as its config.json says: 1 tensors missing (vision_encoder.pos_embed);"
        " 1 tensors of another shape (mask_decoder.iou_token.weight [1, 64] for [1, 32])"
    )


def test_a_folder_without_weights_or_of_another_family_is_refused(tmp_path):
    SamConfig(**tiny_sam_config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors or pytorch_model\.bin, whole"):
        sam.Sam.from_folder(tmp_path, "cpu", torch.float32, "")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"config\.json must be of model_type sam, sam_hq, got bert"):
        sam.Sam.from_folder(tmp_path, "cpu", torch.float32, "")


def test_what_is_understood_is_said():
    model = tiny_sam()
    can = model.capabilities
    assert (can.points, can.boxes, can.masks, can.text, can.exemplars) == (True, True, True, False, False)
    assert {"negative points", "negative boxes", "boxes", "masks", "text", "negative text"} <= can.notes.keys()
    with pytest.raises(ValueError, match="tiny-sam knows no text"):
        model.encode_text([Prompt.text("dog")])
