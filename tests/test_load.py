"""`load`: the family is recognised by config or tensors, and what is none says what it is nearest to."""

import json
import logging
import os
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from anymask.models import sam2_keys, sam_keys
from anymask.models.load import CATALOGUE, FAMILIES, MODEL_TYPES, load
from anymask.models.protocol import Capabilities, CheckpointError


class Standin:
    """A family that keeps what it was given. It is recognised by a tensor of its name."""

    name, capabilities = "standin", Capabilities()
    encode = decode = encode_text = ground = lambda self, *_: None

    def __init__(self, *given):
        self.given = given

    @classmethod
    def from_folder(cls, folder, device, dtype, name):
        return cls(folder, device, dtype, name)

    @classmethod
    def from_original(cls, state, kind, path, device, dtype, name):
        return cls(sorted(state), kind, path, device, dtype, name)


@pytest.fixture
def families(monkeypatch):
    """Stand-ins for every family, so that neither transformers nor weights are needed."""
    for family in FAMILIES:
        module = types.ModuleType(f"standin_{family}")
        module.Standin = type(f"Standin_{family}", (Standin,), {})
        module.recognise = lambda shapes, family=family: "tiny" if family in shapes else None
        module.NAME, module.KINDS, module.MARKERS = (
            getattr(FAMILIES[family][1], x) for x in ("NAME", "KINDS", "MARKERS")
        )
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(FAMILIES, family, (f"{module.__name__}:Standin", module))
    return {family: sys.modules[f"standin_{family}"].Standin for family in FAMILIES}


@pytest.fixture
def folder(tmp_path):
    """A transformers folder with one tensor."""
    path = tmp_path / "model"
    path.mkdir()
    save_file({"a": torch.zeros(1)}, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "sam2_video"}')
    return path


def problem(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    return str(caught.value)


# --- folders


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_a_folder_is_of_the_family_of_its_config(kind, families, folder):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    model = load(folder, "cpu", "bfloat16")
    assert type(model) is families[MODEL_TYPES[kind]]
    assert model.given == (folder, "cpu", torch.bfloat16, "model")


def test_the_weights_of_a_folder_stand_for_the_folder(families, folder):
    assert load(folder / "model.safetensors", "cpu").given == load(folder, "cpu").given


def test_a_model_is_called_as_it_was_asked_for(families, folder, monkeypatch):
    monkeypatch.setattr("anymask.models.sources.find", lambda name: folder)
    assert load("facebook/sam2.1-hiera-tiny", "cpu").given[-1] == "facebook/sam2.1-hiera-tiny"
    assert load("sam2.1-hiera-tiny", "cpu").given[-1] == "sam2.1-hiera-tiny"


def test_parts_of_a_folder_stand_for_the_folder(families, folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert load(folder / "model-00001-of-00001.safetensors", "cpu").given == load(folder, "cpu").given


def test_a_folder_of_the_tracker_alone_is_not_read(families, folder):
    (folder / "config.json").write_text('{"model_type": "sam3_tracker"}')
    assert problem(folder).endswith(", got sam3_tracker")


def test_a_folder_of_another_model(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert problem(folder) == (
        f"{folder / 'config.json'} must be of model_type sam, sam_hq, mobile_sam, sam2, sam2_video, edgetam,"
        " edgetam_video, sam3_video, sam3, sam3_lite_text, got bert"
    )


def test_a_folder_without_config_may_hold_one_checkpoint(families, tmp_path):
    torch.save({"mobile": torch.ones(1)}, tmp_path / "mobile_sam.pt")
    model = load(tmp_path, "cpu")
    assert type(model) is families["mobile"]
    assert model.given == (["mobile"], "tiny", tmp_path / "mobile_sam.pt", "cpu", torch.float32, tmp_path.name)
    (tmp_path / "other.pt").touch()
    told = f"{tmp_path} is no folder of a model: it must hold config.json and model.safetensors (as transformers saves"
    assert problem(tmp_path).startswith(told)


def test_a_folder_without_anything(tmp_path):
    assert problem(tmp_path).endswith("pocket.safetensors, or one original checkpoint")


# --- files


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_original_file_is_recognised_by_its_tensors(family, suffix, families, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": {family: torch.ones(2)}}, path)
    else:
        save_file({family: torch.ones(2)}, path)
    model = load(str(path), "cpu")
    assert type(model) is families[family]
    assert model.given == ([family], "tiny", path, "cpu", torch.float32, "weights")


KNOWN = "the families that anymask knows are pocket, sam, mobile, sam2, sam3 (anymask models)"


def saved(names, path):
    torch.save({name: torch.ones(1) for name in names}, path)
    return path


def test_another_architecture_names_the_nearest_family(families, tmp_path):
    path = saved(["conv1.weight", *sam2_keys.MARKERS[:3], "fc.weight"], tmp_path / "other.pt")
    assert problem(path) == (
        f"{path} is of another architecture: nearest is sam2, of which it has 3 of 5 tensors looked for; missing"
        f" {', '.join(sam2_keys.MARKERS[3:])}; it begins with conv1.weight, {', '.join(sam2_keys.MARKERS[:2])}, ...;"
        f" {KNOWN}"
    )


def test_the_heads_of_sam_alone_are_nearest_to_sam(tmp_path):
    assert ": nearest is sam, of which it has 2 of 6 tensors" in problem(saved(sam_keys.HEADS, tmp_path / "heads.pt"))


def test_what_has_nothing_in_common_says_so(tmp_path):
    path = saved(["conv1.weight", "bn1.weight", "bn1.bias", "fc.weight"], tmp_path / "resnet18.pth")
    assert problem(path) == (
        f"{path} is of another architecture, with nothing in common: it begins with conv1.weight, bn1.weight,"
        f" bn1.bias, ...; {KNOWN}"
    )


def test_a_known_family_of_an_unknown_size(tmp_path):
    path = saved([*sam2_keys.MARKERS, "maskmem_tpos_enc"], tmp_path / "sam2_fewer.pt")
    assert problem(path) == f"{path} is SAM 2 of an unknown size: known are tiny, small, base_plus, large, edgetam"
    state = dict.fromkeys(sam_keys.MARKERS, torch.ones(1)) | {"image_encoder.pos_embed": torch.ones(1, 2, 2, 384)}
    torch.save(state, tmp_path / "vit_s.pth")
    assert problem(tmp_path / "vit_s.pth").endswith("is SAM 1 of an unknown size: known are vit_b, vit_l, vit_h")


def test_tensors_under_the_names_of_transformers_need_their_config(families, tmp_path):
    torch.save({"vision_encoder.pos_embed": torch.ones(1)}, tmp_path / "a.bin")
    assert "holds tensors as transformers names them: give the folder with its config.json" in problem(
        tmp_path / "a.bin"
    )


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    assert problem(tmp_path / "a.pt") == f"{tmp_path / 'a.pt'} is empty: the download never began, fetch it again"


# --- pocket


def test_pocket_by_name_file_and_folder(pocket, tmp_path):
    assert load().name == "pocket"
    assert load(pocket).name == "tiny"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "pocket.safetensors").write_bytes(pocket.read_bytes())
    assert load(folder).name == "run"


def test_pocket_computes_in_float32_and_says_so(pocket, caplog):
    with caplog.at_level(logging.WARNING):
        model = load("pocket", "cpu", torch.bfloat16)
    assert caplog.messages == ["pocket computes in float32, not bfloat16"]
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}


def test_pocket_and_the_catalogue_load_neither_transformers_nor_the_hub():
    code = (
        "import sys; from anymask.models.load import load, CATALOGUE; load('pocket', 'cpu');"
        "heavy = {'transformers', 'timm', 'huggingface_hub', 'torchvision'}; print(sorted(heavy & set(sys.modules)));"
        "from anymask.models.sources import find; [find(name) for name in CATALOGUE];"
        "heavy = {'transformers', 'timm', 'huggingface_hub.hf_api'}; print(sorted(heavy & set(sys.modules)))"
    )
    empty = {**os.environ, "HF_HOME": "/nowhere", "HF_HUB_CACHE": "/nowhere/hub"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=empty)
    assert done.stdout.split() == ["[]", "[]"]


def test_dtype_and_device_are_checked_first():
    with pytest.raises(ValueError, match="dtype must be auto, float32, bfloat16, float16, got half"):
        load("pocket", "cpu", "half")
    with pytest.raises(ValueError, match="device must be one of auto"):
        load("pocket", "tpu")


def test_every_family_has_markers():
    assert all(keys.MARKERS and keys.NAME and keys.KINDS for _, keys in FAMILIES.values())
    assert set(MODEL_TYPES.values()) == set(FAMILIES) == {entry.family for entry in CATALOGUE.values()} - {"pocket"}
