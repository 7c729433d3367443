"""`load` with the families themselves: tiny folders of each, and the tensors of each original file."""

import json
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from anymask.models import checkpoints
from anymask.models.load import FAMILIES, load, recognise
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import CheckpointError
from originals import original_mobile, sam_package
from tiny_families import tiny_edgetam, tiny_edgetam_config, tiny_mobile, tiny_sam, tiny_sam2, tiny_sam_hq
from tiny_sam3 import tiny_sam3

TINY = {"sam": tiny_sam, "sam_hq": tiny_sam_hq, "mobile": tiny_mobile, "sam2": tiny_sam2, "edgetam": tiny_edgetam}


@pytest.mark.parametrize("make", [*TINY.values(), tiny_sam3], ids=[*TINY, "sam3"])
def test_a_saved_folder_loads_as_its_family_quietly(make, tmp_path, capfd):
    model = make()
    model.save(tmp_path / "mine")
    capfd.readouterr()
    for path in (tmp_path / "mine", tmp_path / "mine" / "model.safetensors"):
        again = load(path, "cpu")
        assert isinstance(again, PromptableModel)
        assert (type(again), again.name, again.family) == (type(model), "mine", model.family)
        assert capfd.readouterr() == ("", "")
        state, wanted = again.network.state_dict(), model.network.state_dict()
        assert list(state) == list(wanted)
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam2], ids=["sam", "sam2"])
def test_the_number_format_that_was_asked_for(make, tmp_path):
    make().save(tmp_path / "mine")
    model = load(tmp_path / "mine", "cpu", "bfloat16")
    assert isinstance(model, PromptableModel)
    assert model.dtype == torch.bfloat16


EDGETAM = tiny_edgetam_config()["vision_config"]
WRONG = [
    (tiny_sam, {"vision_config": 3}),
    (tiny_sam, {"mask_decoder_config": {"num_attention_heads": "abc"}}),
    (tiny_sam_hq, {"prompt_encoder_config": []}),
    (tiny_mobile, {"embed_dims": "abc"}),
    (tiny_mobile, {"depths": [1]}),
    (tiny_sam2, {"vision_config": 3}),
    (tiny_sam2, {"vision_config": {"model_type": "sam2_vision_model", "backbone_config": {"model_type": "none"}}}),
    (tiny_edgetam, {"vision_config": {"backbone_config": {"model_type": "timm_wrapper", "architecture": "none"}}}),
    (
        tiny_edgetam,
        {"vision_config": {**EDGETAM, "backbone_config": {**EDGETAM["backbone_config"], "architecture": "no"}}},
    ),
    (tiny_sam3, {"detector_config": 3}),
]


@pytest.mark.parametrize(("make", "values"), WRONG)
def test_wrong_values_in_a_config_are_said(make, values, tmp_path):
    make().save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, "cpu")
    assert str(caught.value).startswith(f"{path} describes no network that can be built (")
    assert str(caught.value).endswith("): correct it, or fetch it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [tiny_sam, tiny_mobile, tiny_sam2, tiny_sam3])
def test_every_file_is_opened_and_checked_once(make, tmp_path, monkeypatch):
    make().save(tmp_path)
    opened = []
    for name in ("load_file", "safe_open", "_check_head"):
        real = getattr(checkpoints, name)
        monkeypatch.setattr(
            checkpoints, name, lambda *a, real=real, name=name, **k: opened.append(name) or real(*a, **k)
        )
    load(tmp_path, "cpu")
    assert sorted(opened) == ["_check_head", "load_file"]


def original_sam2(file: str) -> nn.Module:
    sam2 = pytest.importorskip("sam2", reason="the original code comes with the extra `reference`")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))  # Hiera reads its numbers
        network: nn.Module = instantiate(OmegaConf.load(Path(sam2.__file__).parent / "configs" / file).model)
    return network


def original_vit(size: str) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        network: nn.Module = sam_package().sam_model_registry[size]()
    return network


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("make", "markers", "found"),
    [
        (lambda: original_vit("vit_b"), "sam", ("sam", "vit_b")),
        (lambda: original_vit("vit_h"), "sam", ("sam", "vit_h")),
        (original_mobile, "mobile", ("mobile", "vit_t")),
        (lambda: original_sam2("sam2.1/sam2.1_hiera_t.yaml"), "sam2", ("sam2", "hiera_tiny_2.1")),
        (lambda: original_sam2("sam2/sam2_hiera_l.yaml"), "sam2", ("sam2", "hiera_large_2.0")),
    ],
    ids=["sam base", "sam huge", "mobile", "sam 2.1 tiny", "sam 2 large"],
)
def test_original_tensors_are_recognised_and_hold_every_marker(make, markers, found):
    tensors = shapes(make())
    assert recognise(tensors, Path("a.pt")) == found
    assert set(FAMILIES[markers][1].MARKERS) <= set(tensors)


def test_the_markers_of_sam3_are_its_tensors():
    lines = (Path(__file__).parent / "sam3_original.txt").read_text().splitlines()
    assert set(FAMILIES["sam3"][1].MARKERS) <= {line.split(" ")[0] for line in lines}


def test_every_family_is_there():
    for target, keys in FAMILIES.values():
        module, _, name = target.partition(":")
        family = getattr(import_module(module), name)
        assert callable(family.from_folder)
        assert callable(family.from_original)
        assert keys.recognise({}) is None
