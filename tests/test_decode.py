"""The staged decoder: its scores and masks are those of the whole decoder, for every family and kind of prompt."""

import numpy as np
import pytest
import torch

from anymask.models import promptable
from anymask.models.decode import PromptTensors, SharedStage, WholeStage
from anymask.types import Prompt
from originals import picture
from tiny import tiny_model
from tiny_families import tiny_edgetam, tiny_mobile, tiny_sam, tiny_sam2, tiny_sam_hq
from tiny_sam3 import tiny_sam3, tiny_sam3_lite_text

SHARED = {make.__name__: make for make in (tiny_sam, tiny_mobile, tiny_sam2, tiny_edgetam, tiny_sam3)}
ALL = {**SHARED, "tiny_sam_hq": tiny_sam_hq, "tiny_pocket": tiny_model}
KINDS = ({"points": 1}, {"points": 3}, {"points": 0, "boxed": True}, {"points": 2, "masked": True})


def staged(make, input_size=None):
    model = make()
    if input_size:
        model.set_input_size(input_size)
    features = model.encode([picture((60, 97))])[0]
    return model, features, model.stage(features)


def clicks(model, n, points=1, boxed=False, masked=False):
    generator = torch.Generator().manual_seed(n)
    side = torch.tensor(model.input_size[::-1])
    coords = torch.rand(n, points, 2, generator=generator) * side
    labels = torch.randint(0, 2, (n, points), generator=generator)
    corners = (torch.rand(n, 2, 2, generator=generator) * side).sort(dim=1).values.reshape(n, 4)
    masks = torch.randn(n, *model.mask_size, generator=generator)
    return PromptTensors(coords, labels, corners if boxed else None, masks if masked else None)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.inference_mode()
def test_scores_and_masks_are_those_of_the_whole_decoder(make, kind):
    compare(*staged(make), kind)


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam2, tiny_edgetam, tiny_model])
@torch.inference_mode()
def test_so_they_are_for_an_input_that_is_no_square(make):
    for kind in ({"points": 2}, {"points": 0, "boxed": True}):
        compare(*staged(make, (96, 160)), kind)


def compare(model, features, stage, kind):
    prompts = clicks(model, 5, **kind)
    masks, iou = model.respond(features.tensors, torch.zeros(5, dtype=torch.long), prompts, True)
    scored = stage.score(prompts)
    torch.testing.assert_close(scored.predicted_iou, iou, atol=2e-5, rtol=1e-4)
    keep = torch.rand(iou.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    keep[1], keep[2] = False, True
    torch.testing.assert_close(scored.logits(keep), masks[keep], atol=2e-4, rtol=1e-3)
    assert scored.logits(torch.zeros_like(keep)).shape == (0, *masks.shape[2:])


@pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)
def test_decoders_of_sam_share_the_image(make):
    assert isinstance(staged(make)[2], SharedStage)


def test_half_precision_goes_the_whole_way():
    model = tiny_sam()
    model.network.to(torch.bfloat16)
    features = model.encode([picture((60, 97))])[0]
    assert isinstance(model.stage(features), WholeStage)


def test_the_detector_of_sam_3_has_no_prompts_to_score():
    model = tiny_sam3_lite_text()
    features = model.encode([picture((60, 97))])[0]
    with pytest.raises(ValueError, match="holds the detector of SAM 3 alone"):
        model.stage(features)


@torch.inference_mode()
def test_any_number_of_prompts_gives_each_what_it_gets_alone():
    model, _, stage = staged(tiny_sam)
    prompts = clicks(model, 17)
    together = stage.score(prompts)
    keep = torch.ones_like(together.predicted_iou, dtype=torch.bool)
    alone = [
        stage.score(PromptTensors(prompts.point_coords[i : i + 1], prompts.point_labels[i : i + 1])) for i in range(17)
    ]
    torch.testing.assert_close(together.predicted_iou, torch.cat([one.predicted_iou for one in alone]))
    masks = torch.cat([one.logits(keep[:1]) for one in alone])
    torch.testing.assert_close(together.logits(keep), masks, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("multimask", [True, False, None])
def test_many_prompts_get_what_each_gets_alone(make, multimask, monkeypatch):
    model, images = make(), [picture((60, 97)), picture((80, 50), 1)]
    features = model.encode(images)
    rng = np.random.default_rng(0)
    some = [
        [Prompt.point(*rng.uniform(0, 50, 2)) for _ in range(9)] + [Prompt.box(1, 2, *rng.uniform(9, 50, 2))] * 7,
        [Prompt.point(*rng.uniform(0, 50, 2)) for _ in range(2)] + [Prompt.point(9, 9) + Prompt.box(1, 2, 40, 44)] * 7,
    ]
    staged = model.decode(features, some, multimask)
    monkeypatch.setattr(promptable, "MANY", 1000)
    whole = model.decode(features, some, multimask)
    for ours, theirs in zip(staged, whole, strict=True):
        torch.testing.assert_close(ours.predicted_iou, theirs.predicted_iou, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("make", [tiny_sam, tiny_mobile, tiny_model])
def test_many_clicks_on_one_image_share_it(make, monkeypatch):
    model = make()
    features = model.encode([picture((60, 97))])
    clicks = [Prompt.point(5 * i, 30) for i in range(promptable.MANY)]
    monkeypatch.setattr(model, "answers", lambda *_: pytest.fail("went the whole way"))
    assert len(model.decode(features, [clicks])[0].logits) == promptable.MANY
