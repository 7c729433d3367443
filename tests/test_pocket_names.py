"""Many names on one image for pocket: every shortcut gives what whole decodes of each name give."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from anymask.models.decode import PromptTensors
from anymask.models.load import load
from anymask.models.pocket import PocketModel
from anymask.models.pocket_names import ABSENT, NEGLIGIBLE, PART_COUNTS, find_places
from anymask.models.protocol import EncodedText
from anymask.types import Concept, Features, Image, Prompt
from tiny import tiny_model

NAMES = ("cat", "tree", "the striped ear of a sleepy ginger cat beside a wall", "airplane", "face", "dog", "cat")


@pytest.fixture(scope="module")
def model() -> PocketModel:
    return load("pocket", "cpu", runtime="eager")


@pytest.fixture(scope="module")
def features(model: PocketModel) -> Features:
    """Cats of three sizes, apart and cut by the border."""
    cat, picture = data.chelsea(), np.full((300, 500, 3), 90, np.uint8)
    for (h, w), (y, x) in (((150, 225), (0, 0)), ((100, 150), (180, 330)), ((60, 90), (20, 300))):
        picture[y : y + h, x : x + w] = cv2.resize(cat, (w, h), interpolation=cv2.INTER_AREA)
    return model.encode([Image(picture)])[0]


def whole(model: PocketModel, features: Features, text: Tensor, places: Tensor | None = None) -> tuple[Tensor, ...]:
    """Presence, first mask and its predicted IoU of one decode of the network, for each place or for none."""
    n = 1 if places is None else len(places)
    prompts = PromptTensors(torch.zeros(n, 0, 2), torch.zeros(n, 0, dtype=torch.long), text=text)
    if places is not None and (places[:, 2] > places[:, 0]).all():
        prompts = replace(prompts, boxes=places)
    elif places is not None:
        prompts = replace(prompts, point_coords=places[:, None, :2], point_labels=torch.ones(n, 1, dtype=torch.long))
    with torch.inference_mode():
        output = model.run(features.tensors, torch.zeros(n, dtype=torch.long), prompts)
    return output.presence.sigmoid(), output.logits[:, 0], output.predicted_iou[:, 0]


def wanting(text: EncodedText, presence: float) -> EncodedText:
    """The same names, counting from another presence on."""
    return replace(text, tensors={**text.tensors, "presence": (presence,) * len(text.names)})


def test_names_equal_whole_decodes_of_each(model: PocketModel, features: Features) -> None:
    text, apart, made = wanting(model.encode_text([Prompt.text(name) for name in NAMES]), 0.1), 0, 0
    for tokens, found in zip(text.tensors["tokens"], model.ground(features, text), strict=True):
        presence, union, _ = whole(model, features, tokens)
        assert found.presence == pytest.approx(float(presence), abs=1e-4)
        if presence < 0.1:
            assert (found.semantic_logits == ABSENT).all() and not len(found.logits)
            continue
        torch.testing.assert_close(found.semantic_logits, union[0], atol=1e-3, rtol=1e-4)
        places, limits = find_places(union[0])
        is_click = places[:, 2] <= places[:, 0]
        expected = [
            (row, score * (1 if kind else PART_COUNTS), limit)
            for kind in (True, False)
            if (is_click == kind).any()
            for row, score, limit in zip(
                *whole(model, features, tokens, places[is_click == kind])[1:], limits[is_click == kind], strict=True
            )
        ]
        for logits, score in zip(found.logits, found.scores, strict=True):
            row, _, limit = min(expected, key=lambda one: abs(float(one[1] - score)))
            inside = torch.zeros(logits.shape, dtype=torch.bool)
            (x0, y0), (x1, y1) = (limit[:2] / 16).floor().int() * 4 - 4, (limit[2:] / 16).ceil().int() * 4 + 4
            inside[max(0, y0) : y1, max(0, x0) : x1] = True
            torch.testing.assert_close(logits[inside], row[inside], atol=1e-3, rtol=1e-4)
            assert (logits[~inside] == ABSENT).all()
            apart, made = apart + int(not inside.all()), made + 1
        sure = [score for _, score, _ in expected[int(is_click.sum()) :] if score >= 0.28]
        assert found.scores[len(found.scores) - len(sure) :].tolist() == pytest.approx(
            [float(s) for s in sure], abs=1e-4
        )
    assert made > 5 and apart > 3


def test_a_name_gives_the_same_in_any_company(model: PocketModel, features: Features) -> None:
    together = model.ground(features, model.encode_text([Prompt.text(name) for name in NAMES]))
    for name, among in zip(NAMES, together, strict=True):
        [alone] = model.ground(features, model.encode_text([Prompt.text(name)]))
        assert alone.presence == pytest.approx(among.presence, abs=1e-4)
        torch.testing.assert_close(alone.semantic_logits, among.semantic_logits, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.logits, among.logits, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.scores, among.scores, atol=1e-4, rtol=1e-4)


def test_masks_are_made_from_the_presence_on_that_was_asked_for(model: PocketModel, features: Features) -> None:
    cat, dog = (Prompt.text(name) for name in ("cat", "dog"))
    usual = model.capabilities.thresholds.presence
    both = model.encode_text([cat, dog])
    found, absent = model.ground(features, both)
    assert found.presence > usual > absent.presence > NEGLIGIBLE
    assert len(found.scores) and not len(absent.scores) and (absent.semantic_logits == ABSENT).all()
    assert (model.ground(features, both, instances=False)[1].semantic_logits > ABSENT).any()
    assert (model.ground(features, wanting(both, absent.presence - 0.01))[1].semantic_logits > ABSENT).any()


def test_a_concepts_own_threshold_comes_with_it(model: PocketModel) -> None:
    vectors = model.tower.token_embeddings(model.tokenizer(["cat"])[0])[0, 1:-1].numpy()
    mine = Concept("my cat", model.name, vectors, thresholds={model.name: 0.2})
    text = model.encode_text([Prompt.concept(mine), Prompt.text("cat")])
    assert text.tensors["presence"] == (0.2, model.capabilities.thresholds.presence)


def test_places_are_the_peaks_on_the_union_and_its_parts() -> None:
    union = torch.full((32, 40), -6.0)
    union[4:14, 6:16], union[20:30, 20:38], union[0, 30], union[1, 31] = 6.0, 6.0, 6.0, 6.0  # the last: two cells
    places, limits = find_places(union)
    small, large = [24.0, 16.0, 64.0, 56.0], [80.0, 80.0, 152.0, 120.0]
    clicks = places[places[:, 0] == places[:, 2]]
    assert places[len(clicks) :].tolist() == limits[len(clicks) :].tolist() == [large, small]
    assert len(clicks) >= 2 and all(box.tolist() in (small, large) for box in limits)
    assert ((clicks[:, :2] > limits[: len(clicks), :2]) & (clicks[:, 2:] < limits[: len(clicks), 2:])).all()
    assert len(find_places(torch.full((8, 8), -6.0))[0]) == 0


def test_a_name_that_counts_but_is_nowhere_has_no_instances() -> None:
    model = tiny_model()
    features, text = model.encode([Image(np.zeros((50, 70, 3), np.uint8))])[0], model.encode_text([Prompt.text("cat")])
    [found] = model.ground(features, wanting(text, 0.1))
    assert found.presence > 0.1 and not (found.semantic_logits > 0).any()
    assert found.logits.shape == (0, 16, 16) and found.scores.shape == (0,)
