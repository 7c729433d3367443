"""Reading weights: safely, whatever wraps them, and never a file that is none."""

import argparse
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from anymask.models.checkpoints import (
    check_file,
    first,
    in_dtype,
    load_strictly,
    metadata_of,
    read_config,
    read_folder,
    read_state,
    rename,
    weights_of,
)
from anymask.models.protocol import CheckpointError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class RunsCode:
    """Unpickled, it would write a file, by `open` or by the shell."""

    def __init__(self, path, shell=False):
        self.path, self.shell = path, shell

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",)) if self.shell else (open, (str(self.path), "w"))


def problem(path, call=read_state) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def same(state) -> bool:
    return set(state) == set(STATE) and all(torch.equal(state[name], STATE[name]) for name in STATE)


# --- reading


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE},
        {"model": STATE, "step": torch.tensor(5), "optimizer": {}},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}, "epoch": 3},
        {"model_state_dict": {f"_orig_mod.sam_model.{name}": value for name, value in STATE.items()}},
        {"state_dict": {"model": STATE}},
        {**STATE, "epoch": 3},
    ],
    ids=["bare", "model", "with step", "lightning", "compiled", "twice", "beside numbers"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_read_whatever_wraps_them(content, legacy, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert same(read_state(path))


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    torch.save({"model.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pt")
    assert set(read_state(tmp_path / "a.pt")) == {"model.a", "b"}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_safetensors_are_known_by_their_content(name, tmp_path):
    save_file(STATE, tmp_path / name)
    assert same(read_state(tmp_path / name))


def test_a_pickle_that_wants_to_run_code_is_not_run(tmp_path):
    path, ran = tmp_path / "a.pt", tmp_path / "ran"
    torch.save({"model": STATE, "hook": RunsCode(ran)}, path)
    assert "is a pickle that holds more than tensors (" in (told := problem(path))
    assert "open)" in told
    assert told.endswith("ask its author for a safetensors file, or convert it where you trust it")
    path.write_bytes(pickle.dumps(RunsCode(ran)))
    assert "could run code: it is not opened" in problem(path)
    assert not ran.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_wants_the_shell_is_named(legacy, tmp_path):
    path, ran = tmp_path / "a.pt", tmp_path / "ran"
    torch.save({"model": STATE, "x": RunsCode(ran, shell=True)}, path, _use_new_zipfile_serialization=not legacy)
    assert f"{path} is a pickle that holds more than tensors ({os.name}.system), which could run" in problem(path)
    path.write_bytes(pickle.dumps(RunsCode(ran, shell=True)))
    assert "is a pickle that holds more than tensors, which could run code" in problem(path)
    assert not ran.exists()


def test_what_is_more_than_tensors_is_named(tmp_path):
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    assert "(argparse.Namespace), which could run code" in problem(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty: the download never began, fetch it again"),
        (
            b"version https://git-lfs spec/v1\noid sha256:0\nsize 5\n",
            "is a pointer of git-lfs, not the weights: run git lfs",
        ),
        (b"\n <!doctype html><title>Sign in</title>", "is a web page, not weights: fetch the file itself"),
        ("Zugriff verweigert ä\n".encode() * 50, "is a text file, not weights"),
        (b"\x00\x01 no pickle", "is no whole PyTorch file (0.0 MB): the download may have stopped half way"),
        (b"PK\x03\x04 half", "is no whole PyTorch file"),
        (bytes(range(256)) * 9, "is no whole PyTorch file"),
    ],
    ids=["empty", "git-lfs", "web page", "text", "noise", "half a zip", "bytes"],
)
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_what_is_no_checkpoint_says_so(content, told, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert told in problem(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_half_a_download_is_not_read(legacy, share, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.randn(1000), "b": torch.randn(1000)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "is no whole PyTorch file" in problem(path)


def test_half_a_safetensors_file_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-4])
    assert "is no whole safetensors file (" in problem(path)
    assert "is no whole safetensors file (" in problem(path, check_file)
    path.write_bytes(b"\0\1no tensors")
    assert "is no whole safetensors file (" in problem(path, check_file)


@pytest.mark.parametrize(
    ("content", "kind"), [([torch.ones(1)], "list"), ({"epoch": 3}, "dict"), (torch.ones(2), "Tensor"), ({}, "dict")]
)
def test_a_file_without_names_holds_no_model(content, kind, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    assert f"holds no tensors by name but a {kind}: it must be the checkpoint" in problem(tmp_path / "a.pt")


# --- folders


def test_a_folder_is_read_from_one_file_or_several(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert same(read_folder(tmp_path))
    for i, name in enumerate(STATE):
        save_file({name: STATE[name]}, tmp_path / f"model-0000{i}-of-00002.safetensors")
    parts = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(STATE)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert same(read_folder(tmp_path))
    assert {path.suffix for path in weights_of(tmp_path)} == {".safetensors"}
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    assert weights_of(tmp_path) == []
    assert problem(tmp_path, read_folder) == (
        f"{tmp_path} is not whole: model-00001-of-00002.safetensors is missing, which model.safetensors.index.json"
        " names: fetch it again"
    )
    (tmp_path / "model-00000-of-00002.safetensors").unlink()
    assert same(read_folder(tmp_path))  # of the pickle


def test_a_folder_without_weights(tmp_path):
    assert problem(tmp_path, read_folder).endswith(
        "must hold model.safetensors or pytorch_model.bin, whole, beside config.json"
    )


def test_a_broken_index(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "is no index of weights: fetch the model again" in problem(tmp_path, weights_of)


# --- loading


def network() -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict({"a": nn.Linear(3, 2)})


def test_a_network_on_the_meta_device_is_filled(tmp_path):
    one = network()
    load_strictly(one, STATE, tmp_path, "linear")
    assert same(one.state_dict())


def test_differing_keys_are_shown(tmp_path):
    strange = {f"x{i}": torch.ones(1) for i in range(5)}
    with pytest.raises(CheckpointError) as caught:
        load_strictly(network(), {"a.weight": torch.ones(2, 4), **strange}, tmp_path, "linear layer")
    assert str(caught.value) == (
        f"{tmp_path} is no linear layer: 1 tensors missing (a.bias); 5 tensors not known (x0, x1, x2, ...);"
        " 1 tensors of another shape (a.weight [2, 4] for [2, 3])"
    )


def test_position_codes_stay_float32():
    state = {
        "a": torch.ones(2),
        "shared.positional_embedding": torch.ones(2),
        "index": torch.ones(2, dtype=torch.int64),
    }
    dtypes = {name: value.dtype for name, value in in_dtype(state, torch.bfloat16).items()}
    assert dtypes == {"a": torch.bfloat16, "shared.positional_embedding": torch.float32, "index": torch.int64}


def test_rules_rename_one_after_another():
    assert rename("a.0.b", [(r"^a\.(\d)", r"x.\1"), (r"x\.", "y.")]) == "y.0.b"


def test_what_a_file_says_of_itself(tmp_path):
    save_file(STATE, tmp_path / "a.pt", {"network": "{}"})
    assert metadata_of(tmp_path / "a.pt") == {"network": "{}"}
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-1])
    assert "is no whole safetensors file (" in problem(tmp_path / "b.pt", metadata_of)
    torch.save(STATE, tmp_path / "c.pt")
    assert metadata_of(tmp_path / "c.pt") == {}


# --- config.json


def test_a_config_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sam", "side": 3}')
    assert read_config(tmp_path, ("sam", "sam_hq")) == {"model_type": "sam", "side": 3}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{", "must be JSON: "),
        ("[]", "must be a JSON object, got a list"),
        ("{}", "must be of model_type sam, sam_hq, got None"),
        ('{"model_type": "bert"}', "must be of model_type sam, sam_hq, got bert"),
        ('{"model_type": ["sam"]}', "must be of model_type sam, sam_hq, got ['sam']"),
    ],
)
def test_a_broken_config_says_what_is_wrong(config, told, tmp_path):
    (tmp_path / "config.json").write_text(config)
    assert f"{tmp_path / 'config.json'} {told}" in problem(
        tmp_path, lambda folder: read_config(folder, ("sam", "sam_hq"))
    )


def test_the_first_of_many():
    assert first(["a", "b"]) == "a, b"
    assert first([]) == ""
