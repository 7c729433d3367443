"""The public `segment` on the tiny model and on a model with known answers."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anymask.models.load import load
from anymask.models.protocol import Capabilities, CheckpointError, Decoded, EncodedText, Grounded
from anymask.segmentation import collect_prompts, find, segment, segment_batch
from anymask.types import Features, Frame, Image, Prompt
from tiny import tiny_model


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
    with pytest.raises(ValueError, match="nothing to segment: give a point, a box, a mask or a text"):
        segment(IMAGE, model=tiny_model())
    with pytest.raises(ValueError, match="a negative text needs a text"):
        segment(IMAGE, points=[(1, 1)], not_text="cat", model=tiny_model())


def test_a_model_without_text_says_so() -> None:
    class Mute(KnownModel):
        name, capabilities = "mute", Capabilities()

    with pytest.raises(ValueError, match="mute knows no text"):
        segment(IMAGE, text="cat", model=Mute())


def test_unknown_models_are_named_with_the_nearest(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="unknown model 'poket': the nearest known are pocket"):
        load("poket")
    with pytest.raises(FileNotFoundError, match="no such model file or folder: no/such.safetensors"):
        load("no/such.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load(tmp_path / "x.safetensors")
    metadata = {"network": "{}", "text": "{}"}
    save_file({"network.x": torch.zeros(2)}, tmp_path / "y.safetensors", metadata)
    with pytest.raises(CheckpointError, match="y.safetensors holds no whole pocket model"):
        load(tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="device must be one of auto, cpu"):
        load("pocket", device="abacus")
