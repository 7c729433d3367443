"""Other input sizes and windows: what is native stays, what is not equals the original code built for it."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch.nn import functional
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)

from anymask.cli.main import main
from anymask.models import sam_keys
from anymask.models.image_sizes import read_size
from anymask.models.load import load
from anymask.models.pocket import PocketModel
from anymask.models.pocket_network import PocketOutput
from anymask.models.promptable import PromptTensors
from anymask.models.sam import Sam, image_position
from anymask.models.sam2 import Sam2
from anymask.prompting import predict
from anymask.training import interaction
from anymask.types import Image, Prompt
from oracles import write_set
from originals import assert_same, original_sam, picture, reference, sam_package
from tiny import tiny_model
from tiny_families import (
    tiny_edgetam,
    tiny_mobile,
    tiny_sam,
    tiny_sam2,
    tiny_sam_config,
    tiny_sam_hq,
)
from tiny_sam3 import tiny_sam3

FAMILIES = {
    "sam": tiny_sam,
    "sam-hq": tiny_sam_hq,
    "mobile": tiny_mobile,
    "light-hq": lambda: tiny_mobile(high_quality=True),
    "sam2": tiny_sam2,
    "edgetam": tiny_edgetam,
    "pocket": tiny_model,
}
OTHERS = [(192, 192), (96, 160), (288, 64)]  # square, landscape, portrait
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_size = pytest.mark.parametrize("size", OTHERS, ids=str)


def exactly(message):
    return f"^{re.escape(message)}$"


def prompts_for(model, image):
    """Every kind, each alone and together, in pixels of the image; a mask in the frame of the model."""
    h, w = image.size
    mask = Prompt.mask(np.random.default_rng(7).normal(0, 4, model.mask_size).astype(np.float32))
    point, box = Prompt.point(0.3 * w, 0.6 * h), Prompt.box(0.15 * w, 0.1 * h, 0.8 * w, 0.75 * h)
    clicks = Prompt.points([(0.2 * w, 0.3 * h), (0.7 * w, 0.5 * h), (0.9 * w, 0.1 * h)], [1, 0, 1])
    return [point, clicks, box, mask, box + clicks, mask + point, mask + box + clicks]


def answers(model, image):
    return model.decode(model.encode([image]), [prompts_for(model, image)], False)[0]


# --- the size as it is given


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (512, (512, 512)),
        ("512", (512, 512)),
        ("768x1024", (768, 1024)),
        ("64X96", (64, 96)),
        ((768, 1024), (768, 1024)),
    ],
)
def test_a_size_is_a_side_or_height_by_width(given, size):
    assert read_size(given) == size


@pytest.mark.parametrize("given", ["", "abc", "512x", "1x2x3", "-512", "51.2", -4, (1, 2, 3), (512, -1)])
def test_what_is_no_size_is_refused(given):
    message = f"image_size must be a side or height x width, as 512 or 768x1024, got {given!r}"
    with pytest.raises(ValueError, match=exactly(message)):
        read_size(given)


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        (
            "sam",
            (500, 770),
            "tiny-sam must be in multiples of 16 from 64 to 4096 pixels, got 500x770: nearest is 496x768",
        ),
        (
            "mobile",
            (1000, 1000),
            "tiny-mobile must be in multiples of 16 from 64 to 4096 pixels, got 1000: nearest is 992",
        ),
        (
            "sam2",
            (512, 528),
            "tiny-sam2 must be in multiples of 32 from 64 to 4096 pixels, got 512x528: nearest is 512",
        ),
        (
            "edgetam",
            (48, 64),
            "tiny-edgetam must be in multiples of 32 from 64 to 4096 pixels, got 48x64: nearest is 64",
        ),
        (
            "pocket",
            (384, 9000),
            "pocket must be in multiples of 32 from 64 to 4096 pixels, got 384x9000: nearest is 384x4096",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(family, size, message):
    model = FAMILIES[family]()
    before = model.input_size
    with pytest.raises(ValueError, match=exactly(f"image_size for {message}")):
        model.set_input_size(size)
    assert model.input_size == before


def test_sam3_has_one_size():
    model = tiny_sam3()
    message = f"image_size is for sam, mobile, sam2 and pocket: {model.name} has one input size alone"
    with pytest.raises(ValueError, match=exactly(message)):
        model.set_input_size((112, 112))


@pytest.mark.parametrize("family", ["mobile", "sam2", "pocket"])
def test_windows_are_for_sam(family):
    model = FAMILIES[family]()
    message = f"window_size is for sam: the windows of {model.name} cannot be changed"
    with pytest.raises(ValueError, match=exactly(message)):
        model.set_window_size(7)


@pytest.mark.parametrize("cells", [-1, 0, 1, 9])
def test_windows_are_within_the_input(cells):
    message = f"window_size for tiny-sam must be from 2 to 8 cells of 16 pixels at an input of 128x128, got {cells}"
    with pytest.raises(ValueError, match=exactly(message)):
        tiny_sam().set_window_size(cells)


# --- the native size


@every_family
def test_at_the_native_size_nothing_changes(family):
    model, untouched, image = FAMILIES[family](), FAMILIES[family](), picture((60, 97))
    model.set_input_size(untouched.input_size)
    if family in ("sam", "sam-hq"):
        model.set_window_size(3)
    ours, theirs = answers(model, image), answers(untouched, image)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.predicted_iou, theirs.predicted_iou)


# --- the original code at the same size


def resized_weights(original, side, window):
    """Those of a network for 128 pixels and windows of 3, for another: bicubic positions, linear tables."""
    weights = original.state_dict()
    place, cells = weights["image_encoder.pos_embed"].permute(0, 3, 1, 2), (side // 16, side // 16)
    weights["image_encoder.pos_embed"] = functional.interpolate(place, cells, mode="bicubic").permute(0, 2, 3, 1)
    for name in [name for name in weights if "rel_pos" in name]:
        length = 2 * (window if ".0." in name else cells[0]) - 1
        weights[name] = functional.interpolate(weights[name].T[None], length, mode="linear")[0].T
    return weights


def of_original(original):
    model = Sam(SamModel(SamConfig(**tiny_sam_config())), name="tiny-sam")
    model.network.load_state_dict(sam_keys.renamed(original.state_dict(), "vit_b"))
    return model


@pytest.mark.parametrize(("side", "window"), [(192, 3), (64, 3), (128, 5), (192, 2), (256, 16)])
def test_sam_at_another_size_is_segment_anything_built_for_it(side, window):
    native, other = original_sam(), original_sam(side, window)
    other.load_state_dict(resized_weights(native, side, window))
    model = of_original(native)
    model.set_input_size((side, side))
    model.set_window_size(min(window, side // 16))
    predictor, image = sam_package().SamPredictor(other), picture((60, 97))
    predictor.set_image(image.pixels)
    features = model.encode([image])[0]
    torch.testing.assert_close(features.tensors["image_embedding"], predictor.features, atol=1e-4, rtol=0)
    for prompt in prompts_for(model, image):
        ours = predict(model, features, [prompt], multimask_output=True)
        assert_same(ours, reference(predictor, prompt, True))


@every_size
def test_sam_in_any_rectangle_is_what_the_modules_of_segment_anything_give(size):
    """The package builds squares, but its modules take any: its prompt encoder divides each axis by its own side."""
    original, image = original_sam(), picture((60, 97))
    model, grid = of_original(original), (size[0] // 16, size[1] // 16)
    place = original.image_encoder.pos_embed.detach().permute(0, 3, 1, 2)
    place = functional.interpolate(place, grid, mode="bicubic").permute(0, 2, 3, 1)
    original.image_encoder.pos_embed = torch.nn.Parameter(place)
    original.prompt_encoder.input_image_size, original.prompt_encoder.image_embedding_size = size, grid
    model.set_input_size(size)
    frame = model.frame(image.size)
    with torch.no_grad():
        embedding = original.image_encoder(model.preprocess(image, frame)[None])
    for prompt in prompts_for(model, image):
        given = model.tensors([frame], [prompt])
        clicks = (given.point_coords, given.point_labels) if given.point_coords.shape[1] else None
        masks = None if given.masks is None else given.masks[:, None]
        with torch.no_grad():
            sparse, dense = original.prompt_encoder(points=clicks, boxes=given.boxes, masks=masks)
            theirs = original.mask_decoder(embedding, original.prompt_encoder.get_dense_pe(), sparse, dense, True)
        ours = model.decode(model.encode([image]), [[prompt]], True)[0]
        torch.testing.assert_close(ours.logits, theirs[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.predicted_iou, theirs[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "stock", "config"), [(tiny_sam, SamModel, SamConfig), (tiny_sam_hq, SamHQModel, SamHQConfig)]
)
@pytest.mark.parametrize(("side", "window"), [(192, 5), (64, 2)])
def test_sam_is_transformers_model_built_with_that_config(make, stock, config, side, window):
    model, image = make(), picture((60, 97))
    model.set_input_size((side, side))
    model.set_window_size(min(window, side // 16))
    extra = {"vit_dim": 32} if config is SamHQConfig else {}
    values = tiny_sam_config(**extra)
    values["vision_config"] |= {"image_size": side, "window_size": min(window, side // 16)}
    values["prompt_encoder_config"] |= {"image_size": side}
    network = stock(config(**values)).eval()
    network.load_state_dict(model.network.state_dict())
    assert model.network.config.to_dict() == {
        **network.config.to_dict(),
        "dtype": model.network.config.to_dict()["dtype"],
    }
    pixels = model.preprocess(image, model.frame(image.size))[None]
    with torch.no_grad():
        found = network.vision_encoder(pixels).last_hidden_state
    torch.testing.assert_close(model.encode([image])[0].tensors["image_embedding"], found)


@pytest.mark.parametrize(("make", "stock"), [(tiny_sam2, Sam2Model), (tiny_edgetam, EdgeTamModel)])
@pytest.mark.parametrize("side", [128, 192, 320])
def test_sam2_at_another_size_is_transformers_model_built_for_it(make, stock, side):
    model, image = make(), picture((60, 97))
    values = model.network.config.to_dict()
    values["prompt_encoder_config"]["image_size"] = side
    sizes = [[side // stride] * 2 for stride in (4, 8, 16)]
    values["vision_config"]["backbone_feature_sizes"] = sizes
    network = stock({Sam2Model: Sam2Config, EdgeTamModel: EdgeTamConfig}[stock](**values)).eval()
    network.load_state_dict(model.network.state_dict())
    model.set_input_size((side, side))
    assert model.mask_size == (side // 4, side // 4)
    features = model.encode([image])[0]
    prompt = prompts_for(model, image)[1]
    ours = model.decode([features], [[prompt]], True)[0]
    with torch.no_grad():
        theirs = network(
            pixel_values=model.preprocess(image, features.frame)[None],
            input_points=torch.from_numpy(features.frame.to_model(prompt.point_coords))[None, None],
            input_labels=torch.from_numpy(prompt.point_labels)[None, None],
        )
    torch.testing.assert_close(ours.logits, theirs.pred_masks[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.predicted_iou, theirs.iou_scores[0])


@every_family
@torch.inference_mode()
def test_prompts_as_clicks_alone_give_the_same(family):
    """What exported graphs compute."""
    model, image = FAMILIES[family](), picture((60, 97))
    model.set_input_size((96, 160))
    features = model.encode([image])[0]
    for prompt in prompts_for(model, image):
        given = model.tensors([features.frame], [prompt])
        whole = model.answers(features.tensors, torch.zeros(1, dtype=torch.long), given)
        for ours, theirs in zip(model.answer_clicks(features.tensors, model.clicks(given)), whole, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


@every_family
def test_a_family_without_weights_has_the_size_too(family):
    model = FAMILIES[family]()
    model.set_input_size((96, 160))
    for config in (model.config, json.loads(json.dumps(model.config))):
        again = type(model).without_weights(config, "")
        assert (again.input_size, again.mask_size) == ((96, 160), (24, 40))


# --- points and rectangles


def code_of_cells(model):
    """The positional code of every cell of the image, and of a click on the centre of each."""
    h, w = model.mask_size[0] // 4, model.mask_size[1] // 4
    y, x = (torch.arange(n) * 16.0 + 8.0 for n in (h, w))
    clicks = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(1, -1, 2)
    labels = torch.ones(clicks.shape[:2], dtype=torch.long)
    if isinstance(model, PocketModel):
        encoder = model.network.decoder.prompt_encoder
        tokens = model.network.decoder.tokens(model._whole(PromptTensors(clicks, labels)))
        tokens = tokens[0, 2 + model.network.config.mask_tokens :]
        return encoder.shared_embedding.grid((h, w)), tokens[: h * w] - encoder.point_embed.weight[1]
    encoder = model.network.prompt_encoder
    encoder.shared_embedding = model.network.shared_image_embedding  # one in real weights
    sparse, _ = model._embed_prompts(PromptTensors(clicks - 0.5, labels))  # SAM adds half a pixel
    own = (
        encoder.point_embed[1].weight
        if isinstance(encoder.point_embed, torch.nn.ModuleList)
        else encoder.point_embed.weight[1]
    )
    if isinstance(model, Sam2):
        cells = model.network.get_image_wide_positional_embeddings()
    else:
        cells = image_position(model.network.shared_image_embedding, (h, w))
    return cells[0].flatten(1).T, sparse.flatten(0, -2)[: h * w] - own


@every_size
@every_family
def test_a_click_on_a_cell_has_the_position_of_the_cell(family, size):
    model = FAMILIES[family]()
    model.set_input_size(size)
    cells, clicks = code_of_cells(model)
    torch.testing.assert_close(cells, clicks, atol=1e-3, rtol=0)
    assert (cells[:1] - cells).abs().sum(dim=1)[1:].min() > 0.1


def bright_within_the_box(model, monkeypatch):
    """In place of the network: what is bright in the input, within the box of the prompt."""

    def find(features, image_rows, prompts):
        bright = functional.adaptive_avg_pool2d(features["pixels"].mean(1), model.mask_size)[image_rows] - 0.3
        down, across = ((torch.arange(n) + 0.5) * i / n for n, i in zip(model.mask_size, model.input_size, strict=True))
        x0, y0, x1, y1 = (prompts.boxes[:, i, None, None] for i in range(4))
        x, y = across[None, None, :], down[None, :, None]
        inside = torch.minimum(torch.minimum(x - x0, x1 - x), torch.minimum(y - y0, y1 - y))
        return torch.minimum(bright, inside)[:, None], torch.ones(len(image_rows), 1)

    def decode(features, image_rows, prompts):
        logits, iou = find(features, image_rows, prompts)
        return PocketOutput(logits, iou, iou[:, 0], logits[:, 0])

    monkeypatch.setattr(model, "embed", lambda pixels: {"pixels": pixels})
    if isinstance(model, PocketModel):
        monkeypatch.setattr(model, "run", decode)
    else:
        monkeypatch.setattr(model, "respond", lambda features, rows, prompts, _: find(features, rows, prompts))


@pytest.mark.parametrize("size", [(384, 384), (256, 512), (640, 320)], ids=str)
@pytest.mark.parametrize("family", ["sam", "mobile", "sam2", "pocket"])
def test_a_rectangle_lands_where_it_belongs(family, size, monkeypatch):
    model, rng = FAMILIES[family](), np.random.default_rng(3)
    model.set_input_size(size)
    bright_within_the_box(model, monkeypatch)
    for _ in range(30):
        h, w = (int(side) for side in rng.integers(20, 700, 2))
        x0, y0 = (int(side * rng.uniform(0, 0.5)) for side in (w, h))
        x1, y1 = (low + max(8, int(side * rng.uniform(0.3, 0.5))) for low, side in ((x0, w), (y0, h)))
        pixels = np.zeros((h, w, 3), np.uint8)
        pixels[y0:y1, x0:x1] = 255
        features = model.encode([Image(pixels)])[0]
        [found] = predict(model, features, [Prompt.box(x0, y0, x1, y1)]).boxes
        across, down = (4 / scale for scale in features.frame.scale)  # a cell of the mask in pixels of the image
        error = np.abs(found - (x0, y0, x1, y1)) / (across, down, across, down)
        assert (error <= 1 + 1 / min(across, down)).all(), (h, w, x0, y0, x1, y1)


@every_size
def test_pocket_draws_clicks_and_boxes_where_they_are(size):
    model, (h, w) = tiny_model(), size
    model.set_input_size(size)
    drawing = model.network.decoder.drawing
    click, box = torch.tensor([[[0.8 * w, 0.3 * h]]]), torch.tensor([[0.5 * w, 0.25 * h, 0.75 * w, 0.5 * h]])
    prompts = model._whole(PromptTensors(click, torch.ones(1, 1, dtype=torch.long), box))
    disk, _, filled, *_ = drawing.draw(prompts, torch.zeros(1, h // 8, w // 8))[0]
    assert disk.shape == model.mask_size
    row, column = divmod(int(disk.argmax()), w // 4)
    assert abs(4 * row + 2 - 0.3 * h) <= 2.01 and abs(4 * column + 2 - 0.8 * w) <= 2.01
    rows, columns = (filled > 0.5).nonzero().T
    assert abs(4 * rows.min() - 0.25 * h) <= 4 and abs(4 * (rows.max() + 1) - 0.5 * h) <= 4
    assert abs(4 * columns.min() - 0.5 * w) <= 4 and abs(4 * (columns.max() + 1) - 0.75 * w) <= 4


# --- what else meets a size


@pytest.mark.parametrize("size", OTHERS[:2], ids=str)
@every_family
def test_saved_and_loaded_again_the_size_stays(family, size, tmp_path):
    model, image = FAMILIES[family](), picture((60, 97))
    model.set_input_size(size)
    if family == "pocket":
        model.network.half().float()  # as its file holds it
    model.save(tmp_path)
    again = load(tmp_path, "cpu")
    assert (again.input_size, again.mask_size) == (size, (size[0] // 4, size[1] // 4))
    close = {"atol": 2e-2, "rtol": 2e-2} if family == "pocket" else CLOSE  # its encoder is folded when it is read
    torch.testing.assert_close(answers(again, image).logits, answers(model, image).logits, **close)


def test_windows_stay_too(tmp_path):
    model, image = tiny_sam(), picture((60, 97))
    model.set_window_size(5)
    model.save(tmp_path)
    torch.testing.assert_close(answers(load(tmp_path, "cpu"), image).logits, answers(model, image).logits, **CLOSE)


def test_narrow_weights_stay_narrow(tmp_path):
    tiny_sam().save(tmp_path)
    model = load(tmp_path, "cpu", torch.bfloat16, image_size=(64, 96), window_size=5)
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


@pytest.mark.parametrize("family", ["sam", "sam2", "pocket"])
def test_any_rectangle_can_be_trained_on(family):
    model, size = FAMILIES[family](), (96, 160)
    model.set_input_size(size)
    masks = np.zeros((2, 60, 97), bool)
    masks[0, 10:30, 20:80] = masks[1, 30:55, 50:90] = True
    frame, image = model.frame((60, 97)), picture((60, 97))
    targets = interaction.targets_in(frame, masks, model.mask_size)
    assert targets.masks.shape[1:] == model.mask_size
    assert (targets.boxes <= np.asarray([160, 96, 160, 96])).all()
    model.parts["decoder"].requires_grad_(True)
    features = model.embed(model.preprocess(image, frame)[None])
    found = interaction.interact(model, features, targets, 2, np.random.default_rng(0))
    assert np.isfinite(found["loss"]).all()


# --- load and the commands


def test_load_gives_the_size_that_is_asked_for(tmp_path):
    tiny_sam().save(tmp_path)
    model = load(tmp_path, "cpu", image_size=(96, 160), window_size=4)
    expected = tiny_sam()
    expected.set_input_size((96, 160))
    expected.set_window_size(4)
    first, second = (answers(one, picture((60, 97))).logits for one in (model, expected))
    torch.testing.assert_close(first, second, **CLOSE)
    assert (
        load(tmp_path, "cpu", image_size="96x160").input_size == load(tmp_path, "cpu", image_size=[96, 160]).input_size
    )


def test_the_size_is_read_before_the_weights_are_sought():
    with pytest.raises(ValueError, match="image_size must be a side or height x width"):
        load("no-such-model", "cpu", image_size="large")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    PillowImage.fromarray(picture((60, 97)).pixels).save(path)
    return path


def test_segment_takes_sizes(photo, tmp_path, capsys):
    tiny_sam().save(tmp_path / "sam")
    common = [
        "segment",
        str(photo),
        "--box",
        "10,10,60,50",
        "--model",
        str(tmp_path / "sam"),
        "--device",
        "cpu",
        "--json",
    ]
    found = {}
    for flags in ((), ("--image-size", "128"), ("--image-size", "96x160"), ("--window-size", "8")):
        assert main([*common, *flags]) == 0
        found[flags] = json.loads(capsys.readouterr().out)[0]["masks"][0]["score"]
    native, same, *others = found.values()
    assert native == same and all(abs(score - native) > 1e-6 for score in others)
    assert main([*common, "--image-size", "100"]) == 2
    assert capsys.readouterr().err == (
        "anymask segment: image_size for sam must be in multiples of 16 from 64 to 4096 pixels,"
        " got 100: nearest is 96\n"
    )


def test_evaluate_takes_sizes_and_reports_them(pocket, tmp_path, capsys):
    write_set(tmp_path)
    where = ["--images", str(tmp_path), "--annotations", str(tmp_path / "set.json"), "--device", "cpu", "--json"]
    words = ["evaluate", "promptable", *where, "--limit", "1", "--no-text", "--noc-clicks", "0"]
    assert main([*words, "--image-size", "64x96"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["image_size"], settings["window_size"]) == ("64x96", None)
    assert main([*words, "--window-size", "8"]) == 2
    assert "window_size is for sam: the windows of pocket cannot be changed" in capsys.readouterr().err
