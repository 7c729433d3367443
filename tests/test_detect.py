"""Detectors: transformers' own scores, one pass for all names, boxes where they belong, names as the user wrote."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GroundingDinoProcessor, Owlv2Processor

from anymask.grounding import detected, dino
from anymask.grounding.detect import CATALOGUE, DEFAULT, is_here, load_detector
from anymask.grounding.protocol import DetectionThresholds, Detector
from anymask.models.load import check
from anymask.models.packing import pack, unpack
from anymask.models.protocol import CheckpointError
from anymask.types import Image
from tiny_detectors import DINO_KINDS, clip_tokenizer, noise_image, saved_detector, tiny_dino, tiny_owl

ALL = DetectionThresholds(box=0.0, text=0.0)
EVERY = {**{kind: lambda kind=kind: tiny_dino(kind) for kind in DINO_KINDS}, "owlv2": tiny_owl}
SIZES = [(90, 130), (131, 57), (64, 64), (19, 41), (700, 210)]


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """An empty hub cache, an empty home, and a hub that is switched off."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ANYMASK_HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def no_suppression(monkeypatch):
    monkeypatch.setattr(detected, "SAME_OBJECT", 1.0)


# Parity with transformers.


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("kind", DINO_KINDS)
def test_boxes_and_scores_of_a_name_are_those_of_transformers(kind, size, no_suppression):
    detector, image = tiny_dino(kind), noise_image(size)
    processor = GroundingDinoProcessor(detector.processor, detector.tokenizer)
    inputs = processor(images=image.pixels, text="a red car.", return_tensors="pt")
    with torch.inference_mode():
        out = detector.network(**inputs)
        out.logits[:, :, [0, 4, 5]] = -torch.inf  # marks and dot, which are of no name
    theirs = processor.post_process_grounded_object_detection(
        out, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[size]
    )[0]
    ours = detector.detect(image, ["a red car"], ALL)
    order = torch.argsort(theirs["scores"], descending=True, stable=True)
    expected = np.clip(theirs["boxes"][order].numpy(), 0, np.tile(size[::-1], 2))
    assert len(ours) == len(expected) > 20 and np.ptp(ours.scores) > 1e-4
    np.testing.assert_allclose(ours.scores, theirs["scores"][order], rtol=1e-5)
    np.testing.assert_allclose(ours.boxes, expected, atol=1e-3)


@pytest.mark.parametrize("size", SIZES[:3])
def test_owl_finds_what_transformers_finds(size, no_suppression):
    detector, image = tiny_owl(), noise_image(size)
    processor = Owlv2Processor(detector.processor, detector.tokenizer)
    texts = [["a photo of a dog", "a photo of the red car"]]
    inputs = processor(images=image.pixels, text=texts, max_length=16, return_tensors="pt")
    with torch.inference_mode():
        out = detector.network(**inputs)
    theirs = processor.post_process_grounded_object_detection(
        out, threshold=0.0, target_sizes=[size], text_labels=[["dog", "the red car"]]
    )[0]
    ours = detector.detect(image, ["dog", "the red car"], ALL)
    boxes = np.clip(theirs["boxes"].numpy(), 0, np.tile(size[::-1], 2))
    inside = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    order = inside[np.argsort(-theirs["scores"].numpy()[inside], kind="stable")]
    assert len(ours) == len(order) > 10
    np.testing.assert_allclose(ours.scores, theirs["scores"][order], rtol=1e-5)
    np.testing.assert_allclose(np.sort(ours.boxes, axis=0), np.sort(boxes[order], axis=0), atol=1e-3)
    assert sorted(ours.labels) == sorted(theirs["text_labels"][row] for row in order)


# Many names.


@pytest.mark.parametrize("kind", DINO_KINDS)
def test_a_name_has_the_score_of_its_own_caption_and_one_pass_serves_300(kind):
    detector, image = tiny_dino(kind), noise_image((90, 130))
    names = [f"thing number {number}" for number in range(300)]
    passes = []
    detector.encoder.encoder.register_forward_hook(lambda *_: passes.append(1))
    found = detector.detect(image, names, ALL)
    assert len(passes) == 1 and set(found.nearest) == set(names) and set(found.labels) <= set(names)
    captions, notes = detector.captions(names)
    assert len(captions) > 4 and notes == () and detector.encoder.seen is None
    assert max(len(caption.ids) for caption in captions) <= 256
    assert [name for caption in captions for name in caption.spans] == names
    for caption in captions[1:3]:
        alone = detector.detect(image, list(caption.spans), ALL)
        assert {name: found.nearest[name] for name in alone.nearest} == alone.nearest
    assert len(passes) == 3


def test_owl_encodes_the_image_once_for_300_names():
    detector, image = tiny_owl(), noise_image((90, 130))
    names = [f"thing number {number}" for number in range(300)]
    passes = []
    detector.network.owlv2.vision_model.register_forward_hook(lambda *_: passes.append(1))
    found = detector.detect(image, names, ALL)
    assert len(passes) == 1 and list(found.nearest) == names
    few = detector.detect(image, names[60:70], ALL)
    assert few.nearest == pytest.approx({name: found.nearest[name] for name in names[60:70]}, abs=1e-6)


# Where boxes lie: networks that see a bright rectangle and answer with it.


def box_of(pixels: torch.Tensor) -> torch.Tensor:
    """Centre and size of what is bright, from 0 to 1 of the input."""
    rows, columns = (torch.where(pixels[0].mean(dim=0).amax(dim=axis) > 1)[0] for axis in (1, 0))
    h, w = pixels.shape[-2:]
    x0, x1, y0, y1 = columns[0] / w, (columns[-1] + 1) / w, rows[0] / h, (rows[-1] + 1) / h
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])


@pytest.mark.parametrize("kind", ["grounding-dino", "owlv2"])
@pytest.mark.parametrize("size", SIZES)
def test_a_planted_rectangle_is_found_where_it_is(kind, size, monkeypatch):
    detector, (h, w) = EVERY[kind](), size
    planted = np.asarray([w // 4, h // 2, 3 * w // 4, h - h // 8])
    pixels = np.zeros((h, w, 3), np.uint8)
    pixels[planted[1] : planted[3], planted[0] : planted[2]] = 255

    def answer(pixel_values, input_ids, **_):
        logits = torch.full((1, 1, 256), -9.0)
        logits[..., 1] = 3.0
        return SimpleNamespace(logits=logits, pred_boxes=box_of(pixel_values)[None, None])

    if kind == "owlv2":
        seen = []
        monkeypatch.setattr(
            detector.network, "image_embedder", lambda pixels: (seen.append(pixels) or torch.zeros(1, 1, 1, 32), None)
        )
        monkeypatch.setattr(detector.network, "class_predictor", lambda *_: (torch.full((1, 1, 1), 3.0), None))
        monkeypatch.setattr(detector.network, "box_predictor", lambda *_: box_of(seen[0])[None, None])
    else:
        monkeypatch.setattr(detector.network, "forward", answer)
    found = detector.detect(Image(pixels), ["dog"])
    pixel = max(size) / 64 if kind == "owlv2" else max(1.0, min(size) / 96)
    assert found.labels == ("dog",) and found.scores[0] > 0.9
    np.testing.assert_allclose(found.boxes[0], planted, atol=2 * pixel)


# Labels and thresholds, from probabilities that the test sets.


def scored(monkeypatch, probs: dict[str, float], boxes: list[list[float]] | None = None):
    """A GroundingDINO that gives each word a probability wherever it stands; one box, or those given, of an image."""
    detector = tiny_dino()
    of_id = {detector.tokenizer.convert_tokens_to_ids(word): prob for word, prob in probs.items()}

    def answer(pixel_values, input_ids, **_):
        row = torch.tensor([of_id.get(int(piece), 0.0) for piece in input_ids[0]])
        given = torch.tensor(boxes or [[0.5, 0.5, 0.4, 0.4]])
        return SimpleNamespace(logits=row.logit().expand(1, len(given), -1), pred_boxes=given[None])

    monkeypatch.setattr(detector.network, "forward", answer)
    return detector


def test_names_that_share_a_word_are_told_apart_by_the_other(monkeypatch):
    detector = scored(monkeypatch, {"red": 0.1, "toy": 0.5, "car": 0.8})
    found = detector.detect(noise_image((50, 80)), ["Red Car", "toy car", "dog"])
    assert found.labels == ("toy car",) and found.scores == pytest.approx([0.8])
    assert found.nearest == pytest.approx({"Red Car": 0.8, "toy car": 0.8, "dog": 0.0})
    np.testing.assert_allclose(found.boxes, [[24, 15, 56, 35]], rtol=1e-6)


def test_a_box_scores_as_its_own_name_does_and_only_a_name_that_scores_enough_is_its_label(monkeypatch):
    words = {"small": 0.1, "dog": 0.9, "cat": 0.6, "bird": 0.28}
    found = scored(monkeypatch, words).detect(noise_image((50, 80)), ["small dog", "cat"])
    assert found.labels == ("cat",) and found.scores == pytest.approx([0.6])
    found = scored(monkeypatch, {**words, "dog": 0.4}).detect(noise_image((50, 80)), ["small dog", "bird"])
    assert found.labels == ("small dog",) and found.scores == pytest.approx([0.4])


def test_thresholds_of_the_box_and_of_the_text(monkeypatch):
    detector, image = scored(monkeypatch, {"dog": 0.28, "cat": 0.2}), noise_image((50, 80))
    nothing = detector.detect(image, ["dog", "cat"])
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4) and nothing.notes == ()
    assert nothing.nearest == pytest.approx({"dog": 0.28, "cat": 0.2})
    assert detector.detect(image, ["dog", "cat"], DetectionThresholds(0.2, 0.1)).labels == ("dog",)
    assert detector.detect(image, ["dog", "cat"], DetectionThresholds(0.2, 0.3)).labels == ()
    assert detector.thresholds == DetectionThresholds(0.3, 0.25) and tiny_owl().thresholds.box == 0.3


def test_boxes_are_clipped_made_distinct_and_empty_ones_go(monkeypatch):
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.9, 0.5, 0.4, 0.4], [1.4, 0.5, 0.2, 0.2]]
    found = scored(monkeypatch, {"dog": 0.9}, boxes).detect(noise_image((50, 80)), ["dog"])
    np.testing.assert_allclose(found.boxes, [[24, 15, 56, 35], [56, 15, 80, 35]], rtol=1e-6)


# Names.


def test_marks_in_a_name_do_not_part_it_and_spelling_stays(monkeypatch):
    detector = tiny_dino()
    names = ["St. Bernard?", " Big,  DOG ", "[SEP] cat.", "犬"]
    (caption,), notes = detector.captions(names)
    words = {name: detector.tokenizer.convert_ids_to_tokens(caption.ids[span]) for name, span in caption.spans.items()}
    assert words == {
        "St. Bernard?": ["st", "bernard"],
        " Big,  DOG ": ["big", "dog"],
        "[SEP] cat.": words["[SEP] cat."],
        "犬": ["犬"],
    }
    assert words["[SEP] cat."][-1] == "cat" and "[SEP]" not in words["[SEP] cat."] and notes == ()
    assert detector.tokenizer.convert_ids_to_tokens(caption.ids).count(".") == 4
    found = detector.detect(noise_image((50, 80)), names, ALL)
    assert len(found) and set(found.labels) <= set(names)


def test_a_caption_is_what_transformers_would_read():
    detector = tiny_dino()
    processor = GroundingDinoProcessor(detector.processor, detector.tokenizer)
    (caption,), _ = detector.captions(["a red car", "Dog", "犬"])
    assert list(caption.ids) == processor(text=["a red car", "Dog", "犬"])["input_ids"]


def test_emoji_find_nothing_and_a_long_name_is_cut_and_both_are_said():
    detector, long = tiny_dino(), "word " * 400
    found = detector.detect(noise_image((50, 80)), ["🙂", "dog", long], ALL)
    assert found.notes == (
        "tiny-grounding-dino knows no word of '🙂': it finds nothing of that name",
        f"tiny-grounding-dino reads the first 253 of 400 word pieces of {long[:40]!r}...",
    )
    assert found.nearest["🙂"] == 0 < found.nearest["dog"] and "🙂" not in found.labels
    alone = detector.detect(noise_image((50, 80)), ["🙂"], ALL)
    assert len(alone) == 0 and alone.nearest == {"🙂": 0}


def test_owl_cuts_a_long_name_and_says_so():
    detector, long = tiny_owl(), "word " * 40
    found = detector.detect(noise_image((50, 80)), ["dog", long], ALL)
    assert found.notes == (f"tiny-owlv2 reads the first 14 of 44 word pieces of {long[:40]!r}...",)


@pytest.mark.parametrize("kind", EVERY)
def test_a_name_must_name_something(kind):
    detector = EVERY[kind]()
    with pytest.raises(ValueError, match=r"names must be a list of one or more names, got \[\]: pass \[name\]"):
        detector.detect(noise_image((50, 80)), [])
    with pytest.raises(ValueError, match="every name must name something, got an empty one among 2"):
        detector.detect(noise_image((50, 80)), ["dog", " "])
    with pytest.raises(ValueError, match="names must be a list of one or more names, got 'dog'"):
        detector.detect(noise_image((50, 80)), "dog")


# Folders, names and what is missing.


@pytest.mark.parametrize("kind", EVERY)
def test_a_folder_finds_the_same_again_and_in_fewer_bits(kind, tmp_path):
    folder, image = saved_detector(kind, tmp_path / kind), noise_image((90, 130))
    check(folder)  # so it can be packed
    detector = load_detector(folder, device="cpu")
    found, again = (detector.detect(image, ["red car", "dog"], ALL) for _ in range(2))
    expected = EVERY[kind]().detect(image, ["red car", "dog"], ALL)
    assert isinstance(detector, Detector) and detector.name == str(folder) and is_here(folder)
    for other in (again, expected):
        assert found.labels == other.labels and (found.boxes == other.boxes).all()
        assert (found.scores == other.scores).all() and found.nearest == other.nearest
    coarse = load_detector(folder, device="cpu", dtype="bfloat16")
    assert coarse.network.dtype == torch.bfloat16
    assert coarse.detect(image, ["red car", "dog"], ALL).nearest == pytest.approx(found.nearest, abs=0.05)


def test_a_folder_without_tokenizer_reads_the_shipped_vocabulary(tmp_path):
    folder = saved_detector("grounding-dino", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    detector = load_detector(folder, device="cpu")
    assert detector.captions(["red car", "犬"]) == tiny_dino().captions(["red car", "犬"])


@pytest.mark.parametrize("kind", ["grounding-dino", "owlv2"])
def test_broken_files_beside_the_weights_are_named(kind, tmp_path):
    folder = saved_detector(kind, tmp_path)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json in .* cannot be read \(.*: fetch it again"):
        load_detector(folder, device="cpu")
    (folder / "preprocessor_config.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json or vocab.(txt|json) in .* cannot be read"):
        load_detector(folder, device="cpu")


def test_a_path_does_not_hide_a_name_of_the_catalogue():
    Path(DEFAULT).mkdir()
    assert not is_here(DEFAULT) and is_here(f"./{DEFAULT}") and not is_here("")
    with pytest.raises(CheckpointError, match=f"IDEA-Research/{DEFAULT} is not on this machine"):
        load_detector(DEFAULT)


def test_owl_without_tokenizer_takes_that_of_open_clip_or_says_what_to_bring(tmp_path, monkeypatch):
    folder = saved_detector("owlv2", tmp_path)
    for name in folder.glob("tokenizer*"):
        name.unlink()
    detector = load_detector(folder, device="cpu")
    assert detector.tokenizer("a dog")["input_ids"] == clip_tokenizer()("a dog")["input_ids"]
    monkeypatch.setattr("anymask.models.sam3_text._of_open_clip", list)
    with pytest.raises(CheckpointError, match=r"OWLv2 without tokenizer: .*tokenizer.json of google/owlv2-base"):
        load_detector(folder, device="cpu")


def test_a_detector_is_packed_and_found_by_its_name(tmp_path, monkeypatch):
    hub_id = CATALOGUE[DEFAULT].hub_id
    folder = saved_detector("grounding-dino", tmp_path / "home" / "models" / hub_id.replace("/", "--"))
    assert is_here() and is_here(hub_id) and not is_here("owlv2-base")
    pack(hub_id, tmp_path / "dino.tar")
    monkeypatch.setenv("ANYMASK_HOME", str(tmp_path / "other"))
    assert not is_here(DEFAULT)
    unpack(tmp_path / "dino.tar")
    assert is_here(DEFAULT) and load_detector(DEFAULT, device="cpu").name == DEFAULT
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_missing_detector_says_what_to_fetch(name):
    hub_id = CATALOGUE[name].hub_id
    with pytest.raises(CheckpointError) as caught:
        load_detector(name)
    assert str(caught.value) == (
        f"{hub_id} is not on this machine and the hub is switched off (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE): where"
        f" there is a network run `anymask models pack {hub_id} -o {name}.tar`, bring the file here and run `anymask"
        f" models unpack {name}.tar`; names are found without it in windows of the image"
    )
    assert not is_here(name)


def test_unknown_detectors_are_refused_with_those_that_are_known(tmp_path):
    known = "the detectors that anymask knows by name are grounding-dino-tiny, .*owlv2-large"
    with pytest.raises(ValueError, match=f"unknown detector 'grounding-dyno-tiny': did you mean {DEFAULT}.*{known}"):
        load_detector("grounding-dyno-tiny")
    with pytest.raises(ValueError, match=f"must be a name, hub id, folder or file, got nothing; {known}"):
        load_detector(" ")
    with pytest.raises(FileNotFoundError, match=r"no such detector file or folder: dino.pth"):
        load_detector("dino.pth")
    with pytest.raises(CheckpointError, match=f"someone/dino is not on this machine .*{known}; there is no folder"):
        load_detector("someone/dino")
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(CheckpointError, match="of model_type grounding-dino, mm-grounding-dino, owlv2, got detr"):
        load_detector(tmp_path)


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    folder = saved_detector("owlv2", tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(CheckpointError, match=r"is no Owlv2ForObjectDetection: 32 tensors missing \(owlv2"):
        load_detector(folder, device="cpu")
    (folder / "config.json").write_text(config.replace('"image_size": 64', '"image_size": "wide"'))
    with pytest.raises(CheckpointError, match="describes no network that can be built"):
        load_detector(folder, device="cpu")


def test_the_catalogue_is_shown_without_transformers():
    code = "import sys; from anymask.grounding.detect import is_here; is_here(); print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_each_entry_says_what_a_user_wants_to_know():
    for name, entry in CATALOGUE.items():
        about = entry.describe()
        assert name == entry.name and about["hub_id"].count("/") == 1 and about["megabytes"] > 600
        assert about["licence"] == "Apache-2.0" and about["note"] and about["prompts"] == ["text"]


def test_words_below_the_text_threshold_do_not_count():
    probs = np.asarray([[0.5, 0.2, 0.5, 0.1]], np.float32)
    spans = [slice(0, 2), slice(2, 4)]
    best, mean = dino._of_spans(probs, spans, 0.15)
    np.testing.assert_allclose(best, [[0.5, 0.5]])
    np.testing.assert_allclose(mean, [[0.35, 0.25]])
    detector = tiny_dino()
    image = noise_image((90, 130))
    low = detector.detect(image, ["dog", "red car"], DetectionThresholds(0.001, 0.0))
    high = detector.detect(image, ["dog", "red car"], DetectionThresholds(0.001, 0.99))
    assert len(low) > 0 and len(high) == 0
