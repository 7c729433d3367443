"""From prompts to masks of the original image: coordinates, refinement, zoom, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anymask import prompting
from anymask.models.pocket import PocketModel
from anymask.models.protocol import Decoded
from anymask.ops import resize
from anymask.types import Frame, Image, Masks, Prompt
from tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> PocketModel:
    return tiny_model()


sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(size=sizes, xy=st.tuples(st.floats(0, 300), st.floats(0, 300)), padded=st.booleans())
def test_coordinates_there_and_back(size: tuple[int, int], xy: tuple[float, float], padded: bool) -> None:
    frame = (
        Frame.padded(size, (64, 64))
        if padded and min(size) > 4 and max(size) / min(size) < 40
        else Frame.stretched(size, (64, 64))
    )
    point = np.asarray([xy], np.float32)
    np.testing.assert_allclose(frame.to_original(frame.to_model(point)), point, atol=1e-2)


@pytest.mark.parametrize("size", [(40, 60), (61, 33), (7, 90)])
@pytest.mark.parametrize("crop", [None, (3, 2, 29, 6)])
def test_a_rectangle_lands_where_it_belongs(size: tuple[int, int], crop: tuple[int, int, int, int] | None) -> None:
    frame = Frame.stretched(size, (256, 256), crop)
    x0, y0, x1, y1 = crop or (0, 0, size[1], size[0])
    left, top, right, bottom = x0 + 4, y0 + 1, x1 - 3, y1 - 1
    corners = frame.to_model(np.asarray([[left, top], [right, bottom]], np.float32)) / 4  # logits at stride 4
    logits = torch.full((1, 64, 64), -8.0)
    (a, b), (c, d) = corners.round().astype(int).tolist()
    logits[:, b:d, a:c] = 8.0
    expected = np.zeros(size, bool)
    expected[top:bottom, left:right] = True
    found = (prompting.place(logits, frame) > 0).numpy()[0]
    assert (found & expected).sum() / (found | expected).sum() > 0.8
    assert abs(np.argwhere(found).mean(0) - np.argwhere(expected).mean(0)).max() < 0.6


def test_padding_is_cut_off_before_upsampling() -> None:
    frame = Frame.padded((50, 100), (64, 64))
    logits = torch.full((1, 16, 16), -8.0)
    logits[:, :8] = 8.0  # the upper half of the canvas is the whole picture
    assert (prompting.place(logits, frame) > 0).all()


def test_outside_a_crop_nothing_is_marked() -> None:
    placed = prompting.place(torch.full((1, 8, 8), 5.0), Frame.stretched((40, 40), (32, 32), (10, 12, 30, 20)))[0] > 0
    expected = np.zeros((40, 40), bool)
    expected[12:20, 10:30] = True
    assert np.array_equal(placed.numpy(), expected)


def test_predict_gives_a_row_per_prompt_in_order(model: PocketModel) -> None:
    image = Image(np.zeros((30, 50, 3), np.uint8))
    features = model.encode([image])[0]
    prompts = [Prompt.point(5, 5), Prompt.box(1, 1, 20, 20), Prompt.point(40, 20)]
    masks = prompting.predict(model, features, prompts)
    assert masks.ids.tolist() == [1, 2, 3] and masks.masks.shape == (3, 30, 50)
    several = prompting.predict(model, features, prompts, multimask_output=True)
    assert several.ids.tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert len(several.best()) == 3
    again = prompting.predict(model, features, prompts[1:2])
    np.testing.assert_array_equal(again.masks[0], masks.masks[1])


def test_a_result_can_be_passed_back(model: PocketModel) -> None:
    features = model.encode([Image(np.full((30, 50, 3), 90, np.uint8))])[0]
    first = prompting.predict(model, features, [Prompt.point(5, 5)])
    refined = Prompt.refine(first[0]) + Prompt.point(20, 20, 0)
    second = prompting.predict(model, features, [refined])
    assert second.logits is not None and first.logits is not None
    assert np.abs(second.logits - first.logits).max() > 1e-4


def test_no_prompts_is_an_empty_result(model: PocketModel) -> None:
    features = model.encode([Image(np.zeros((30, 50, 3), np.uint8))])[0]
    assert len(prompting.predict(model, features, [])) == 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(), "a prompt must say something"),
        (Prompt.point(51, 5), "a point must lie in the image of 50 x 30 pixels, got 51,5"),
        (Prompt.point(-1, 5), "a point must lie in the image of 50 x 30 pixels, got -1,5"),
        (Prompt.box(60, 1, 70, 9), "a box must lie in the image of 50 x 30 pixels, got 60,1,70,9"),
        (
            Prompt.mask(np.ones((5, 5), bool)),
            r"a mask prompt must be of the size of the image, 50 x 30 pixels, got 5 x 5",
        ),
        (Prompt.mask(np.zeros((30, 50), bool)), "a mask prompt must mark something, got an empty mask"),
    ],
)
def test_impossible_prompts_are_refused(prompt: Prompt, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompting.check_prompt(prompt, (30, 50))


def test_every_image_needs_its_prompts(model: PocketModel) -> None:
    with pytest.raises(ValueError, match="got 0 images, 1 lists"):
        prompting.predict_batch(model, [], [[Prompt.point(1, 1)]])


@given(box=st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(1, 100), st.integers(1, 100)))
def test_a_crop_holds_its_box_and_lies_in_the_image(box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    crop = prompting.crop_around(np.asarray([x0, y0, x1, y1]), (1000, 1000), 0.5)
    assert crop is not None
    left, top, right, bottom = crop
    assert 0 <= left <= x0 and 0 <= top <= y0 and x1 <= right <= 1000 and y1 <= bottom <= 1000


def test_a_big_object_needs_no_crop() -> None:
    assert prompting.crop_around(np.asarray([10, 10, 90, 90]), (100, 100), 0.5) is None
    assert prompting.crop_around(np.asarray([0, 0, 0, 0]), (100, 100), 0.5) is None


class DiskModel:
    """Marks everything within 10 original pixels of the first point; sees the crop it was given."""

    name = "disk"
    capabilities = PocketModel.capabilities

    def __init__(self) -> None:
        self.crops: list[tuple[int, int, int, int] | None] = []

    def encode(self, images, crop_boxes=None):  # type: ignore[no-untyped-def]
        from anymask.types import Features

        boxes = crop_boxes or [None] * len(images)
        self.crops += boxes
        return [
            Features("disk", Frame.stretched(i.size, (256, 256), b), {}) for i, b in zip(images, boxes, strict=True)
        ]

    def decode(self, features, prompts, multimask_output=False):  # type: ignore[no-untyped-def]
        return [self._one(one.frame, some) for one, some in zip(features, prompts, strict=True)]

    def encode_text(self, prompts):  # type: ignore[no-untyped-def]
        raise AssertionError("not asked for text")

    ground = encode_text

    def _one(self, frame: Frame, prompts: list[Prompt]) -> Decoded:
        ys, xs = np.mgrid[0:64, 0:64] * 4.0 + 2
        cells = frame.to_original(np.stack([xs, ys], -1).astype(np.float32))
        logits = [10 - np.linalg.norm(cells - prompt.point_coords[0], axis=-1) for prompt in prompts]
        return Decoded(torch.tensor(np.stack(logits))[:, None].float(), torch.ones(len(prompts), 1))


def test_zoom_looks_closer_and_lands_in_the_same_place() -> None:
    image, model = Image(np.zeros((800, 1200, 3), np.uint8)), DiskModel()
    prompts = [Prompt.point(700.0, 300.0)]
    features = model.encode([image])[0]
    first = prompting.predict(model, features, prompts)
    closer = prompting.zoom(model, image, prompts, first)
    ys, xs = np.mgrid[0:800, 0:1200] + 0.5
    truth = (xs - 700) ** 2 + (ys - 300) ** 2 < 100

    def iou(masks: Masks) -> float:
        return float((masks.masks[0] & truth).sum() / (masks.masks[0] | truth).sum())

    assert iou(closer) > 0.95 and iou(closer) > iou(first)
    assert model.crops[-1] is not None and model.crops[-1][2] - model.crops[-1][0] < 100


def test_a_limit_is_rounded_to_pixels_of_the_image() -> None:
    assert prompting.whole_pixels(None, (30, 50)) == (0, 0, 50, 30)
    assert prompting.whole_pixels(np.asarray([1.4, 2.6, 20.6, 29.5], np.float32), (30, 50)) == (1, 3, 21, 30)
    assert prompting.whole_pixels(np.asarray([-8, -0.4, 60, 31], np.float32), (30, 50)) == (0, 0, 50, 30)


def test_stability_is_the_iou_of_two_thresholds() -> None:
    logits = torch.tensor([[[2.0, 0.5, -0.5, -3.0]], [[-5.0, -5, -5, -5]]])
    assert prompting.stability(logits).tolist() == pytest.approx([1 / 3, 1.0])


def test_sampled_logits_are_those_of_an_enlarged_map() -> None:
    logits = torch.randn(9, 13, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(logits[None, None], (40, 31), mode="bilinear")[0, 0]
    rows, columns = (torch.arange(40) + 0.5) * 9 / 40 - 0.5, (torch.arange(31) + 0.5) * 13 / 31 - 0.5
    torch.testing.assert_close(resize.sample(logits, rows, columns), whole)
    part = resize.sample(logits[2:7, 3:9], rows[14:28] - 2, columns[11:20] - 3)
    torch.testing.assert_close(part, whole[14:28, 11:20])


def test_many_large_masks_are_held_as_rle(model: PocketModel, monkeypatch: pytest.MonkeyPatch) -> None:
    features = model.encode([Image(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))])[0]
    prompts = [Prompt.point(9, 9), Prompt.box(3, 5, 30, 33), Prompt.box(10, 2, 12, 39)]
    dense = prompting.predict(model, features, prompts, multimask_output=True)
    monkeypatch.setattr(prompting, "DENSE_PIXELS", 1000)
    packed = prompting.predict(model, features, prompts, multimask_output=True)
    assert dense.dense is not None
    assert packed.dense is None
    assert packed.rles == dense.rles
    np.testing.assert_array_equal(packed.scores, dense.scores)
