"""SAM 3 against transformers' own path with the same weights, and what must hold of names, exemplars and concepts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Sam3LiteTextModel, Sam3Model, Sam3Processor, Sam3TrackerModel, Sam3TrackerProcessor
from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

from anymask.models import sam3_detector, sam3_text
from anymask.models.protocol import CheckpointError
from anymask.models.sam3 import Sam3
from anymask.names import find, ground
from anymask.prompting import predict
from anymask.segmentation import segment
from anymask.types import Concept, Exemplar, Image, Prompt
from tiny_sam3 import TINY_MERGES, TINY_VOCABULARY, tiny_sam3, tiny_sam3_lite_text, write_tiny_merges

SIZES = ((40, 70), (70, 40), (57, 33), (56, 56))  # landscape, portrait, odd, the input's own
SIDE = {"height": 56, "width": 56}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """As facebook/sam3 is laid out."""
    path = write_tiny_merges(tmp_path_factory.mktemp("sam3"))
    tiny_sam3(path).save(path / "saved")
    return path / "saved"


@pytest.fixture(scope="module")
def model(folder) -> Sam3:
    return Sam3.from_folder(folder, "cpu", torch.float32, "tiny-sam3")


@pytest.fixture(scope="module")
def stock(folder) -> Sam3Model:
    return Sam3Model.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tracker(folder) -> Sam3TrackerModel:
    """Its "no memory" token, which transformers 5.23 adds to a level that it drops, goes to its own level."""
    network = Sam3TrackerModel.from_pretrained(folder).eval()
    get_image_features = network.get_image_features

    def three_levels(*args, **kwargs):
        output = get_image_features(*args, **kwargs)
        output.fpn_hidden_states = output.fpn_hidden_states[:3]
        return output

    network.get_image_features = three_levels
    return network


def picture(size=(40, 70), seed=0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def exemplars(*boxes, image=None) -> Prompt:
    """The last of several shows what is not meant."""
    shown = [Exemplar(image, box=box, positive=i == 0 or i < len(boxes) - 1) for i, box in enumerate(boxes)]
    return Prompt(exemplars=tuple(shown))


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# --- the detector and transformers' own path

BOXES = ((5.0, 4.0, 20.0, 21.0), (12.5, 8.0, 31.0, 30.0))
QUESTIONS = {
    "a name": Prompt.text("red car"),
    "a name and a box": Prompt.text("red car") + exemplars(BOXES[0]),
    "a name, a box and what is not meant": Prompt.text("dog") + exemplars(*BOXES),
    "boxes alone": exemplars(BOXES[0]),
    "a long name": Prompt.text("red car dog " * 20),
}


def by_stock(network, tokenizer, image, prompt):
    """The processor and model as their documentation uses them.

    A name alone gets what transformers 5.23 leaves out, the token that its geometry encoder has for no exemplars.
    """
    processor = Sam3Processor(Sam3ImageProcessor(size=SIDE), tokenizer)
    boxes = [[list(one.box) for one in prompt.exemplars]] if prompt.exemplars else None
    labels = [[int(one.positive) for one in prompt.exemplars]] if prompt.exemplars else None
    inputs = processor(
        images=image.pixels, text=prompt.name, input_boxes=boxes, input_boxes_labels=labels, return_tensors="pt"
    )
    if inputs["input_ids"].shape[1] > 32:  # the processor does not cut
        inputs["input_ids"] = torch.cat([inputs["input_ids"][:, :31], inputs["input_ids"][:, -1:]], 1)
        inputs["attention_mask"] = inputs["attention_mask"][:, :32]
    inputs.pop("original_sizes")
    with torch.inference_mode():
        return network(**inputs if prompt.exemplars else with_token_of_none(network, inputs))


def with_token_of_none(network, inputs):
    vision, mask = network.get_vision_features(inputs["pixel_values"]), inputs["attention_mask"]
    text = network.get_text_features(inputs["input_ids"], mask)
    token = network.geometry_encoder(
        torch.zeros(1, 0, 4),
        torch.zeros(1, 0, dtype=torch.bool),
        torch.zeros(1, 0, dtype=torch.long),
        vision.fpn_hidden_states[:3],
        vision.fpn_position_encoding[:3],
    ).last_hidden_state
    text.pooler_output = torch.cat([text.pooler_output, token], 1)
    return {"vision_embeds": vision, "text_embeds": text, "attention_mask": torch.cat([mask, mask[:, :1]], 1)}


def raw(model, image, prompts):
    """What the detector says to several questions in one batch, before anything is dropped."""
    features = model.encode([image])[0]
    questions = model.encode_text(prompts).tensors["questions"]
    with torch.inference_mode():
        return sam3_detector.detect(model.detector, features.tensors, features.frame, questions)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", QUESTIONS)
def test_names_and_exemplars_give_what_transformers_gives(what, size, model, stock):
    image = picture(size)
    found = raw(model, image, [QUESTIONS[what]])
    expected = by_stock(stock, model.tokenizer, image, QUESTIONS[what])
    assert expected.pred_masks.std() > 0.1
    for name in ("pred_masks", "semantic_seg", "pred_logits", "presence_logits", "pred_boxes"):
        assert_near(found[name], expected[name])


def test_several_names_at_once_give_what_each_gives_alone(model, stock):
    names = ["red car", "dog", "a very long name of a dog", "x"]
    found = raw(model, picture(), [Prompt.text(name) for name in names])
    for row, name in enumerate(names):
        expected = by_stock(stock, model.tokenizer, picture(), Prompt.text(name))
        assert_near(found.pred_masks[row], expected.pred_masks[0])
        assert_near(found.pred_logits[row], expected.pred_logits[0])


def test_each_prompt_makes_a_difference(model):
    answers = [raw(model, picture(), [prompt]).pred_masks for prompt in QUESTIONS.values()]
    for i, first in enumerate(answers):
        for second in answers[i + 1 :]:
            assert (first - second).abs().max() > 0.02


def test_light_text_gives_what_transformers_gives(tmp_path):
    model = tiny_sam3_lite_text(write_tiny_merges(tmp_path))
    model.save(tmp_path / "saved")
    stock = Sam3LiteTextModel.from_pretrained(tmp_path / "saved").eval()
    again = Sam3.from_folder(tmp_path / "saved", "cpu", torch.float32, "light")
    for prompt in (QUESTIONS["a name"], QUESTIONS["a name, a box and what is not meant"]):
        found, expected = raw(again, picture(), [prompt]), by_stock(stock, again.tokenizer, picture(), prompt)
        for name in ("pred_masks", "semantic_seg", "pred_logits", "presence_logits"):
            assert_near(found[name], expected[name])


# --- the tracker and transformers' own path

MASK = np.zeros((40, 70), bool)
MASK[5:20, 10:40] = True
LOGITS = np.random.default_rng(3).normal(0, 5, (16, 16)).astype(np.float32)
SPATIAL = {
    "a click": Prompt.point(7, 9),
    "clicks": Prompt.points([(7, 9), (20, 14), (30.5, 3)], [1, 0, 1]),
    "a box": Prompt.box(3, 4, 25, 22),
    "a box and clicks": Prompt.box(3, 4, 25, 22) + Prompt.points([(7, 9), (11, 12)], [1, 0]),
    "logits": Prompt.mask(LOGITS),
    "logits and a click": Prompt.mask(LOGITS) + Prompt.point(7, 9),
    "all": Prompt.mask(LOGITS) + Prompt.point(7, 9) + Prompt.box(3, 4, 25, 22),
}


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_clicks_boxes_and_masks_give_what_transformers_gives(size, multimask, model, tracker):
    image = picture(size)
    processor = Sam3TrackerProcessor(Sam3ImageProcessor(size=SIDE))
    found = model.decode(model.encode([image]), [list(SPATIAL.values())], multimask_output=multimask)[0]
    for row, (what, prompt) in enumerate(SPATIAL.items()):
        clicked, boxed = len(prompt.point_labels), prompt.box_coords is not None
        inputs = processor(
            images=image.pixels,
            input_points=[[prompt.point_coords.tolist()]] if clicked else None,
            input_labels=[[prompt.point_labels.tolist()]] if clicked else None,
            input_boxes=[[list(prompt.box_coords)]] if boxed else None,
            return_tensors="pt",
        )
        inputs.pop("original_sizes")
        masks = None if prompt.mask_input is None else torch.from_numpy(prompt.mask_input)[None, None]
        with torch.inference_mode():
            expected = tracker(**inputs, input_masks=masks, multimask_output=multimask)
        assert expected.pred_masks.std() > 0.05, what
        assert_near(found.logits[row], expected.pred_masks[0, 0])
        assert_near(found.predicted_iou[row], expected.iou_scores[0, 0])


def test_a_negative_click_changes_what_a_positive_one_gives(model):
    features = model.encode([picture()])
    plain, positive, negative = (
        model.decode(features, [[Prompt.points([(7, 9), (20, 14)][:n], [1, label][:n])]], multimask_output=False)[0]
        for n, label in ((1, 1), (2, 1), (2, 0))
    )
    assert (plain.logits - negative.logits).abs().max() > 1e-3
    assert (positive.logits - negative.logits).abs().max() > 1e-3


# --- one encoding for all


def count_encodings(model, monkeypatch) -> list[int]:
    calls = []
    forward = type(model.detector.vision_encoder.backbone).forward

    def counted(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.detector.vision_encoder.backbone), "forward", counted)
    return calls


def test_ten_names_and_a_click_cost_one_encoding(model, monkeypatch):
    calls = count_encodings(model, monkeypatch)
    segment(picture(), Prompt.point(7, 9), text=[f"dog {i}" for i in range(10)], model=model)
    assert len(calls) == 1


def test_names_come_in_order_whatever_their_exemplars(model):
    features = model.encode([picture()])[0]
    prompts = [QUESTIONS["a name and a box"], *(Prompt.text(f"dog {i}") for i in range(5)), QUESTIONS["boxes alone"]]
    together = model.ground(features, model.encode_text(prompts))
    for prompt, found in zip(prompts, together, strict=True):
        [alone] = model.ground(features, model.encode_text([prompt]))
        assert_near(found.semantic_logits, alone.semantic_logits)
        assert_near(found.scores, alone.scores)
    assert model.ground(features, model.encode_text([])) == []


def test_without_instances_only_presence_and_union(model):
    features, text = model.encode([picture()])[0], model.encode_text([QUESTIONS["a name"]])
    [plain], [full] = model.ground(features, text, instances=False), model.ground(features, text)
    assert len(plain.logits) == len(plain.scores) == 0
    assert plain.presence == full.presence
    torch.testing.assert_close(plain.semantic_logits, full.semantic_logits)


def test_what_is_hardly_likely_is_not_kept(model, monkeypatch):
    features, text = model.encode([picture()])[0], model.encode_text([QUESTIONS["a name"]])
    [full] = model.ground(features, text)
    likely = full.scores * full.presence
    assert len(likely) == 12
    assert likely.tolist() == sorted(likely.tolist(), reverse=True)
    monkeypatch.setattr(sam3_detector, "FLOOR", float(likely[4]))
    [fewer] = model.ground(features, text)
    torch.testing.assert_close(fewer.scores, full.scores[:5])


def test_a_device_without_memory_is_asked_for_less_at_once(model, monkeypatch, caplog):
    features, text = model.encode([picture()])[0], model.encode_text([Prompt.text(f"dog {i}") for i in range(4)])
    expected, real = model.ground(features, text), sam3_detector.detect

    def small(detector, tensors, frame, questions):
        if len(questions) > 2:
            raise torch.OutOfMemoryError
        return real(detector, tensors, frame, questions)

    monkeypatch.setattr(sam3_detector, "detect", small)
    for one, other in zip(model.ground(features, text), expected, strict=True):
        assert_near(one.semantic_logits, other.semantic_logits)
    assert "going on with 2 prompts at a time" in caplog.text


# --- concepts and exemplars


def test_a_concept_of_a_words_own_vectors_is_the_word(model):
    ids = model.tokenizer("red car")["input_ids"][1:-1]
    vectors = sam3_text.token_embedding(model.detector).weight[ids].detach().numpy()
    prompts = [Prompt.text("red car"), Prompt.concept(Concept("mine", "tiny-sam3", vectors)), Prompt.text("dog")]
    word, concept, other = model.encode_text(prompts).tensors["questions"]
    torch.testing.assert_close(concept.tokens, word.tokens, atol=0, rtol=0)
    assert concept.tokens.shape != other.tokens.shape
    assert model.encode_text(prompts).names == ("red car", "mine", "dog")


def test_a_concept_learns_through_the_detector(model):
    ids, lengths = sam3_text.blank_pieces(model.tokenizer, 2)
    vectors = torch.zeros(2, 24, requires_grad=True)
    [tokens] = sam3_text.encode_words(model.detector, ids, lengths, [vectors])
    tokens.sum().backward()
    assert vectors.grad.abs().min() > 0


def test_concepts_of_another_model_are_refused(model):
    with pytest.raises(
        ValueError, match="was made for pocket with vectors of .*, but those of tiny-sam3 have 24"
    ):
        model.encode_text([Prompt.concept(Concept("mine", "pocket", np.zeros((2, 7), np.float32)))])
    with pytest.raises(ValueError, match="a concept for SAM 3 must have 1 to 30 vectors, got 31"):
        model.encode_text([Prompt.concept(Concept("mine", "tiny-sam3", np.zeros((31, 24), np.float32)))])


def test_a_mask_shows_what_its_box_shows(model):
    by_mask = model.encode_text([Prompt(exemplars=(Exemplar(mask=MASK),))]).tensors["questions"][0]
    assert by_mask.shown.boxes.tolist() == [[10, 5, 40, 20]]
    assert by_mask.shown.labels.tolist() == [1]


def test_exemplars_of_another_image_are_tokens_beside_the_text(model, monkeypatch):
    """Shown in the image itself, or in a copy of it, they mean the same."""
    calls = count_encodings(model, monkeypatch)
    here, copy = picture(), Image(picture().pixels.copy())
    elsewhere = Prompt.text("red car") + exemplars(*BOXES, image=copy)
    found = raw(model, here, [elsewhere])
    assert len(calls) == 2  # the image and its copy, which shows two exemplars, once each
    expected = raw(model, here, [Prompt.text("red car") + exemplars(*BOXES)])
    assert_near(found.pred_masks, expected.pred_masks)
    other = raw(model, here, [Prompt.text("red car") + exemplars(*BOXES, image=picture(seed=5))])
    assert (other.pred_masks - expected.pred_masks).abs().max() > 1e-3


def test_exemplars_in_a_crop_are_where_they_are_in_the_image(model):
    """Box and image cut in the same way give the same answer."""
    image, crop = picture((60, 80)), (10, 20, 70, 60)
    whole = model.encode([image], [crop])[0]
    cut = model.encode([Image(image.pixels[20:60, 10:70].copy())])[0]
    first = model.ground(whole, model.encode_text([exemplars((15.0, 25.0, 40.0, 50.0))]))[0]
    second = model.ground(cut, model.encode_text([exemplars((5.0, 5.0, 30.0, 30.0))]))[0]
    assert_near(first.semantic_logits, second.semantic_logits)


# --- a known rectangle lands where it belongs

RNG = np.random.default_rng(7)
FIFTY = [(int(h), int(w)) for h, w in RNG.integers(17, 200, (50, 2))]


def drawn(box_01, side=16):
    """Logits of a box in shares of the frame, smooth at its edges so that they tell where it ends between cells."""
    x0, y0, x1, y1 = box_01
    at = (np.arange(side) + 0.5) / side
    inside = np.minimum(np.minimum(at - x0, x1 - at)[None, :], np.minimum(at - y0, y1 - at)[:, None])
    return torch.from_numpy(inside.astype(np.float32)) * 100


def boxes_near(found, expected, size):
    """Within a pixel, or a hundredth of the side where the image is large."""
    slack = np.maximum(1.0, np.asarray([size[1], size[0]] * 2) * 0.02)
    assert (np.abs(found - np.asarray(expected)) <= slack).all(), (found, expected, size)


@pytest.mark.parametrize("size", FIFTY)
def test_a_rectangle_lands_where_it_belongs_by_box(size, model, monkeypatch):
    h, w = size
    box = (w * 0.25, h * 0.3, w * 0.75, h * 0.8)

    def respond(features, image_rows, prompts, multimask_output):
        logits = torch.stack([drawn((one / model.input_size[0]).tolist()) for one in prompts.boxes])
        return logits[:, None], torch.ones(len(prompts), 1)

    monkeypatch.setattr(model, "respond", respond)
    features = model.encode([picture(size)])[0]
    boxes_near(predict(model, features, [Prompt.box(*box)]).boxes[0], box, size)


@pytest.mark.parametrize("size", FIFTY)
def test_a_rectangle_lands_where_it_belongs_by_exemplar(size, model, monkeypatch):
    h, w = size
    box = (w * 0.25, h * 0.3, w * 0.75, h * 0.8)

    def forward(**inputs):
        cx, cy, bw, bh = inputs["input_boxes"][0, 0].tolist()
        logits = drawn((cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2))[None, None]
        output = {"pred_masks": logits, "semantic_seg": logits}
        sure = {"pred_logits": torch.full((1, 1), 9.0), "presence_logits": torch.full((1, 1), 9.0)}
        return type("Output", (), output | sure)

    monkeypatch.setattr(model.detector, "forward", forward)
    features = model.encode([picture(size)])[0]
    masks = ground(model, features, [Prompt(exemplars=(Exemplar(box=box),))])
    boxes_near(masks.boxes[0], box, size)


# --- what the words and thresholds of `segment` make of it


def test_a_name_counts_from_the_product_of_its_two_scores(model, monkeypatch):
    def answered(presence, scores):
        def ground_(features, text, instances=True):
            quarters = torch.full((len(scores), 16, 16), -9.0)
            quarters[0, :8, :8], quarters[1, 8:, 8:] = 9.0, 9.0
            grounded = sam3_detector.Grounded(presence, quarters.amax(0), quarters, torch.tensor(scores))
            return [grounded for _ in text.names]

        monkeypatch.setattr(model, "ground", ground_)
        return find(model, model.encode([picture()])[0], ["dog"])

    assert answered(0.8, [0.7, 0.6]).scores.tolist() == pytest.approx([0.56])
    assert len(answered(0.45, [1.0, 1.0])) == 0
    assert len(answered(1.0, [0.49, 0.3])) == 0


def test_a_negative_name_takes_away_what_it_claims_more_surely(model, monkeypatch):
    def ground_(features, text, instances=True):
        sure = {"dog": 0.7, "cat": 0.9, "car": 0.6}
        full = torch.full((1, 16, 16), 9.0)
        return [sam3_detector.Grounded(1.0, full[0], full, torch.tensor([sure[name]])) for name in text.names]

    monkeypatch.setattr(model, "ground", ground_)
    assert len(segment(picture(), text="dog", not_text="cat", model=model)) == 0
    assert segment(picture(), text="dog", not_text="car", model=model).labels == ("dog",)


def test_text_and_a_click_are_two_prompts(model):
    with pytest.raises(ValueError, match="for tiny-sam3 a text or exemplar and a point, box or mask are two prompts"):
        model.decode(model.encode([picture()]), [[Prompt.text("dog") + Prompt.point(1, 1)]])


# --- files


def test_saved_and_read_again_it_is_the_same(model, folder, tmp_path):
    model.save(tmp_path / "again")
    again = Sam3.from_folder(tmp_path / "again", "cpu", torch.float32, "again")
    assert_near(
        raw(again, picture(), [QUESTIONS["a name"]]).pred_masks, raw(model, picture(), [QUESTIONS["a name"]]).pred_masks
    )
    assert json.loads((folder / "config.json").read_bytes())["model_type"] == "sam3_video"
    assert not [name for name, tensor in again.network.named_buffers() if tensor.is_meta]


def test_a_folder_that_transformers_has_saved_is_read(model, tmp_path):
    """transformers 5.23 writes `tracker_model.` twice before the tracker's tensors."""
    model.network.save_pretrained(tmp_path)
    again = Sam3.from_folder(tmp_path, "cpu", torch.float32, "again")
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, model.network.state_dict()[name]), name


def test_a_detector_alone_is_read_and_knows_no_clicks(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    model = Sam3.from_folder(tmp_path, "cpu", torch.float32, "alone")
    able = model.capabilities
    assert (able.points, able.boxes, able.masks, able.video, able.text, able.exemplars) == (*[False] * 4, True, True)
    assert list(model.parts) == ["encoder"]
    with pytest.raises(ValueError, match="alone knows names and exemplars alone: use facebook/sam3 for points"):
        segment(picture(), points=[(1, 1)], model=model)
    with pytest.raises(ValueError, match="alone holds the detector of SAM 3 alone: it knows names and exemplars"):
        model.decode(model.encode([picture()]), [[Prompt.point(1, 1)]])


def test_folders_of_another_kind_are_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config["tracker_config"]))
    with pytest.raises(
        CheckpointError, match="must be of model_type sam3_video, sam3, sam3_lite_text, got sam3_tracker"
    ):
        Sam3.from_folder(tmp_path, "cpu", torch.float32, "x")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3"}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="is no sam3 of its size: .* tensors missing"):
        Sam3.from_folder(tmp_path, "cpu", torch.float32, "x")


def test_half_precision_keeps_positions_whole(folder, model):
    half = Sam3.from_folder(folder, "cpu", torch.bfloat16, "half")
    assert half.dtype == torch.bfloat16
    assert half.tracker.shared_image_embedding.positional_embedding.dtype == torch.float32
    first, second = (
        one.decode(one.encode([picture()]), [[Prompt.point(7, 9), Prompt.box(3, 4, 25, 22)]], multimask_output=False)[0]
        for one in (half, model)
    )
    assert first.logits.dtype == torch.float32
    assert (first.logits - second.logits).abs().max() < 0.3
    near, far = (raw(one, picture(), [QUESTIONS["a name and a box"]]) for one in (half, model))
    assert (near.semantic_seg.float() - far.semantic_seg).abs().max() < 0.3


def test_the_parts_hold_what_can_be_trained_apart(model):
    parts = model.parts
    assert list(parts) == ["encoder", "prompt_encoder", "decoder"]
    owners = [{id(tensor) for tensor in part.parameters()} for part in parts.values()]
    assert not owners[0] & owners[1] and not owners[1] & owners[2] and not owners[0] & owners[2]
    assert len(owners[0]) == len(list(parts["encoder"].parameters())) > 0


# --- the tokenizer


def test_without_tokenizer_clicks_work_and_names_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sam3_text, "find_spec", lambda name: None)
    model = tiny_sam3(tmp_path / "sam3.pt")
    assert len(segment(picture(), points=[(3, 3)], model=model)) == 1
    message = f"SAM 3 without tokenizer: .* tokenizer.json of facebook/sam3, or {sam3_text.MERGES} .* into {tmp_path},"
    with pytest.raises(CheckpointError, match=message):
        segment(picture(), text="dog", model=model)
    model.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_the_tokenizer_is_found_in_the_folder_beside_the_file_and_in_open_clip(folder, tmp_path, monkeypatch):
    write_tiny_merges(tmp_path)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(sam3_text, "find_spec", lambda name: spec if name == "open_clip" else None)
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (folder, tmp_path / "sam3.pt", empty, empty / "sam3.pt"):
        assert sam3_text.read_tokenizer(place)("Red  car")["input_ids"] == [518, 513, 515, 519]


def test_the_merges_are_read_as_clip_reads_them(tmp_path):
    tokenizer = sam3_text.tokenizer_of(write_tiny_merges(tmp_path) / sam3_text.MERGES)
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == TINY_VOCABULARY == 512 + len(TINY_MERGES) + 2
    assert (vocabulary["!"], vocabulary["!</w>"], vocabulary["re"]) == (0, 256, 512)
    assert [vocabulary[mark] for mark in (sam3_text.BEGIN, sam3_text.END)] == [TINY_VOCABULARY - 2, TINY_VOCABULARY - 1]
    ids, lengths = sam3_text.word_pieces(tokenizer, ["dog", "é " * 50])
    assert ids.shape == (2, 32)
    assert lengths == [3, 32]
    assert ids[1, -1] == TINY_VOCABULARY - 1
