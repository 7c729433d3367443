"""Exported folders answer as the model itself, for any number of prompts and clicks, and say what is wrong with them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import anymask
from anymask.cli.main import main
from anymask.models import graphs
from anymask.models.export import export
from anymask.models.exported import ABOUT, read_about
from anymask.models.load import load
from anymask.models.promptable import PromptTensors
from anymask.models.protocol import CheckpointError
from anymask.models.quantising import calibration_images, drawn
from anymask.models.runtimes import graph_runtime, open_session
from anymask.types import Image, Prompt
from tiny import tiny_model
from tiny_families import tiny_edgetam, tiny_mobile, tiny_sam, tiny_sam2, tiny_sam_hq
from tiny_sam3 import tiny_sam3, tiny_sam3_lite_text

# Shapes are symbols while a graph is made, which annotations would turn into the numbers of the example.
pytestmark = pytest.mark.wrong_types

FAMILIES = {
    "sam": tiny_sam,
    "sam_hq": tiny_sam_hq,
    "mobile": tiny_mobile,
    "sam2": tiny_sam2,
    "edgetam": tiny_edgetam,
    "sam3": tiny_sam3,
    "pocket": tiny_model,
}
SIZE = (90, 120)
FLOAT, INT8 = 0.995, 0.97  # IoU with the eager model


def picture() -> Image:
    return drawn(SIZE, seed=7)


def prompts() -> dict[str, list[Prompt]]:
    """Every kind, 1, 3 and 17 at once."""
    rng = np.random.default_rng(0)
    clicks = rng.uniform(5, 85, (17, 4, 2))
    boxes = [Prompt.box(x, y, x + 30, y + 25) for x, y in rng.uniform(0, 60, (3, 2))]
    rough = np.zeros(SIZE, bool)
    rough[20:60, 30:80] = True
    return {
        "one click": [Prompt.point(40, 30)],
        "17 clicks": [Prompt.points(some[:1]) for some in clicks],
        "four clicks each": [Prompt.points(some, [1, 0, 1, 1]) for some in clicks[:3]],
        "boxes": boxes,
        "box and click": [boxes[0] + Prompt.point(*clicks[0, 0], 0)],
        "mask": [Prompt.mask(rough)],
        "mask and click": [Prompt.mask(rough) + Prompt.point(50, 40)] * 3,
    }


def worst_iou(first: list, second: list) -> float:
    """Of all masks in two lists of Decoded."""
    found = [torch.cat([one.logits.flatten(0, 1) for one in some]) > 0 for some in (first, second)]
    inside = (found[0] & found[1]).flatten(1).sum(1)
    either = (found[0] | found[1]).flatten(1).sum(1)
    return float((inside / either.clamp(min=1)).where(either > 0, 1.0).min())


def compare(eager, other, least: float) -> None:
    """For every kind of prompt and of answer, on two images at once."""
    images = [picture(), Image(np.ascontiguousarray(picture().pixels[:, ::-1]))]
    features, same = eager.encode(images), other.encode(images)
    same = [replace(one, model=eager.name) for one in same]
    other.name = eager.name
    for kind, some in prompts().items():
        for multimask in (None, False, True):
            ours = other.decode(same, [some, some[:1]], multimask)
            assert worst_iou(eager.decode(features, [some, some[:1]], multimask), ours) >= least, (kind, multimask)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders of ONNX graphs by family, made when first asked for."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = export(FAMILIES[family](), tmp_path_factory.mktemp(family) / "exported")
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_clicks_say_what_prompts_say(family):
    model, n = FAMILIES[family](), 2
    features = model.embed(torch.stack([model.preprocess(picture(), model.frame(SIZE))]))
    boxes = torch.tensor([[3.0, 4, 30, 40], [10, 10, 50, 44]])
    masks = torch.randn(n, *model.mask_size, generator=torch.Generator().manual_seed(0))
    for p in (0, 1, 3):
        points = torch.rand(n, p, 2, generator=torch.Generator().manual_seed(p)) * 50
        labels = torch.arange(n * p).view(n, p) % 2
        for box in (None, boxes):
            for mask in (None, masks):
                if p or box is not None or mask is not None:
                    given = PromptTensors(points, labels, box, mask)
                    wanted = model.answers(features, torch.zeros(n, dtype=torch.long), given)
                    for one, other in zip(wanted, model.answer_clicks(features, model.clicks(given)), strict=True):
                        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_answers_as_the_eager_model(written, family):
    compare(FAMILIES[family](), load(written(family)), FLOAT)


@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_answers_as_the_eager_model(written, family):
    compare(FAMILIES[family](), load(written(family), runtime="openvino"), FLOAT)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("family", ["sam", "pocket"])
def test_int8_answers_nearly_as_the_eager_model(tmp_path, family, format):
    folder = export(FAMILIES[family](), tmp_path / "int8", format, "int8")
    model = load(folder)
    images = [picture()]
    eager = FAMILIES[family]()
    some = prompts()["boxes"] + prompts()["four clicks each"]
    ours = replace(model.encode(images)[0], model=eager.name)
    model.name = eager.name
    found = (eager.decode(eager.encode(images), [some])[0], model.decode([ours], [some])[0])
    shares = [
        worst_iou([replace(found[0], logits=a[None])], [replace(found[1], logits=b[None])])
        for a, b in zip(found[0].logits, found[1].logits, strict=True)
    ]
    assert np.mean(shares) >= INT8
    assert all(np.isfinite(shares))
