"""Names to masks through detectors: the stages on a scene whose answers are known, and tiny models of every family."""

import numpy as np
import pytest
import torch
from skimage import data

from anymask.data.drawing import draw
from anymask.grounding.loading import load_grounding
from anymask.grounding.pipeline import Grounding, GroundingSettings
from anymask.grounding.pocket_scorer import PocketScorer
from anymask.grounding.protocol import Detections, DetectionThresholds, ScoreMaps
from anymask.grounding.quality import CRITERIA, QualityWeights
from anymask.models.load import load
from anymask.models.protocol import Capabilities, Decoded
from anymask.segmentation import segment
from anymask.types import Concept, Features, Frame, Image, Masks, Prompt
from tiny_detectors import tiny_dino, tiny_owl
from tiny_families import tiny_sam, tiny_sam2

SIZE = (64, 96)
IMAGE = Image(np.zeros((*SIZE, 3), np.uint8), "scene")
CAT, DOG = (8, 8, 40, 40), (48, 16, 88, 56)


class Boxes:
    """A model whose masks of a box are its left half, all of it and its right half; it counts what it is asked."""

    name, capabilities, input_size = "boxes", Capabilities(), SIZE

    def __init__(self) -> None:
        self.encoded, self.asked = 0, list[int]()

    def encode(self, images, crop_boxes=None):
        self.encoded += 1
        crop = crop_boxes[0] if crop_boxes else None
        return [Features("boxes", Frame.stretched(image.size, SIZE, crop), {}) for image in images]

    def decode(self, features, prompts, multimask_output=None):
        self.asked.append(len(prompts[0]))
        answers = [self._answer(prompt, features[0].frame) for prompt in prompts[0]]
        return [Decoded(torch.stack(answers), torch.tensor([[0.9, 0.8, 0.7]] * len(answers)))]

    def encode_text(self, prompts):
        raise AssertionError("it knows no names")

    def ground(self, features, text, instances=True):
        raise AssertionError("it knows no names")

    def _answer(self, prompt, frame):
        corners = np.asarray(prompt.box_coords, np.float32).reshape(2, 2)
        x0, y0, x1, y1 = frame.to_model(corners).round().astype(int).reshape(-1).tolist()
        logits = torch.full((3, *SIZE), -5.0)
        middle = (x0 + x1) // 2
        for row, (left, right) in enumerate(((x0, middle), (x0, x1), (middle, x1))):
            logits[row, max(y0, 0) : y1, max(left, 0) : right] = 5.0
        return logits


class Known:
    """A detector that finds what it is told, and a scorer that likes masks that fill their box."""

    name, thresholds, notes = "known", DetectionThresholds(), ()

    def __init__(self, *found: tuple, maps: ScoreMaps | None = None) -> None:
        self.found, self.maps = found, maps

    def detect(self, image, names, thresholds=None):
        rows = [row for row in self.found if row[1] in names and row[2] >= thresholds.box]
        nearest = {name: max((row[2] for row in self.found if row[1] == name), default=0.0) for name in names}
        return Detections(
            np.asarray([row[0] for row in rows], np.float32).reshape(-1, 4),
            np.asarray([row[2] for row in rows], np.float32),
            tuple(row[1] for row in rows),
            nearest,
            maps=self.maps,
        )

    def score_windows(self, image, windows, names):
        raise AssertionError("there is a detector")

    def score_masks(self, image, masks, names):
        scale = (image.size[0] * image.size[1]) / masks[0].size
        full = {name: (box[2] - box[0]) * (box[3] - box[1]) for box, name, _ in self.found}
        areas = masks.sum(axis=(1, 2)) * scale
        return np.stack([np.minimum(1, areas / full.get(name, 1e9)) for name in names], axis=1).astype(np.float32)


def known(*found: tuple, **settings) -> Grounding:
    both = Known(*found)
    return Grounding(both, both, GroundingSettings(**settings))


def test_the_candidate_of_the_highest_quality_is_chosen_and_all_is_told():
    model = Boxes()
    masks = segment(
        IMAGE, text=["cat", "dog"], model=model, detector=known((CAT, "cat", 0.9), (DOG, "dog", 0.6)), cleanup=None
    )
    assert masks.labels == ("cat", "dog") and masks.ids.tolist() == [1, 2]
    assert masks.boxes.tolist() == [list(CAT), list(DOG)]
    assert model.encoded == 1
    assert set(masks.measures) == {"quality", *CRITERIA, "detected", "predicted_iou"}
    np.testing.assert_allclose(masks.measures["detected"], [0.9, 0.6])
    np.testing.assert_allclose(
        masks.scores, masks.measures["detected"] * 0.8 * masks.measures["quality"] ** 2, rtol=1e-5
    )
    assert masks.made_by["detector"] == masks.made_by["scorer"] == "known"
    assert set(masks.made_by["seconds"]) == {"detect", "encode", "decode", "judge", "refine", "settle"}


def test_the_candidates_of_the_surest_object_are_kept_the_best_first():
    masks = segment(IMAGE, text=["cat", "dog"], model=Boxes(), detector=known((CAT, "cat", 0.9), (DOG, "dog", 0.6)))
    weighed = masks.candidates
    assert len(weighed) == 3 and set(weighed.labels) == {"cat"}
    assert weighed.scores.tolist() == sorted(weighed.scores.tolist(), reverse=True)
    assert weighed.boxes[0].tolist() == list(CAT)


def test_without_choice_the_model_picks():
    masks = segment(IMAGE, text="cat", model=Boxes(), detector=known((CAT, "cat", 0.9), choose=False), cleanup=None)
    assert masks.boxes.tolist() == [[8, 8, 24, 40]]  # the half of the highest predicted IoU


def test_weights_of_quality_decide():
    def halves(masks):
        return (masks.boxes[:, 2] - masks.boxes[:, 0]).tolist() == [16]

    found = ((CAT, "cat", 0.9),)
    small = QualityWeights(text=0, compactness=0, size=1, smoothness=0, best_size=(0.0, 0.01))
    assert halves(segment(IMAGE, text="cat", model=Boxes(), detector=known(*found, quality=small), cleanup=None))
    assert not halves(segment(IMAGE, text="cat", model=Boxes(), detector=known(*found), cleanup=None))


def test_a_name_refused_more_surely_is_no_find():
    grounding = known((CAT, "cat", 0.5), (CAT, "toy", 0.8), (DOG, "cat", 0.5))
    masks = segment(IMAGE, text="cat", not_text="toy", model=Boxes(), detector=grounding, cleanup=None)
    assert masks.labels == ("cat",) and masks.boxes.tolist() == [list(DOG)]


def test_a_negative_name_that_is_hardly_surer_takes_nothing_away():
    grounding = known((CAT, "cat", 0.5), (CAT, "toy cat", 0.52))
    assert segment(IMAGE, text="cat", not_text="toy cat", model=Boxes(), detector=grounding).labels == ("cat",)


def test_why_a_name_is_missing_is_told():
    grounding = known((CAT, "cat", 0.5), (CAT, "toy", 0.8), (DOG, "dog", 0.9), (DOG, "wolf", 0.6))
    names = ["cat", "dog", "wolf", "cow"]
    masks = segment(IMAGE, text=names, not_text="toy", model=Boxes(), detector=grounding)
    assert masks.labels == ("dog",)
    assert masks.made_by["missing"] == {"cat": "taken by 'toy'", "wolf": "taken by 'dog'", "cow": "0.00 of 0.30"}


def test_no_candidate_is_of_a_negative_name():
    grounding = known((CAT, "cat", 0.5), (DOG, "toy", 0.9))
    weighed = segment(IMAGE, text="cat", not_text="toy", model=Boxes(), detector=grounding).candidates
    assert set(weighed.labels) == {"cat"}
    only = known((DOG, "toy", 0.9))
    assert segment(IMAGE, text="cat", not_text="toy", model=Boxes(), detector=only).candidates is None


def test_nothing_found_says_how_near_it_was():
    model = Boxes()
    masks = segment(IMAGE, text=["cat", "cow"], model=model, detector=known((CAT, "cat", 0.2)))
    assert len(masks) == 0 and masks.size == SIZE and masks.candidates is None
    assert masks.made_by["nearest"] == {"cat": 0.2, "cow": 0.0}
    assert masks.made_by["thresholds"] == {"cat": 0.3, "cow": 0.3}
    assert model.encoded == 0  # there is nothing to make masks of


def test_a_concept_has_a_threshold_of_its_own():
    rare = Prompt.concept(Concept("cat", "", thresholds={"known": 0.1}))
    grounding = known((CAT, "cat", 0.2), (DOG, "dog", 0.2))
    masks = segment(IMAGE, [rare, Prompt.text("dog")], model=Boxes(), detector=grounding)
    assert masks.labels == ("cat",)
    other = Prompt.concept(Concept("cat", "", thresholds={"another detector": 0.1}))
    assert len(segment(IMAGE, other, model=Boxes(), detector=grounding)) == 0


def test_thresholds_of_a_user_hold():
    found = (CAT, "cat", 0.5), (DOG, "dog", 0.9)
    assert segment(IMAGE, text=["cat", "dog"], model=Boxes(), detector=known(*found, box_threshold=0.6)).labels == (
        "dog",
    )
    with pytest.raises(ValueError, match="box_threshold must be from 0 to 1, got 1.5"):
        GroundingSettings(box_threshold=1.5)


def test_a_score_can_be_demanded():
    grounding = known((CAT, "cat", 0.5), (DOG, "dog", 0.9))
    every = segment(IMAGE, text=["cat", "dog"], model=Boxes(), detector=grounding)
    sure = segment(IMAGE, text=["cat", "dog"], model=Boxes(), detector=grounding, min_score=float(every.scores.mean()))
    assert sure.labels == ("dog",) and sure.scores[0] == every.scores.max()


def test_semantic_merges_and_tiles_join():
    found = (CAT, "cat", 0.9), (DOG, "cat", 0.8)
    masks = segment(IMAGE, text="cat", model=Boxes(), detector=known(*found), semantic=True, cleanup=None)
    assert masks.labels == ("cat",) and masks.areas.tolist() == [32 * 32 + 40 * 40]
    tiled = segment(IMAGE, text="cat", model=Boxes(), detector=known(*found), tile=64)
    assert set(tiled.labels) == {"cat"} and tiled.made_by["detector"] == "known"


def test_what_tiles_say_is_put_together():
    grounding = known((CAT, "cat", 0.9), (DOG, "dog", 0.2))
    one, tiled = (
        segment(IMAGE, text=["cat", "dog"], model=Boxes(), detector=grounding, tile=tile).made_by for tile in (None, 64)
    )
    assert tiled["missing"] == one["missing"] == {"dog": "0.20 of 0.30"} and tiled["nearest"] == {"dog": 0.2}
    assert tiled["refined"]["tried"] >= one["refined"]["tried"] and set(tiled["seconds"]) == set(one["seconds"])
    assert tiled["refined"].keys() == one["refined"].keys()


def test_low_masks_are_asked_for_again_at_most_three_times():
    class Vague(Known):
        def score_masks(self, image, masks, names):
            return np.full((len(masks), len(names)), 0.1, np.float32)

    model, vague = Boxes(), Vague((CAT, "cat", 0.9))
    masks = Grounding(vague, vague).find(model, IMAGE, [Prompt.text("cat")], zoom=True)
    assert masks.made_by["refined"]["tried"] == 1 and masks.made_by["refined"]["rounds"] <= 3
    assert len(model.asked) == 1 + masks.made_by["refined"]["rounds"]
    unrefined = Grounding(vague, vague, GroundingSettings(refine=False)).find(Boxes(), IMAGE, [Prompt.text("cat")])
    assert unrefined.made_by["refined"] == {}


def test_refinement_finds_the_better_mask_and_clicks_where_the_name_is_likely():
    clicks = list[np.ndarray]()

    class Halves(Boxes):
        def _answer(self, prompt, frame):
            answer = super()._answer(prompt, frame)
            clicks.append(prompt.point_coords)
            return answer if len(prompt.point_coords) else answer[[0, 0, 2]]  # the whole only for who clicks

    likely = np.zeros((1, 16, 24), np.float32)
    likely[0, 8:10, 3:5] = 1
    maps = ScoreMaps(("cat",), likely)
    both = Known((CAT, "cat", 0.9), maps=maps)
    masks = Grounding(both, both, GroundingSettings(quality=QualityWeights(best_size=(0.2, 0.5)))).find(
        Halves(), IMAGE, [Prompt.text("cat")]
    )
    assert masks.boxes.tolist() == [list(CAT)] and masks.made_by["refined"]["better"] == 1
    asked = clicks[1]
    assert 8 <= asked[0, 0] <= 24 and 28 <= asked[0, 1] <= 42  # on the likely place, in the first mask


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            Prompt.concept(Concept("mine", "pocket", np.ones((1, 4), np.float32))),
            "the concept 'mine' holds vectors that pocket reads",
        ),
    ],
)
def test_what_a_detector_cannot_find_is_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        segment(IMAGE, prompts, model=Boxes(), detector=known())


def test_a_zoom_without_a_detector_has_no_effect_and_says_so():
    with pytest.raises(
        ValueError, match="pocket finds texts itself, at one size: zoom is for points, boxes, masks, a det"
    ):
        segment(IMAGE, text="cat", zoom=True)


@pytest.fixture(scope="module")
def pocket():
    return load("pocket")


LOW = GroundingSettings(box_threshold=0.001, text_threshold=0.001)


@pytest.mark.parametrize("make_model", [tiny_sam, tiny_sam2])
@pytest.mark.parametrize("make_detector", [tiny_dino, lambda: tiny_dino("mm-grounding-dino"), tiny_owl])
def test_real_families_go_from_text_to_box_to_mask(make_model, make_detector, pocket):
    image = Image(np.ascontiguousarray(data.chelsea()[:200, :150]), "cat")
    grounding = Grounding(make_detector(), PocketScorer(pocket), LOW)
    masks = segment(image, text=["dog", "a cat"], not_text="red car", model=make_model(), detector=grounding)
    assert masks.size == (200, 150) and set(masks.labels) <= {"a cat", "dog"}
    assert len(masks) and (masks.areas > 0).all() and np.isfinite(masks.scores).all()
    draw(image, masks)


def test_one_image_costs_one_pass_of_each_encoder(pocket):
    detector, model, passes = tiny_dino(), tiny_sam2(), {"detector": 0, "model": 0}

    def count(name):
        def hook(*_):
            passes[name] += 1

        return hook

    backbone = next(m for n, m in detector.network.named_modules() if n.endswith("conv_encoder.encoder.model"))
    backbone.register_forward_hook(count("detector"))
    model.network.vision_encoder.backbone.register_forward_hook(count("model"))
    names = ["cat", "dog", *(f"thing {i}" for i in range(120))]
    masks = segment(
        Image(data.chelsea(), "cat"), text=names, model=model, detector=Grounding(detector, PocketScorer(pocket), LOW)
    )
    assert passes == {"detector": 1, "model": 1} and masks.made_by["refined"]["rounds"] > 0


def test_windows_of_pocket_serve_a_model_that_knows_no_names(pocket, caplog):
    caplog.set_level("INFO", "anymask")
    masks = segment(Image(data.chelsea(), "cat"), text=["cat", "locomotive"], model=tiny_sam2())
    assert masks.made_by["detector"] == "windows of pocket" and masks.made_by["scorer"] == "pocket"
    assert "no detector is on this machine: windows stand in" in caplog.text
    assert any("stand in" in note for note in masks.made_by["notes"])
    assert "locomotive" in masks.made_by["nearest"]


def test_without_a_scorer_masks_are_judged_by_their_boxes():
    finder = Known((CAT, "cat", 0.9))
    masks = segment(IMAGE, text="cat", model=Boxes(), detector=Grounding(finder, None), cleanup=None)
    assert masks.boxes.tolist() == [list(CAT)] and masks.made_by["scorer"] is None
    assert masks.measures["text"].tolist() == pytest.approx([1.0])


def test_a_cat_is_found_through_windows(pocket):
    image = Image(data.chelsea(), "cat")
    masks = segment(image, text=["cat", "dog"], model=pocket, detector="windows")
    assert masks.labels[0] == "cat" and masks.areas[0] > 0.2 * image.size[0] * image.size[1]


def test_a_missing_detector_says_what_to_fetch_and_windows_stand_in_only_if_allowed(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Exception, match="IDEA-Research/grounding-dino-tiny is not on this machine"):
        load_grounding("IDEA-Research/grounding-dino-tiny")
    grounding = load_grounding("IDEA-Research/grounding-dino-tiny", fallback=True)
    assert grounding.detector.name == "windows of pocket"
    assert any("stand in for the detector: IDEA-Research/grounding-dino-tiny" in note for note in grounding.notes)


NAMES = ["", "  ", "🐈", "猫", "кошка", "a " * 300 + "cat", "x" * 5000, "cat.dog, bird", "CAT"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("detector", [None, "windows", "dino"])
def test_strange_names(name, detector, pocket):
    image = Image(np.ascontiguousarray(data.chelsea()[:120, :160]), "cat")
    grounding = Grounding(tiny_dino(), PocketScorer(pocket)) if detector == "dino" else detector
    if not name.strip():
        with pytest.raises(ValueError, match="a text prompt must name something"):
            segment(image, text=name, model=pocket, detector=grounding)
        return
    masks = segment(image, text=name, model=pocket, detector=grounding)
    assert set(masks.labels) <= {name}


def test_three_hundred_names(pocket):
    image = Image(np.ascontiguousarray(data.chelsea()[:120, :160]), "cat")
    names = [f"thing {i}" for i in range(299)] + ["cat"]
    masks = segment(image, text=names, model=pocket)
    assert set(masks.labels) <= set(names) and len(masks.made_by["thresholds"]) == 300
    assert isinstance(masks, Masks)
