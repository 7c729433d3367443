"""Original tensors of SAM 3 under transformers' names: the full list, and the package's own code with these weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from anymask.models import sam3_detector, sam3_keys
from anymask.models.checkpoints import load_strictly
from anymask.models.sam3 import Sam3
from anymask.models.sam3_text import MERGES
from anymask.types import Exemplar, Image, Prompt
from original_sam3 import answer, interactive, original_sam3
from tiny_sam3 import tiny_sam3, tiny_sam3_config, tiny_sam3_detector_config, write_tiny_merges

SIZES = ((40, 70), (70, 40), (57, 33))  # landscape, portrait, odd


def original_list() -> dict[str, torch.Tensor]:
    """The 1465 tensors of sam3.pt, without memory."""
    found = {}
    for line in (Path(__file__).parent / "sam3_original.txt").read_text().splitlines()[1:]:
        pattern, shape = line.split(" ")
        names = [""]
        for start, first, last in re.findall(r"([^\[]+)(?:\[(\d+)-(\d+)\])?", pattern.replace("]", "]\0")):
            numbers = range(int(first), int(last) + 1) if first else ("",)
            names = [f"{name}{start.removeprefix(chr(0))}{number}" for name in names for number in numbers]
        size = [int(side) for side in shape.split(",")]
        found |= {name.replace("\0", ""): torch.empty(size, device="meta") for name in names}
    return found


def shapes_of(state):
    return {name: tensor.shape for name, tensor in state.items()}


def full_size(kind: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = AutoModel.from_config(AutoConfig.for_model(**sam3_keys.config_of(kind)))
    return shapes_of(network.state_dict())


def test_every_original_tensor_of_full_size_has_its_place():
    state = original_list()
    assert len(state) == 1465
    assert sam3_keys.recognise(shapes_of(state)) == "sam3"
    assert shapes_of(sam3_keys.renamed(state, "sam3")) == full_size("sam3")


@pytest.mark.parametrize("prefix", ["detector.", ""])
def test_a_detector_saved_alone_is_recognised(prefix):
    state = {k.replace("detector.", prefix): v for k, v in original_list().items() if k.startswith("detector.")}
    assert sam3_keys.recognise(shapes_of(state)) == "sam3_detector"
    assert shapes_of(sam3_keys.renamed(state, "sam3_detector")) == full_size("sam3_detector")


def test_other_models_are_not_recognised():
    assert sam3_keys.recognise({}) is None
    assert sam3_keys.recognise({"image_encoder.trunk.pos_embed": torch.Size([1])}) is None
    assert sam3_keys.recognise({sam3_keys.MARK: torch.Size([1, 577, 1024])}) is None


def test_a_missing_tensor_is_named(tmp_path):
    state = original_list()
    del state["tracker.no_mem_embed"], state["detector.dot_prod_scoring.hs_proj.bias"]
    state["tracker.no_mem_embed"] = torch.empty(1, 1, 128, device="meta")
    with torch.device("meta"):
        network = AutoModel.from_config(AutoConfig.for_model("sam3_video"))
    with pytest.raises(Exception, match="1 tensors missing .*query_proj.bias.*1 tensors of another shape"):
        load_strictly(network, sam3_keys.renamed(state, "sam3"), tmp_path, "SAM 3")


# --- the package's own code


@pytest.fixture(scope="module")
def original():
    """The package calls for a GPU where it pins memory; it works without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        yield original_sam3()


@pytest.fixture(scope="module")
def model(original, tmp_path_factory) -> Sam3:
    """The tiny model, read as a user's sam3.pt is, with its tokenizer beside it."""
    path = write_tiny_merges(tmp_path_factory.mktemp("sam3")) / "sam3.pt"
    with pytest.MonkeyPatch.context() as patch:
        config = tiny_sam3_config()
        patch.setattr(sam3_keys, "config_of", lambda kind: config)
        state = original.state_dict()
        kind = sam3_keys.recognise(shapes_of(state))
        return Sam3.from_original(dict(state), kind, path, "cpu", torch.float32, "sam3")


def picture(size, seed=0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_exemplars_with_a_name_give_what_the_package_gives(size, original, model):
    image, (h, w) = picture(size), size
    corners = np.float32([[5, 4, 20, 21], [12.5, 8, 31, 30]])
    shares = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1) / (w, h, w, h)
    expected = answer(
        original.detector, model.source.parent / MERGES, image.pixels, "Red car", np.float32(shares), [1, 0]
    )
    shown = tuple(Exemplar(box=tuple(box), positive=i == 0) for i, box in enumerate(corners.tolist()))
    found = detected(model, image, Prompt.text("Red car") + Prompt(exemplars=shown))
    assert_same_detection(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_a_name_alone_gives_what_the_package_gives(size, original, model):
    image = picture(size)
    expected = answer(original.detector, model.source.parent / MERGES, image.pixels, "dog", None, [])
    assert_same_detection(detected(model, image, Prompt.text("dog")), expected)


def detected(model, image, prompt):
    features = model.encode([image])[0]
    questions = model.encode_text([prompt]).tensors["questions"]
    with torch.inference_mode():
        return sam3_detector.detect(model.detector, features.tensors, features.frame, questions)


def assert_same_detection(found, expected):
    assert found.pred_masks.std() > 0.1
    torch.testing.assert_close(found.pred_masks, expected["pred_masks"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.semantic_seg, expected["semantic_seg"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.pred_logits, expected["pred_logits"][..., 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.presence_logits, expected["presence_logit_dec"], atol=1e-4, rtol=0)


SPATIAL = {
    "a click": Prompt.point(7, 9),
    "clicks": Prompt.points([(7, 9), (20, 14)], [1, 0]),
    "a box": Prompt.box(3, 4, 25, 22),
    "a box and a click": Prompt.box(3, 4, 25, 22) + Prompt.point(7, 9, 0),
    "logits and a click": Prompt.mask(np.random.default_rng(1).normal(0, 5, (16, 16)).astype(np.float32))
    + Prompt.point(7, 9),
}


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_clicks_boxes_and_masks_give_what_the_package_gives(size, multimask, original, model):
    predictor = interactive(original, picture(size).pixels)
    features = model.encode([picture(size)])
    for what, prompt in SPATIAL.items():
        one = model.decode(features, [[prompt]], multimask_output=multimask)[0]
        labels = prompt.point_labels if len(prompt.point_labels) else None
        prepared = predictor._prep_prompts(
            None if labels is None else prompt.point_coords,
            labels,
            None if prompt.box_coords is None else np.asarray(prompt.box_coords),
            None if prompt.mask_input is None else prompt.mask_input[None],
            True,
        )
        mask, points, labels, box = prepared
        _, iou, low = predictor._predict(points, labels, box, mask, multimask, return_logits=True)
        assert one.logits.std() > 0.05, what
        torch.testing.assert_close(one.logits.clamp(-32, 32), low, atol=1e-4, rtol=0, msg=what)
        torch.testing.assert_close(one.predicted_iou, iou, atol=1e-4, rtol=0, msg=what)


def test_a_detector_alone_is_read_from_its_original(original, tmp_path, monkeypatch):
    monkeypatch.setattr(sam3_keys, "config_of", lambda kind: tiny_sam3_detector_config())
    state = {k: v for k, v in original.state_dict().items() if k.startswith("detector.")}
    kind = sam3_keys.recognise(shapes_of(state))
    alone = Sam3.from_original(state, kind, tmp_path / "fine.pt", "cpu", torch.float32, "fine")
    assert alone.tracker is None
    whole = tiny_sam3()
    whole.network.load_state_dict(sam3_keys.renamed(original.state_dict(), "sam3"))
    first, second = (one.encode([picture((40, 70))])[0].tensors["detector_2"] for one in (alone, whole))
    torch.testing.assert_close(first, second)
