import json

import numpy as np
import pytest
import torch

from anymask.models import mobile, mobile_keys
from anymask.models.checkpoints import read_state
from anymask.models.protocol import CheckpointError
from anymask.prompting import predict
from anymask.types import Image, Prompt
from originals import (
    assert_equal_weights,
    assert_same,
    hq_package,
    original_light_hq,
    original_mobile,
    picture,
    reference,
    sam_package,
)
from tiny_families import tiny_mobile, tiny_mobile_config

SIZES = ((60, 97), (213, 150), (77, 301))  # landscape, portrait, odd and larger than the input


def prompts(size):
    h, w = size
    clicks = Prompt.points([(0.2 * w, 0.3 * h), (0.7 * w, 0.5 * h)], [1, 0])
    box = Prompt.box(0.15 * w, 0.1 * h, 0.8 * w, 0.75 * h)
    mask = Prompt.mask(np.random.default_rng(7).normal(0, 4, (32, 32)).astype(np.float32))
    return [Prompt.point(0.3 * w, 0.6 * h), clicks, box, mask, mask + box + clicks]


def converted(original, path, kind):
    """Our model from a file that the original's author would have saved."""
    torch.save(original.state_dict(), path)
    network = mobile.build(tiny_mobile_config(kind == mobile_keys.HQ_KIND))
    mobile.fill(network, mobile_keys.renamed(read_state(path), kind), torch.float32, path, kind)
    return mobile.MobileSam(network)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    original = original_mobile()
    return original, converted(original, tmp_path_factory.mktemp("mobile") / "tiny.pt", "vit_t")


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_those_of_the_original(pair, size):
    original, model = pair
    predictor, image = sam_package().SamPredictor(original), picture(size)
    predictor.set_image(image.pixels)
    features = model.encode([image])[0]
    torch.testing.assert_close(features.tensors["image_embedding"], predictor.features, atol=1e-4, rtol=0)
    for prompt in prompts(size):
        for multimask in (True, False):
            ours = predict(model, features, [prompt], multimask_output=multimask)
            assert_same(ours, reference(predictor, prompt, multimask))


def test_masks_of_light_hq_are_those_of_its_authors(tmp_path):
    original, size = original_light_hq(), SIZES[0]
    model = converted(original, tmp_path / "tiny.pth", "hq_vit_t")
    predictor, image = hq_package().SamPredictor(original), picture(size)
    predictor.set_image(image.pixels)
    features = model.encode([image])[0]
    for prompt in prompts(size):
        single = predict(model, features, [prompt], multimask_output=False)
        assert_same(single, reference(predictor, prompt, False))
        several = predict(model, features, [prompt], multimask_output=True)
        assert_same(several[0], reference(predictor, prompt, True))  # the authors give the surest alone


def test_random_weights_listen_to_every_kind_of_prompt(pair):
    _, model = pair
    features = model.encode([picture((60, 97))])
    answers = [model.decode(features, [[prompt]], False)[0].logits for prompt in prompts((60, 97))]
    gaps = [float((one - other).abs().max()) for i, one in enumerate(answers) for other in answers[:i]]
    assert min(gaps) > 0.01, gaps


def test_the_network_runs_as_transformers_runs_it():
    model, image, prompt = tiny_mobile(), picture((60, 97)), prompts((60, 97))[1]
    features = model.encode([image])[0]
    ours = model.decode([features], [[prompt]], True)[0]
    points = torch.from_numpy(features.frame.to_model(prompt.point_coords))[None, None]
    with torch.no_grad():
        output = model.network(
            pixel_values=model.preprocess(image, features.frame)[None],
            input_points=points,
            input_labels=torch.from_numpy(prompt.point_labels)[None, None],
        )
    torch.testing.assert_close(ours.logits, output.pred_masks[0])


@pytest.mark.parametrize("high_quality", [False, True])
def test_saved_and_loaded_again_it_is_equal(high_quality, tmp_path):
    model, image = tiny_mobile(high_quality), picture((60, 97))
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mobile_sam"
    again = mobile.MobileSam.from_folder(tmp_path, "cpu", torch.float32, "again")
    assert (again.name, again.family, again.input_size, again.mask_size) == ("again", "mobile", (128, 128), (32, 32))
    first, second = (one.decode(one.encode([image]), [prompts(image.size)], True)[0] for one in (model, again))
    torch.testing.assert_close(first.logits, second.logits)
    torch.testing.assert_close(first.predicted_iou, second.predicted_iou)
    assert_equal_weights(again.network, model.network)


def test_an_original_file_of_full_size_is_read(tmp_path):
    path = tmp_path / "mobile_sam.pt"
    shapes = full_size()
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, path)
    state = read_state(path)
    kind = mobile_keys.recognise({name: tensor.shape for name, tensor in state.items()})
    model = mobile.MobileSam.from_original(state, kind, path, "cpu", torch.float32, "")
    assert (model.name, model.input_size, model.mask_size) == ("mobile", (1024, 1024), (256, 256))
    del state["image_encoder.neck.0.weight"]
    with pytest.raises(
        CheckpointError, match=r"mobile_sam\.pt is no MobileSAM vit_t: 1 tensors missing \(vision_encoder"
    ):
        mobile.MobileSam.from_original(state, kind, path, "cpu", torch.float32, "")


def full_size():
    encoder = hq_package().sam_model_registry["vit_tiny"]().image_encoder.state_dict()
    with torch.device("meta"):
        heads = sam_package().sam_model_registry["vit_b"]().state_dict()
    shapes = {f"image_encoder.{name}": tensor.shape for name, tensor in encoder.items()}
    return shapes | {name: tensor.shape for name, tensor in heads.items() if not name.startswith("image_encoder.")}


def test_folders_that_do_not_fit_are_refused(tmp_path):
    model = tiny_mobile()
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "depths": [1, 1, 3, 1]}))
    with pytest.raises(
        CheckpointError, match=r"no mobile_sam as its config\.json says: 19 tensors missing \(vision_encoder\.vit"
    ):
        mobile.MobileSam.from_folder(tmp_path, "cpu", torch.float32, "")
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    with pytest.raises(CheckpointError, match=r"config\.json must be of model_type mobile_sam, got sam"):
        mobile.MobileSam.from_folder(tmp_path, "cpu", torch.float32, "")


def test_bfloat16_gives_nearly_the_same(tmp_path):
    model, image = tiny_mobile(), picture((60, 97))
    model.save(tmp_path)
    half = mobile.MobileSam.from_folder(tmp_path, "cpu", torch.bfloat16, "")
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}
    exact, rough = (one.decode(one.encode([image]), [prompts(image.size)], True)[0] for one in (model, half))
    assert (exact.logits - rough.logits).abs().mean() < 0.1 * exact.logits.std()


def test_to_load_it_changes_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    mobile.build(tiny_mobile_config())
    assert torch.equal(torch.rand(1), expected)


def test_gradients_reach_every_part_also_after_use():
    """timm keeps attention biases from one call to the next: they must not outlive their weights."""
    model, image = tiny_mobile(), picture((60, 97))
    before = model.encode([image])[0].tensors["image_embedding"]
    for part in model.parts.values():
        part.requires_grad_(True)
    pixels = model.preprocess(image, model.frame(image.size))[None]
    features = model.embed(pixels)
    given = model.tensors([model.frame(image.size)], [prompts(image.size)[4]])
    point = model.tensors([model.frame(image.size)], [prompts(image.size)[0]])
    rows = torch.tensor([0])
    answers = [model.respond(features, rows, some, several) for some in (given, point) for several in (True, False)]
    sum(logits.square().mean() + iou.square().mean() for logits, iou in answers).backward()
    assert not [name for name, parameter in model.network.named_parameters() if parameter.grad is None]
    assert not any("positional_embedding" in name for name, _ in model.network.named_parameters())
    with torch.no_grad():
        for name, parameter in model.parts["encoder"].named_parameters():
            if name.endswith("attention_biases"):
                parameter += torch.linspace(0, 3, parameter.numel()).view_as(parameter)
    after = model.encode([image])[0].tensors["image_embedding"]
    assert (before - after).abs().max() > 1e-3


def test_a_rectangle_lands_where_it_belongs(monkeypatch):
    """The network finds what is bright in the input, within the box of the prompt: both ways of coordinates count."""
    model = tiny_mobile()
    model.input_size, model.mask_size = (1024, 1024), (256, 256)

    def respond(features, image_rows, given, multimask_output):
        bright = torch.nn.functional.adaptive_avg_pool2d(features["pixels"].mean(1), 256)[image_rows] - 0.3
        cells = (torch.arange(256) + 0.5) * 4
        x0, y0, x1, y1 = (given.boxes[:, i, None, None] for i in range(4))
        x, y = cells[None, None, :], cells[None, :, None]
        inside = torch.minimum(torch.minimum(x - x0, x1 - x), torch.minimum(y - y0, y1 - y))
        return torch.minimum(bright, inside)[:, None], torch.ones(len(image_rows), 1)

    monkeypatch.setattr(model, "embed", lambda pixels: {"pixels": pixels})
    monkeypatch.setattr(model, "respond", respond)
    rng = np.random.default_rng(4)
    for _ in range(50):
        h, w = (int(side) for side in rng.integers(20, 700, 2))
        x0, y0 = (int(side * rng.uniform(0, 0.5)) for side in (w, h))
        x1, y1 = (low + max(8, int(side * rng.uniform(0.3, 0.5))) for low, side in ((x0, w), (y0, h)))
        pixels = np.zeros((h, w, 3), np.uint8)
        pixels[y0:y1, x0:x1] = 255
        mask = predict(model, model.encode([Image(pixels)])[0], [Prompt.box(x0, y0, x1, y1)]).masks[0]
        truth = pixels[..., 0] > 0
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9, (h, w, x0, y0, x1, y1)
