"""The public `segment` on the tiny model and on a model with known answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anymask.asking import collect_prompts
from anymask.models.feature_cache import FeatureCache
from anymask.models.load import load
from anymask.models.protocol import Capabilities, CheckpointError, Decoded, EncodedText, Grounded, Thresholds
from anymask.names import find
from anymask.ops import rle
from anymask.prompting import predict
from anymask.segmentation import segment, segment_batch
from anymask.types import Exemplar, Features, Frame, Image, Prompt
from scenes import COLOURS, ColourModel
from tiny import tiny_model
from tiny_families import tiny_sam


def picture() -> Image:
    return Image(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


class KnownModel:
    """Finds "a" in the top left quarter surely, "b" there less surely and at the bottom right, "none" nowhere."""

    name = "known"
    capabilities = Capabilities(text=True)

    def encode(self, images: Sequence[Image], crop_boxes: object = None) -> list[Features]:
        return [Features("known", Frame.stretched(image.size, (64, 64)), {}) for image in images]

    def decode(self, features: Sequence[Features], prompts: object, multimask_output: bool = False) -> list[Decoded]:
        raise AssertionError("text needs no decode here")

    def encode_text(self, prompts: Sequence[Prompt]) -> EncodedText:
        return EncodedText(tuple(prompt.name or "" for prompt in prompts), {})

    def ground(self, features: Features, text: EncodedText, instances: bool = True) -> list[Grounded]:
        return [self._one(name) for name in text.names]

    def _one(self, name: str) -> Grounded:
        quarters = torch.full((2, 16, 16), -9.0)
        quarters[0, :8, :8], quarters[1, 8:, 8:] = 9.0, 9.0
        rows, scores = {"a": ([0], [0.9]), "b": ([0, 1], [0.7, 0.8]), "none": ([], [])}[name]
        return Grounded(
            0.1 if name == "none" else 1.0,
            quarters[rows].amax(0) if rows else quarters[0] * 0 - 9,
            quarters[rows],
            torch.tensor(scores),
        )


IMAGE = Image(np.zeros((40, 60, 3), np.uint8))


def test_an_object_gets_one_name_and_the_surer_one() -> None:
    assert segment(IMAGE, text=["b", "a"], model=KnownModel()).ids.tolist() == [1, 2]
    masks = segment(IMAGE, text=["a", "b", "none"], model=KnownModel())
    assert masks.labels == ("a", "b")
    assert masks.boxes.tolist() == [[0, 0, 30, 20], [30, 20, 60, 40]]
    assert masks.ids.tolist() == [1, 2]


def test_a_negative_name_takes_away_what_it_claims_more_surely() -> None:
    model = KnownModel()
    assert segment(IMAGE, text="b", not_text="a", model=model).boxes.tolist() == [[30, 20, 60, 40]]
    assert len(segment(IMAGE, text="a", not_text="b", model=model)) == 1


def test_semantic_gives_one_union_a_name_present() -> None:
    model = KnownModel()
    masks = find(model, model.encode([IMAGE])[0], ["b", "none"], semantic=True)
    assert masks.labels == ("b",) and masks.areas.tolist() == [1200]


def test_all_kinds_together_have_ids_of_their_own() -> None:
    masks = segment(IMAGE, points=[(5, 5)], boxes=[(1, 1, 30, 30)], text="person", model=tiny_model())
    assert masks.ids[:2].tolist() == [1, 2] and len(set(masks.ids.tolist())) == len(masks)


def test_paths_and_arrays_are_images_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image as PillowImage

    PillowImage.fromarray(IMAGE.pixels).save(tmp_path / "a.png")
    model = tiny_model()
    by_path, by_array = (segment(i, points=[(5, 5)], model=model) for i in (tmp_path / "a.png", IMAGE.pixels))
    np.testing.assert_array_equal(by_path.masks, by_array.masks)


def test_a_batch_equals_singles() -> None:
    images = [IMAGE, Image(np.full((30, 20, 3), 200, np.uint8))]
    prompts = [[Prompt.point(5, 5)], [Prompt.box(1, 1, 9, 9), Prompt.point(3, 3)]]
    model = tiny_model()
    for image, some, result in zip(images, prompts, segment_batch(images, prompts, model=model), strict=True):
        np.testing.assert_array_equal(result.masks, segment(image, some, model=model).masks)


def test_prompts_are_collected_by_object() -> None:
    wanted = collect_prompts(None, [(1, 2), (3, 4)], [1, 0], [(0, 0, 5, 5), (1, 1, 9, 9)], None, ["cat", "dog"], "toy")
    assert [len(p.point_coords) for p in wanted] == [2, 0, 0, 0, 0]
    assert [p.name for p in wanted[3:]] == ["cat", "dog"] and wanted[3].negative_names == ("toy",)


def test_nothing_to_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to segment: give a point, a box, a mask, a text or an exemplar"):
        segment(IMAGE, model=tiny_model())
    with pytest.raises(ValueError, match="a negative text needs a text"):
        segment(IMAGE, points=[(1, 1)], not_text="cat", model=tiny_model())


def test_a_model_without_text_says_so() -> None:
    class Mute(KnownModel):
        name, capabilities = "mute", Capabilities()

    with pytest.raises(
        ValueError, match="mute knows no text: use pocket or sam3, or prompt with points, boxes or a mask"
    ):
        find(Mute(), Mute().encode([IMAGE])[0], ["cat"])


def test_unknown_models_are_named_with_the_nearest(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="unknown model 'poket': the nearest known are pocket"):
        load("poket")
    with pytest.raises(FileNotFoundError, match="no such model file or folder: no/such.safetensors"):
        load("no/such.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="is a text file, not weights"):
        load(tmp_path / "x.safetensors")
    metadata = {"network": "{}", "text": "{}"}
    save_file({"network.x": torch.zeros(2)}, tmp_path / "y.safetensors", metadata)
    with pytest.raises(CheckpointError, match="y.safetensors holds no whole pocket model"):
        load(tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="device must be one of auto, cpu"):
        load("pocket", device="abacus")


# --- exemplars


class ShownModel(KnownModel):
    """Knows exemplars, and remembers what it was asked."""

    capabilities = Capabilities(text=True, exemplars=True)

    def encode_text(self, prompts: Sequence[Prompt]) -> EncodedText:
        self.asked = prompts
        return EncodedText(tuple(prompt.name or "a" for prompt in prompts), {})


def test_exemplars_refine_the_one_text_or_stand_alone() -> None:
    model, other = ShownModel(), Image(np.zeros((9, 9, 3), np.uint8), "other")
    shown = [(1, 2, 9, 8), Exemplar(other, mask=np.eye(9, dtype=bool), positive=False)]
    masks = segment(IMAGE, text="a", exemplars=shown, not_exemplars=[(4.5, 5, 60, 40)], model=model)
    [asked] = model.asked
    assert masks.labels == ("a",)
    assert asked.name == "a"
    assert [one.box for one in asked.exemplars] == [(1, 2, 9, 8), None, (4.5, 5, 60, 40)]
    assert [one.positive for one in asked.exemplars] == [True, True, False]
    assert asked.exemplars[1].image is other
    assert segment(IMAGE, exemplars=shown, model=model).labels == ("",)
    assert model.asked[0].name is None and len(model.asked[0].exemplars) == 2


def test_exemplars_stand_beside_prompts_given_whole() -> None:
    model = ShownModel()
    segment(IMAGE, Prompt.text("b"), exemplars=[(1, 2, 9, 8)], model=model)
    assert [(prompt.name, len(prompt.exemplars)) for prompt in model.asked] == [("b", 0), (None, 1)]


WRONG_EXEMPLARS = {
    "two texts": ({"text": ["a", "b"], "exemplars": [(1, 1, 5, 5)]}, "exemplars refine one text or stand alone: got 2"),
    "negative alone": ({"not_exemplars": [(1, 1, 5, 5)]}, "a negative exemplar needs a text or a positive exemplar"),
    "outside": (
        {"exemplars": [(1, 1, 61, 5)]},
        "an exemplar box must lie in the image of 60 x 40 pixels, got 1,1,61,5",
    ),
    "turned": ({"exemplars": [(5, 1, 2, 5)]}, "an exemplar box must lie in the image of 60 x 40 pixels, got 5,1,2,5"),
    "three numbers": ({"exemplars": [(5, 1, 2)]}, "an exemplar must be a box x0 y0 x1 y1 or an Exemplar, got"),
    "mask of another size": (
        {"exemplars": [Exemplar(mask=np.ones((3, 4), bool))]},
        r"the mask of an exemplar must be bool \(40, 60\) \(h, w\) like the image of 60 x 40 pixels, got \(3, 4\)",
    ),
    "empty mask": ({"exemplars": [Exemplar(mask=np.zeros((40, 60), bool))]}, "must mark something, got an empty mask"),
    "outside another image": (
        {"exemplars": [Exemplar(Image(np.zeros((9, 8, 3), np.uint8), "other"), box=(1, 1, 9, 9))]},
        "an exemplar box must lie in other of 8 x 9 pixels, got 1,1,9,9",
    ),
}


@pytest.mark.parametrize("case", WRONG_EXEMPLARS)
def test_wrong_exemplars_are_refused(case) -> None:  # type: ignore[no-untyped-def]
    given, message = WRONG_EXEMPLARS[case]
    with pytest.raises(ValueError, match=message):
        segment(IMAGE, model=ShownModel(), **given)


def test_a_model_without_exemplars_names_one_that_knows_them() -> None:
    with pytest.raises(ValueError, match=r"known knows no exemplars: use sam3 \(--model facebook/sam3\)"):
        segment(IMAGE, exemplars=[(1, 1, 5, 5)], model=KnownModel())


def test_thresholds_are_the_familys_own() -> None:
    class Strict(KnownModel):
        capabilities = Capabilities(text=True, thresholds=Thresholds(presence=0.5, instance=0.0, product=0.75))

    assert find(Strict(), Strict().encode([IMAGE])[0], ["b"]).scores.tolist() == pytest.approx([0.8])
    assert len(find(KnownModel(), KnownModel().encode([IMAGE])[0], ["b"])) == 2


def test_a_lone_click_gets_the_surest_candidate():
    """A click may mean a part or the whole: of all candidates the model's own choice is the answer."""
    model, image = tiny_sam(), picture()
    candidates = segment(image, points=[(30, 20)], model=model, multimask=True)
    best = segment(image, points=[(30, 20)], model=model)
    assert best.scores[0] == candidates.scores.max()
    np.testing.assert_array_equal(best.masks[0], candidates.best().masks[0])
    assert segment_batch([image], [[Prompt.point(30, 20)]], model=model)[0].scores[0] == candidates.scores.max()
    features = model.encode([image])[0]
    single = predict(model, features, [Prompt.point(30, 20)], multimask_output=False)
    assert single.scores[0] not in candidates.scores


def test_what_cannot_be_answered_is_said_before_the_image_is_encoded(monkeypatch):
    model = tiny_sam()
    monkeypatch.setattr(model, "encode", lambda images: pytest.fail("encoded for nothing"))
    for wrong, message in (
        ({"text": "cat", "not_text": " Cat"}, "' Cat' is asked for and refused at once"),
        ({"text": "cat", "cleanup": "soap"}, "cleanup must be adaptive, classic or None, got 'soap'"),
        ({"exemplars": [(1, 1, 5, 5)]}, "tiny-sam knows no exemplars: use sam3"),
        ({"points": [(-5, 3)]}, "a point must lie in the image"),
        ({"points": [(1, 1)], "zoom": True, "multimask": True}, "zoom gives one mask an object"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(picture(), model=model, **wrong)


def test_a_model_that_answers_nan_is_named():
    model = tiny_sam()
    for p in model.network.mask_decoder.parameters():
        p.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="tiny-sam answers with NaN"):
        segment(picture(), points=[(5, 5)], model=model)


def test_a_model_is_named_by_a_path_too(tmp_path):
    tiny_sam().save(tmp_path / "sam")
    assert len(segment(picture(), points=[(5, 5)], model=tmp_path / "sam")) == 1


# --- in tiles


def coloured() -> tuple[Image, dict[str, list[np.ndarray]]]:
    """Patches by colour, and the image of them: one over three tiles, two that touch, one that is large, some small."""
    pixels, masks = np.zeros((180, 300, 3), np.uint8), {name: [] for name in COLOURS}
    patches = [
        ("red", 10, 10, 290, 30),
        ("red", 5, 50, 15, 60),
        ("green", 40, 60, 128, 100),
        ("blue", 128, 60, 250, 100),
    ]
    for name, x0, y0, x1, y1 in [*patches, ("blue", 280, 160, 300, 180), ("green", 120, 140, 140, 170)]:
        pixels[y0:y1, x0:x1] = COLOURS[name]
        masks[name].append(np.zeros(pixels.shape[:2], bool))
        masks[name][-1][y0:y1, x0:x1] = True
    return Image(pixels), masks


def test_names_in_tiles_are_found_as_in_one_look() -> None:
    image, truth = coloured()
    model = ColourModel()
    masks = segment(image, text=["red", "green", "blue"], model=model, tile=128, overlap=24)
    assert sorted(masks.labels) == ["blue", "blue", "green", "green", "red", "red"]
    for name, some in truth.items():
        found = masks[[label == name for label in masks.labels]]
        np.testing.assert_array_equal(rle.iou(rle.encode(np.stack(some)), found.rles).max(axis=1), 1)
    assert masks.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert model.texts == 1 and model.encoded == [(180, 300)] + [(128, 128)] * 6


def test_a_union_in_tiles_is_the_union() -> None:
    image, truth = coloured()
    masks = segment(image, text=["red", "blue"], model=ColourModel(), tile=128, semantic=True)
    assert masks.labels == ("red", "blue") and masks.ids.tolist() == [1, 2]
    for mask, name in zip(masks.masks, masks.labels, strict=True):
        np.testing.assert_array_equal(mask, np.any(truth[name], axis=0))


@pytest.mark.parametrize("tile", [None, 128])
def test_a_missing_name_says_why(tile: int | None) -> None:
    image, _ = coloured()
    masks = segment(image, text=["red", "crimson"], not_text="blood", model=_Synonyms(), tile=tile)
    assert len(masks) == 0
    made_by = masks.made_by
    assert made_by["missing"] == {"red": "taken by 'blood'", "crimson": "0.20 of 0.50"}
    assert made_by["nearest"] == {"red": 0.5, "crimson": 0.2} and set(made_by["seconds"]) == {"encode", "ground"}


def test_a_name_that_another_takes_says_which() -> None:
    image, _ = coloured()
    masks = segment(image, text=["blood", "red"], model=_Synonyms(), tile=128)
    assert set(masks.labels) == {"blood"} and masks.made_by["missing"] == {"red": "taken by 'blood'"}
    assert {"encode", "ground", "clean"} == set(masks.made_by["seconds"])


def test_tiles_are_encoded_once_where_a_cache_is_kept() -> None:
    image, _ = coloured()
    kept = _Kept()
    segment(image, boxes=[(5, 50, 15, 60)], text="red", model=ColourModel(), tile=128, cache=kept)
    assert kept.asked == [(128, 128), (180, 300), *[(128, 128)] * 6]


class _Kept(FeatureCache):
    asked: list[tuple[int, int]]

    def encode(self, model, image, crop_box=None):  # type: ignore[no-untyped-def]
        self.__dict__.setdefault("asked", []).append(image.size)
        return super().encode(model, image, crop_box)


class _Synonyms(ColourModel):
    """All names mean red; "blood" is the surest, "crimson" not sure enough."""

    def _one(self, pixels: np.ndarray, name: str, instances: bool) -> Grounded:
        presence = {"blood": 0.9, "red": 0.5, "crimson": 0.2}[name]
        return replace(super()._one(pixels, "red", instances), presence=presence)


def test_where_no_tile_sees_a_name_the_whole_image_has_the_word() -> None:
    image, truth = coloured()
    unseen = ColourModel(presence={128: 0.0})
    assert len(segment(image, text="red", model=unseen, tile=128)) == 2
    union = segment(image, text="red", model=unseen, tile=128, semantic=True)
    np.testing.assert_array_equal(union.masks[0], np.any(truth["red"], axis=0))


@pytest.mark.parametrize(
    ("tile", "whole", "scores"),
    [(0.7, 0.1, []), (0.95, 0.1, [0.592, 0.592]), (0.3, 0.99, [0.99, 0.99]), (0.8, 0.99, [0.99, 0.99])],
)
def test_a_tile_must_be_surer_of_a_name_than_an_image(tile: float, whole: float, scores: list[float]) -> None:
    """From 0.5 on a name is there: odds of 19 in a tile and of 1 / 9 in the image have a mean of 1.45, or 0.592."""
    image, _ = coloured()
    found = segment(image, text="red", model=ColourModel({128: tile, 300: whole}), tile=128)
    assert found.scores.tolist() == pytest.approx(scores, abs=1e-3)


def test_negative_names_hold_in_tiles() -> None:
    image, _ = coloured()
    for semantic, count in ((False, 2), (True, 1)):
        names = {"text": "red", "not_text": ["blue", "green"]}
        assert len(segment(image, **names, model=ColourModel(), tile=128, semantic=semantic)) == count


def test_each_box_is_decoded_where_it_lies_whole() -> None:
    image, truth = coloured()
    model = ColourModel()
    boxes = [(128, 60, 250, 100), (5, 50, 15, 60), (10, 10, 290, 30), (20, 70, 25, 75), (280, 160, 300, 180)]
    masks = segment(image, boxes=boxes, model=model, tile=128, overlap=24)
    assert masks.ids.tolist() == [1, 2, 3, 4, 5]
    expected = [truth["blue"][0], truth["red"][1], truth["red"][0], None, truth["blue"][1]]
    for mask, true in zip(masks.masks, expected, strict=True):
        if true is not None:
            np.testing.assert_array_equal(mask, true)
    assert sorted(model.encoded) == [(128, 128), (128, 128), (128, 128), (180, 300)]


def test_boxes_and_names_in_tiles_have_ids_of_their_own() -> None:
    image, _ = coloured()
    masks = segment(image, boxes=[(5, 50, 15, 60)], text="red", model=ColourModel(), tile=128, multimask=True)
    assert masks.ids.tolist() == [1, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"text": "red", "overlap": 8}, "overlap is that of tiles: give the side of a tile too, got overlap 8 alone"),
        ({"text": "red", "tile": 32}, "a tile must be at least 64 pixels wide, got 32"),
        ({"text": "red", "tile": 64, "overlap": 64}, "the overlap must be from 0 to less than the tile of 64 pixels"),
        ({"points": [(1, 1)], "tile": 64}, "tile is for texts and boxes, .*: for a point or a mask use zoom"),
        ({"boxes": [(1, 1, 5, 5)], "tile": 64, "zoom": True}, "tile and zoom both look closer: ask for one of them"),
        ({"text": "red", "exemplars": [(1, 1, 5, 5)], "tile": 64}, "tile is for texts and boxes: an exemplar would be"),
    ],
)
def test_tiles_that_would_not_help_are_refused(asked: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        segment(IMAGE, model=ColourModel(), **asked)
