"""The ensemble of image-text models, with tiny random models of open_clip's own classes, and pocket as scorer."""

import json
import logging
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch.nn import functional

from anymask.grounding import clip_members, score
from anymask.grounding.clip_members import HUB_IDS, MEMBERS, ClipModel, Member, is_here, parse_member
from anymask.grounding.pocket_scorer import HELD, PocketScorer
from anymask.grounding.protocol import Scorer
from anymask.grounding.score import CONTRASTS, TEMPLATES, EnsembleScorer, load_scorer, masked_region
from anymask.models.feature_cache import FeatureCache
from anymask.models.protocol import CheckpointError, Grounded
from anymask.types import Features, Frame, Image
from tiny import seed_weights, tiny_model
from tiny_families import tiny_sam

VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIGS = {
    "tiny-clip": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-clip-wide": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-sigmoid": {
        "embed_dim": 16, "init_logit_bias": -1, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT,
    },
    "tiny-other-tokenizer": {
        "embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**TEXT, "hf_tokenizer_name": "nobody/nowhere"},
    },
}  # fmt: skip
NAMES = ["a red car", "dog", "toy"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Architectures that open_clip then knows, and a file of weights for each."""
    folder, paths = tmp_path_factory.mktemp("open_clip"), {}
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")
        network = open_clip.create_model(name)
        with torch.no_grad():
            scale, bias = network.logit_scale.clone(), network.logit_bias
            seed_weights(network)
            network.logit_scale.copy_(scale)
            if bias is not None:
                network.logit_bias.fill_(-1.0)
        paths[name] = folder / f"{name}.safetensors"
        save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, paths[name])
    return paths


@pytest.fixture
def members(files):
    return [Member(name, str(files[name]), weight) for name, weight in (("tiny-clip", 3.0), ("tiny-sigmoid", 1.0))]


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An empty cache of the hub, which may not be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def picture(seed=0, size=(60, 80)):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image(cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST))


def square_masks(size=(60, 80)):
    masks = np.zeros((3, *size), bool)
    masks[0, 10:30, 20:50], masks[1, 40:, 60:] = True, True
    return masks  # the last is empty


# --- the ensemble


def test_windows_have_the_probability_of_the_formula(files):
    member = Member("tiny-clip", str(files["tiny-clip"]))
    image, window = picture(), (8, 4, 72, 52)
    [grid] = load_scorer([member], "cpu").score_windows(image, [window], NAMES)
    network = open_clip.create_model("tiny-clip", str(files["tiny-clip"])).eval()
    look = open_clip.get_model_preprocess_cfg(network)
    crop = cv2.resize(image.pixels[4:52, 8:72], (32, 32), interpolation=cv2.INTER_AREA) / 255
    pixels = torch.from_numpy((crop - look["mean"]) / look["std"]).permute(2, 0, 1).float()[None]
    tokenize, texts = open_clip.get_tokenizer("tiny-clip"), []
    with torch.no_grad():
        for name in ("red car", "dog", "toy", *(text.removeprefix("an ").removeprefix("a ") for text in CONTRASTS)):
            each = network.encode_text(tokenize([text.format(name) for text in TEMPLATES]), normalize=True)
            texts.append(functional.normalize(each.mean(0), dim=0))
        logits = network.logit_scale.exp() * network.encode_image(pixels, normalize=True)[0] @ torch.stack(texts).T
    np.testing.assert_allclose(grid[:, 0, 0], logits.softmax(0)[:3].numpy(), rtol=1e-4)


def test_a_member_with_a_bias_judges_each_name_by_itself(files):
    scorer = load_scorer([Member("tiny-sigmoid", str(files["tiny-sigmoid"]))], "cpu")
    [three], [one] = (scorer.score_windows(picture(), [(0, 0, 80, 60)], names) for names in (NAMES, NAMES[1:2]))
    assert three[1] == pytest.approx(one[0], rel=1e-4)
    [model] = scorer.models
    assert model.bias == -1.0 and three.shape == (3, 1, 1)
    vector = model.embed_images([picture().pixels])[0]
    text = functional.normalize(model.embed_texts([text.format("dog") for text in TEMPLATES]).mean(0), dim=0)
    assert float(one[0, 0, 0]) == pytest.approx(float((model.scale * vector @ text - 1).sigmoid()), rel=1e-4)


def test_members_count_by_their_weights(members):
    image, windows = picture(), [(0, 0, 80, 60), (10, 10, 40, 40)]
    both = load_scorer(members, "cpu").score_windows(image, windows, NAMES)
    first, second = (load_scorer([member], "cpu").score_windows(image, windows, NAMES) for member in members)
    for i in range(2):
        np.testing.assert_allclose(both[i], 0.75 * first[i] + 0.25 * second[i], atol=1e-6)
    assert np.abs(first[0] - second[0]).max() > 0.01


@pytest.mark.parametrize("background", ["blurred", "grey"])
def test_masks_are_scored_from_0_to_1_in_any_order_and_company(members, background):
    scorer, image, masks = load_scorer(members, "cpu", background=background), picture(), square_masks()
    found = scorer.score_masks(image, masks, NAMES)
    assert found.shape == (3, 3) and (found >= 0).all() and (found <= 1).all()
    assert (found[2] == 0).all() and (found[:2] > 0).all()
    np.testing.assert_allclose(scorer.score_masks(image, masks[::-1], NAMES[::-1]), found[::-1, ::-1], atol=1e-6)
    np.testing.assert_allclose(scorer.score_masks(image, masks[1:2], NAMES), found[1:2], atol=1e-6)
    np.testing.assert_allclose(scorer.score_masks(image, masks, [NAMES[0], *NAMES])[:, 1:], found, atol=1e-6)
    assert scorer.score_masks(image, masks[:0], NAMES).shape == (0, 3)
    assert scorer.score_windows(image, [], NAMES) == []


def test_more_masks_than_a_batch(members):
    masks = np.zeros((clip_members.BATCH + 3, 60, 80), bool)
    for i, mask in enumerate(masks):
        mask[i : i + 20, 2 * i : 2 * i + 20] = True
    scorer = load_scorer(members, "cpu")
    found = scorer.score_masks(picture(), masks, NAMES)
    np.testing.assert_allclose(scorer.score_masks(picture(), masks[-2:], NAMES), found[-2:], atol=1e-5)


def test_blurred_and_grey_are_two_views_of_the_surroundings_and_one_of_the_object(members):
    image, masks = picture(), square_masks()
    blurred, grey = (masked_region(image, masks[0], 64, background) for background in ("blurred", "grey"))
    assert blurred.shape == grey.shape == (64, 64, 3)
    assert np.array_equal(blurred[30:34, 20:44], grey[30:34, 20:44])
    assert (grey[:4] == score.GREY).all() and not (blurred[:4] == score.GREY).all()
    one, other = (
        load_scorer(members, "cpu", background=b).score_masks(image, masks, NAMES) for b in ("blurred", "grey")
    )
    assert np.abs(one - other)[:2].max() > 1e-4


def test_a_region_shows_the_object_centred_with_a_margin():
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[10:30, 20:50] = (200, 100, 50)
    region = masked_region(Image(pixels), square_masks()[0], 42, "grey")
    inside = (region == (200, 100, 50)).all(-1)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert (columns[0], columns[-1]) == (6, 35) and (rows[0], rows[-1]) == (11, 30)


def test_a_region_at_the_border_is_filled_with_grey():
    region = masked_region(Image(np.full((60, 80, 3), 9, np.uint8)), square_masks()[1], 28, "blurred")
    assert (region[-1, -1] == score.GREY).all() and (region[11:14, 11:14] == 9).all() and (region[0, 0] < 60).all()


def test_masks_of_a_reduced_copy_give_nearly_the_same():
    image = picture(size=(120, 160))
    large = cv2.resize(square_masks()[0].view(np.uint8), (160, 120), interpolation=cv2.INTER_NEAREST) > 0
    whole, reduced = (masked_region(image, mask, 48, "grey").astype(int) for mask in (large, square_masks()[0]))
    assert np.abs(whole - reduced).mean() < 2


def test_text_and_windows_are_embedded_once_and_names_apart(members, tmp_path):
    image, windows = picture(), [(0, 0, 80, 60), (0, 0, 40, 30)]
    first = load_scorer(members, "cpu", FeatureCache(tmp_path)).score_windows(image, windows, NAMES)
    kept = len(list(tmp_path.glob("*.safetensors")))
    assert kept == (len(NAMES) + len(CONTRASTS) + 1) + (len(NAMES) + 1)
    again = load_scorer(members, "cpu", FeatureCache(tmp_path))
    for model in again.models:
        model.network.encode_image = model.network.encode_text = None  # from here on it is read
    np.testing.assert_array_equal(again.score_windows(image, windows, NAMES), first)
    with pytest.raises(TypeError):
        again.score_windows(image, windows[:1], NAMES)
    with pytest.raises(TypeError):
        again.score_windows(image, windows, ["cat"])


def test_any_text_can_be_scored(members):
    names = ["🐕", "собака", "犬", "dog " * 300, "  the dog"]
    grid = load_scorer(members, "cpu").score_windows(picture(), [(0, 0, 80, 60)], names)[0]
    assert np.isfinite(grid).all() and (grid >= 0).all() and (grid <= 1).all()


def test_templates_have_one_article(files):
    model = ClipModel.load(Member("tiny-clip", str(files["tiny-clip"])), fetch=False)
    scorer = EnsembleScorer((model,))
    vectors = [
        scorer._embed_name(model, name) for name in ("a red car", "the red car", "red car", "A red car", "antler")
    ]
    assert all(torch.equal(vector, vectors[0]) for vector in vectors[:4])
    assert not torch.equal(vectors[4], vectors[0])
    assert all(text.count("{}") == 1 for text in TEMPLATES) and len(set(TEMPLATES)) == len(TEMPLATES) >= 5


# --- members


def test_members_that_cannot_be_loaded_are_left_out_with_a_note(members, no_hub, tmp_path, caplog):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(members[0].pretrained.encode() * 20)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(members[0].pretrained).read_bytes()[:-9])
    lost = [
        MEMBERS[0],
        Member("tiny-clip", str(broken), 5),
        Member("tiny-clip", str(cut)),
        Member("tiny-clip", "nowhere"),
    ]
    with caplog.at_level(logging.WARNING, "anymask"):
        scorer = load_scorer([*lost, *members], "cpu")
    assert scorer.name == f"{members[0].name} + {members[1].name}" and scorer.weights.tolist() == [0.75, 0.25]
    hub, text, part, unknown = scorer.notes
    assert hub == (
        "left out of the scorer: ViT-H-14:laion2b_s32b_b79k is not on this machine: where there is a network run"
        " `hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K`, or give the file of its weights"
    )
    assert "is a text file, not weights" in text
    assert "no whole safetensors file" in part and str(cut) in part
    assert "is no file and no tag that open_clip can fetch from the hub" in unknown
    assert [record.getMessage() for record in caplog.records] == list(scorer.notes)


def test_without_any_member_the_error_says_what_to_fetch(no_hub):
    with pytest.raises(CheckpointError, match="no model to score names with can be loaded: .*hf download .*ViT-L-14"):
        load_scorer(fetch=True)
    with pytest.raises(ValueError, match="at least one member"):
        load_scorer([])


def test_without_open_clip_the_error_names_the_extra(members, monkeypatch):
    monkeypatch.setattr(clip_members, "find_spec", lambda name: None)
    assert not is_here(members[0])
    with pytest.raises(CheckpointError, match=r"needs open_clip: pip install 'anymask\[clip\]'"):
        load_scorer(members)


def test_weights_of_another_architecture_are_refused(files):
    with pytest.raises(CheckpointError, match="cannot be loaded as tiny-clip-wide .*fetch it again"):
        ClipModel.load(Member("tiny-clip-wide", str(files["tiny-clip"])))
    with pytest.raises(CheckpointError, match="cannot be loaded as no-such-model"):
        ClipModel.load(Member("no-such-model", str(files["tiny-clip"])))


def test_a_tokenizer_of_the_hub_must_lie_beside_the_weights(files, no_hub):
    with pytest.raises(CheckpointError, match=r"its tokenizer, tokenizer.json of nobody/nowhere, must lie beside it"):
        ClipModel.load(Member("tiny-other-tokenizer", str(files["tiny-other-tokenizer"])))


def cache(folder, file, name="open_clip_model.safetensors"):
    """As the hub lays out a repository "some/clip" in its cache."""
    repository = folder / "hub" / "models--some--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1" * 40)
    snapshot = repository / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / name).write_bytes(file.read_bytes())


@pytest.fixture
def tag(monkeypatch):
    """Weights of the tiny model that open_clip knows under a tag."""
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: {"hf_hub": "some/clip/", "quick_gelu": True})
    return Member("tiny-clip", "tag")


def test_what_the_hub_has_cached_is_here(files, no_hub, tmp_path, tag):
    assert not is_here(tag)
    cache(tmp_path, files["tiny-clip"])
    assert is_here(tag)
    loaded, plain = ClipModel.load(tag), ClipModel.load(Member("tiny-clip", str(files["tiny-clip"])))
    assert type(loaded.network.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert torch.equal(loaded.network.logit_scale, plain.network.logit_scale)


def test_what_is_not_here_is_fetched_where_that_is_allowed(files, no_hub, tmp_path, tag, monkeypatch):
    asked = []

    def download(hub_id, names):
        asked.append((hub_id, *names))
        if names == ("open_clip_pytorch_model.bin",):
            cache(tmp_path, files["tiny-clip"], *names)

    monkeypatch.setattr(clip_members, "download", download)
    for allowed in (True, False):
        monkeypatch.setattr(clip_members, "is_offline", lambda: True)
        with pytest.raises(CheckpointError, match="tiny-clip:tag is not on this machine: where there is a network run"):
            ClipModel.load(tag, fetch=allowed)
    monkeypatch.setattr(clip_members, "is_offline", lambda: False)
    with pytest.raises(CheckpointError, match="is not on this machine"):
        ClipModel.load(tag, fetch=False)
    assert asked == []
    with pytest.raises(
        CheckpointError, match="cannot be loaded as tiny-clip"
    ):  # safetensors under the name of a pickle
        ClipModel.load(tag)
    assert asked == [("some/clip", name) for name in clip_members.WEIGHTS]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no network"), OSError("no network")])
def test_a_fetch_that_fails_says_why_and_what_to_do(no_hub, tag, monkeypatch, error):
    def download(hub_id, names):
        raise error

    monkeypatch.setattr(clip_members, "download", download)
    monkeypatch.setattr(clip_members, "is_offline", lambda: False)
    with pytest.raises(CheckpointError, match=r"could not be had \(no network\): where .* `hf download some/clip`"):
        ClipModel.load(tag)


def test_a_repository_without_weights_is_said(no_hub, tag, monkeypatch):
    monkeypatch.setattr(clip_members, "download", lambda hub_id, names: None)
    monkeypatch.setattr(clip_members, "is_offline", lambda: False)
    with pytest.raises(CheckpointError, match="some/clip holds none of open_clip_model.safetensors, .*give the file"):
        ClipModel.load(tag)


def test_repositories_of_the_usual_members_are_those_of_open_clip():
    assert list(HUB_IDS) == [member.name for member in MEMBERS]
    for member in MEMBERS:
        about = open_clip.get_pretrained_cfg(member.architecture, member.pretrained)
        tokenizer = open_clip.get_model_config(member.architecture)["text_cfg"].get("hf_tokenizer_name", "")
        assert HUB_IDS[member.name] == (about["hf_hub"].rstrip("/"), tokenizer)


def test_whether_they_are_here_is_known_without_importing_open_clip(no_hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert not any(is_here(member) for member in MEMBERS)


@pytest.mark.parametrize(
    ("architecture", "pretrained", "mean"),
    [
        ("ViT-L-14", "openai", open_clip.OPENAI_DATASET_MEAN),
        ("ViT-L-14", "laion2b_s32b_b82k", (0.5, 0.5, 0.5)),
        ("ViT-L-14", "my/file.pt", None),  # its tags differ: open_clip's own default
        ("ViT-B-16-SigLIP", "my/file.pt", (0.5, 0.5, 0.5)),
        ("tiny-clip", "my/file.pt", None),
    ],
)
def test_colours_are_those_of_the_training(files, architecture, pretrained, mean):
    assert clip_members._colours(Member(architecture, pretrained)).get("mean") == mean


def test_members_are_read_from_text():
    assert parse_member("ViT-L-14:openai=0.25") == Member("ViT-L-14", "openai", 0.25)
    assert parse_member(" ViT-B-32:my/file.pt ") == Member("ViT-B-32", "my/file.pt", 1.0)
    assert parse_member(r"ViT-B-32:C:\clip\a.pt=2") == Member("ViT-B-32", r"C:\clip\a.pt", 2.0)
    assert math.isclose(sum(member.weight for member in MEMBERS), 1)
    assert [parse_member(f"{member.name}={member.weight}") for member in MEMBERS] == list(MEMBERS)


@pytest.mark.parametrize(
    "text", ["ViT-L-14", "", ":openai", "ViT-L-14:", "ViT-L-14:openai:=x", "a:b=", "a:b=0", "a:b=-1", "a:b=nan"]
)
def test_wrong_members_are_refused(text):
    with pytest.raises(ValueError, match=r"must be written ARCHITECTURE:TAG_OR_FILE=WEIGHT|must be a number above 0"):
        parse_member(text)


@pytest.mark.wrong_types
def test_an_unknown_background_is_refused():
    with pytest.raises(ValueError, match="the background must be blurred or grey, got 'black'"):
        EnsembleScorer((), background="black")


# --- pocket as scorer


class Halves:
    """Says of every name that it fills the left half of what is seen, and is there by 0.8."""

    name = "halves"
    capabilities = tiny_model().capabilities

    def encode(self, images, crop_boxes=None):
        [image], box = images, crop_boxes and crop_boxes[0]
        return [Features("halves", Frame.stretched(image.size, (64, 64), box), {})]

    def decode(self, features, prompts, multimask_output=None):
        raise NotImplementedError

    def encode_text(self, prompts):
        return tiny_model().encode_text(prompts)

    def ground(self, features, text, instances=True):
        assert not instances
        logits = torch.full((16, 16), -20.0)
        logits[:, :8] = 20.0
        return [Grounded(0.8, logits, logits[None][:0], torch.zeros(0)) for _ in text.names]


def test_all_scorers_speak_the_protocol(members):
    assert isinstance(load_scorer(members, "cpu"), Scorer) and isinstance(PocketScorer(tiny_model()), Scorer)


def test_pockets_map_is_presence_times_probability():
    [whole, part] = PocketScorer(Halves()).score_windows(picture(), [(0, 0, 80, 60), (40, 0, 80, 60)], ["a", "b"])
    assert whole.shape == part.shape == (2, 16, 16)
    np.testing.assert_allclose(whole[:, :, :8], 0.8, atol=1e-6)
    np.testing.assert_allclose(part[:, :, 8:], 0, atol=1e-6)


def test_pocket_ranks_an_object_above_its_parts_and_what_is_too_large():
    right, part, large, wrong, empty = masks = np.zeros((5, 60, 80), bool)
    right[:, :40], part[20:30, 10:20], large[:, :], wrong[:, 40:] = True, True, True, True
    found = PocketScorer(Halves()).score_masks(picture(), masks, ["a"])[:, 0]
    assert found[0] == pytest.approx(0.8, abs=0.01) and (found[1], found[3], found[4]) == (0, 0, 0)
    assert found[2] == pytest.approx(0.4, abs=0.01)
    assert not empty.any()


def test_what_was_scored_lately_is_not_computed_again():
    class Counting(Halves):
        asked = 0

        def ground(self, features, text, instances=True):
            self.asked += 1
            return super().ground(features, text, instances)

    scorer, image, whole = PocketScorer(Counting()), picture(), (0, 0, 80, 60)
    [first] = scorer.score_windows(image, [whole], ["a", "b"])
    [again] = scorer.score_windows(image, [whole], ["a", "b"])
    scorer.score_masks(image, np.ones((1, 60, 80), bool), ["a", "b"])
    assert scorer.model.asked == 1 and np.array_equal(first, again)
    for other, window, names in ((image, (0, 0, 40, 60), "ab"), (image, whole, "ba"), (picture(), whole, "ab")):
        scorer.score_windows(other, [window], list(names))
    assert scorer.model.asked == 4
    for x in range(20):
        scorer.score_windows(image, [(x, 1, 80, 60)], ["a", "b"])
    assert len(scorer._held) == HELD
    scorer.score_windows(image, [whole], ["a", "b"])
    assert scorer.model.asked == 25


def test_a_padded_frame_gives_the_cells_of_the_image_alone():
    class Padded(Halves):
        def encode(self, images, crop_boxes=None):
            return [Features("halves", Frame.padded(images[0].size, (64, 64)), {})]

    [grid] = PocketScorer(Padded()).score_windows(picture(size=(40, 80)), [(0, 0, 80, 40)], ["a"])
    assert grid.shape == (1, 8, 16)


def test_a_model_without_text_scores_nothing():
    with pytest.raises(ValueError, match="tiny-sam knows no text and can score no name"):
        PocketScorer(tiny_sam())
