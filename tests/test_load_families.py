"""`load` with the families themselves: tiny folders of each, and the tensors of each original file."""

import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from anymask.models.load import FAMILIES, MARKERS, load, recognise
from anymask.models.promptable import PromptableModel
from originals import original_mobile, sam_package
from tiny_families import tiny_edgetam, tiny_mobile, tiny_sam, tiny_sam2, tiny_sam_hq
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
    assert set(MARKERS[markers]) <= set(tensors)


def test_the_markers_of_sam3_are_its_tensors():
    lines = (Path(__file__).parent / "sam3_original.txt").read_text().splitlines()
    assert set(MARKERS["sam3"]) <= {line.split(" ")[0] for line in lines}


def test_every_family_is_there():
    for target, modules in FAMILIES.values():
        module, _, name = target.partition(":")
        family = getattr(import_module(module), name)
        assert callable(family.from_folder)
        assert callable(family.from_original)
        assert all(import_module(module).recognise({}) is None for module in modules)
