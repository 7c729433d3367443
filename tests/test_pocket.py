"""The pocket model: invariants of encode and decode, prompts, text, files, sizes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anymask.models.pocket import PocketModel
from anymask.models.pocket_files import read_network, read_text_tower, read_tokenizer, save_pocket
from anymask.models.pocket_network import CONFIGS, Drawing, PocketNetwork, PocketPrompts
from anymask.models.pocket_text import TextTower
from anymask.prompting import predict
from anymask.types import Concept, Image, Prompt
from tiny import TINY_TEXT, seed_weights, tiny_model


@pytest.fixture(scope="module")
def model() -> PocketModel:
    return tiny_model()


def picture(h: int = 50, w: int = 70, seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 255, (h, w, 3), dtype=np.uint8))


def test_a_batch_of_images_with_different_prompt_counts_equals_one_by_one(model: PocketModel) -> None:
    images = [picture(), picture(33, 20, 1), picture(64, 64, 2)]
    prompts = [[Prompt.point(10, 10)], [], [Prompt.box(5, 5, 40, 30), Prompt.point(3, 4) + Prompt.point(9, 9, 0)]]
    together = model.decode(model.encode(images), prompts, multimask_output=True)
    for image, some, result in zip(images, prompts, together, strict=True):
        assert result.logits.shape == (len(some), 3, 16, 16)
        alone = model.decode(model.encode([image]), [some], multimask_output=True)[0]
        torch.testing.assert_close(result.logits, alone.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(result.predicted_iou, alone.predicted_iou, atol=1e-4, rtol=1e-4)


def test_more_prompts_than_a_chunk_equal_singles(model: PocketModel) -> None:
    features = model.encode([picture()])
    prompts = [Prompt.point(1 + i, 2 + i) for i in range(37)]
    together = model.decode(features, [prompts])[0]
    alone = torch.cat([model.decode(features, [[prompt]])[0].logits for prompt in prompts])
    torch.testing.assert_close(together.logits, alone, atol=1e-4, rtol=1e-4)


def test_a_prompt_gives_the_same_in_any_company(model: PocketModel) -> None:
    features = model.encode([picture()])
    prompts = [
        Prompt.point(9, 9),
        Prompt.points([(1, 1), (20, 20), (30, 10), (5, 40)], [1, 0, 1, 0]),
        Prompt.point(9, 9) + Prompt.text("cat"),
        Prompt.point(9, 9) + Prompt.text("a long name of a thing that has more tokens than there are slots for"),
        Prompt.box(1, 1, 9, 9),
    ]
    together = model.decode(features, [prompts])[0].logits
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(together[i], model.decode(features, [[prompt]])[0].logits[0], atol=1e-4, rtol=1e-4)


def test_every_kind_of_prompt_changes_the_mask(model: PocketModel) -> None:
    features, mask = model.encode([picture()]), np.zeros((50, 70), bool)
    mask[10:30, 10:30] = True
    base = Prompt.point(20, 20)
    others = [
        Prompt.point(50, 20),
        Prompt.point(20, 20, 0),
        base + Prompt.box(5, 5, 40, 40),
        base + Prompt.mask(mask),
        base + Prompt.mask(np.full((16, 16), 3.0, np.float32)),
        base + Prompt.text("cat"),
        base + Prompt.text("dog"),
    ]
    logits = [model.decode(features, [[prompt]], True)[0].logits for prompt in [base, *others]]
    for i, first in enumerate(logits):
        for second in logits[i + 1 :]:
            assert (first - second).abs().max() > 1e-4


def test_a_lone_click_gets_the_best_candidate_and_other_prompts_the_single_mask(model: PocketModel) -> None:
    features = model.encode([picture()])
    rows, clicked = torch.tensor([0]), model.tensors([features[0].frame], [Prompt.point(9, 9)])
    every = model.run(features[0].tensors, rows, clicked)
    chosen = model.decode(features, [[Prompt.point(9, 9)]])[0]
    assert chosen.predicted_iou.item() == pytest.approx(every.predicted_iou.max().item(), abs=1e-5)


def test_clicks_at_once_equal_clicks_one_by_one(model: PocketModel) -> None:
    features = model.encode([picture()])[0]
    first = predict(model, features, [Prompt.point(20, 20)])
    second = predict(model, features, [Prompt.points([(20, 20), (5, 5)], [1, 0]) + Prompt.refine(first)])
    third = predict(model, features, [Prompt.points([(20, 20), (5, 5), (30, 9)], [1, 0, 1]) + Prompt.refine(second)])
    at_once = predict(model, features, [Prompt.points([(5, 5), (20, 20), (30, 9)], [0, 1, 1])])
    assert at_once.logits is not None and third.logits is not None
    np.testing.assert_allclose(at_once.logits, third.logits, atol=1e-3)
    many = [Prompt.points([(i, 7) for i in range(1, 40)]), Prompt.point(20, 20)]
    assert len(predict(model, features, many)) == 2


def test_a_box_limits_the_mask_and_positive_points_widen_it(model: PocketModel) -> None:
    image = picture()
    features = model.encode([image])[0]
    everything = np.full((16, 16), 20.0, np.float32)
    box = Prompt.box(10, 8, 40, 30) + Prompt.mask(everything)
    prompts = [box, box + Prompt.point(60, 20), box + Prompt.point(60, 20, 0), Prompt.point(5, 5)]
    limits = model.decode([features], [prompts])[0].limits
    assert limits is not None
    assert limits.tolist() == [[10, 8, 40, 30], [10, 8, 60, 30], [10, 8, 40, 30], [0, 0, 70, 50]]
    inside = np.zeros(image.size, bool)
    inside[8:30, 10:40] = True
    assert not (predict(model, features, [box]).masks[0] & ~inside).any()


def test_drawn_prompts_equal_the_obvious_loop() -> None:
    config = CONFIGS["tiny"]
    side = config.image_size // 4
    prompts = PocketPrompts(
        points=torch.tensor([[[10.0, 20.0], [50.0, 3.0]]]),
        labels=torch.tensor([[1, 0]]),
        boxes=torch.tensor([[8.0, 12.0, 40.0, 44.0]]),
        has_box=torch.tensor([True]),
        masks=torch.zeros(1, side, side),
        has_mask=torch.tensor([False]),
        text_tokens=torch.zeros(1, 1, 16),
        text_mask=torch.zeros(1, 1, dtype=torch.bool),
    )
    maps = Drawing(config).draw(prompts, torch.zeros(1, side // 2, side // 2))[0]
    for y in range(side):
        for x in range(side):
            cx, cy = 4 * x + 2.0, 4 * y + 2.0
            spread = 2 * config.disk_radius**2
            assert maps[0, y, x] == pytest.approx(np.exp(-((cx - 10) ** 2 + (cy - 20) ** 2) / spread), abs=1e-5)
            assert maps[1, y, x] == pytest.approx(np.exp(-((cx - 50) ** 2 + (cy - 3) ** 2) / spread), abs=1e-5)
            inside = min(cx - 8, 40 - cx, cy - 12, 44 - cy)
            assert maps[2, y, x] == pytest.approx(1 / (1 + np.exp(-inside)), abs=1e-5)
    assert maps[4:6].abs().max() == 0


def test_text_equals_itself_in_any_company(model: PocketModel) -> None:
    features = model.encode([picture()])[0]
    alone = model.ground(features, model.encode_text([Prompt.text("cat")]))[0]
    long = Prompt.text("a very long name of a thing with more tokens than slots")
    beside = model.ground(features, model.encode_text([long, Prompt.text("cat")]))[1]
    assert alone.presence == pytest.approx(beside.presence, abs=1e-4)
    torch.testing.assert_close(alone.semantic_logits, beside.semantic_logits, atol=1e-4, rtol=1e-4)
    assert alone.semantic_logits.shape == (16, 16)
    assert len(alone.logits) == len(alone.scores)


def test_a_concept_of_a_words_own_vectors_equals_the_word(model: PocketModel) -> None:
    ids, _ = model.tokenizer(["cat"])
    vectors = model.tower.token_embeddings(ids)[0, 1:-1].numpy()
    concept = Concept("my cat", "pocket", vectors)
    word, learned = (model.encode_text([p]).tensors["tokens"] for p in (Prompt.text("cat"), Prompt.concept(concept)))
    torch.testing.assert_close(word, learned, atol=1e-5, rtol=1e-5)


def test_a_concept_of_another_width_is_refused(model: PocketModel) -> None:
    concept = Concept("x", "facebook/sam3", np.zeros((2, 1024), np.float32))
    with pytest.raises(
        ValueError, match="was made for facebook/sam3 with vectors of 1024, but those of pocket have 16"
    ):
        model.encode_text([Prompt.concept(concept)])


def test_save_then_read_is_equal_up_to_float16(tmp_path: Path, model: PocketModel) -> None:
    save_pocket(tmp_path / "p.safetensors", model.network, model.tower, {"seed": 3})
    network, (tower, _) = read_network(tmp_path / "p.safetensors"), read_text_tower(tmp_path / "p.safetensors")
    for ours, theirs in ((model.network, network), (model.tower, tower)):
        for name, tensor in ours.state_dict().items():
            if "num_batches" not in name:
                torch.testing.assert_close(theirs.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    assert not list(tmp_path.glob("*.part"))


def test_a_changed_size_in_the_file_is_noticed(tmp_path: Path) -> None:
    network = PocketNetwork(replace(CONFIGS["tiny"], width_s4=4))
    tower = TextTower(TINY_TEXT)
    save_pocket(tmp_path / "p.safetensors", network, tower, {})
    assert read_network(tmp_path / "p.safetensors").config.width_s4 == 4


def test_the_full_size_has_the_promised_number_of_parameters() -> None:
    with torch.device("meta"):
        network = PocketNetwork(CONFIGS["pocket"])
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters * 2 < 10e6  # bytes as float16
    assert json.loads(json.dumps(vars(CONFIGS["pocket"])))["image_size"] == 384


def test_another_input_size_equals_a_network_built_for_it() -> None:
    built, changed = PocketNetwork(replace(CONFIGS["tiny"], image_size=96)), PocketNetwork(CONFIGS["tiny"])
    changed.set_image_size(96)
    models = []
    for network in (built, changed):
        seed_weights(network)
        models.append(PocketModel(network.eval(), lambda: (TextTower(TINY_TEXT), read_tokenizer(TINY_TEXT))))
    first, second = (m.decode(m.encode([picture()]), [[Prompt.point(30, 30)]])[0].logits for m in models)
    assert first.shape[-1] == 24 and torch.equal(first, second)
    with pytest.raises(ValueError, match="must be in multiples of 32 from 64 to 4096 pixels, got 100: nearest is 96"):
        changed.set_image_size(100)


def test_seeding_depends_on_the_key() -> None:
    pair = torch.nn.ModuleDict({"q": torch.nn.Linear(4, 4), "k": torch.nn.Linear(4, 4)})
    seed_weights(pair)
    assert not torch.equal(pair["q"].weight, pair["k"].weight)
