"""What computes a model: which runtime is chosen when, that all give the same, what is said where one is missing."""

import importlib.util
import re

import numpy as np
import pytest
import torch

from anymask.cli.main import main
from anymask.models import runtimes
from anymask.models.export import export
from anymask.models.load import load
from anymask.models.protocol import CheckpointError
from anymask.models.quantising import drawn
from anymask.models.runtimes import PAYS_AFTER, cache_folder, check_runtime, graph_path, runtime_for
from anymask.types import Prompt
from tiny import tiny_model
from tiny_families import tiny_sam

pytestmark = pytest.mark.wrong_types  # see test_export.py


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(model):
    return model.decode(model.encode([drawn((60, 80), 3)]), [[Prompt.point(40, 30)]], True)[0].logits.numpy()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_forced_runtime_computes_both_halves_and_keeps_its_graphs(cache, runtime):
    model, eager = tiny_sam(), tiny_sam()
    model.runtime = runtime_for(model, runtime)
    np.testing.assert_allclose(logits(model), logits(eager), atol=1e-4)
    assert sorted(file.name for file in cache.rglob("*.onnx")) == ["decoder.onnx", "encoder.onnx"]
    made = {file: file.stat().st_mtime_ns for file in cache.rglob("*.onnx")}
    again = tiny_sam()
    again.runtime = runtime_for(again, runtime)
    np.testing.assert_allclose(logits(again), logits(eager), atol=1e-4)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.onnx")} == made


@pytest.mark.parametrize(("runtime", "share"), [("openvino", 0.5), ("onnxruntime", 0)])
def test_a_graph_that_was_cut_off_is_made_once_more(cache, caplog, monkeypatch, runtime, share):
    model, again = tiny_sam(), tiny_sam()
    model.runtime, again.runtime = (runtime_for(one, runtime) for one in (model, again))
    expected, path = logits(model), graph_path(model, "encoder")
    whole = path.read_bytes()
    cut = whole[: int(share * len(whole))]
    path.write_bytes(cut)
    caplog.clear()
    np.testing.assert_array_equal(logits(again), expected)
    assert len(path.read_bytes()) > len(cut)
    (warning,) = [one.message for one in caplog.records if one.name == "anymask" and one.levelname == "WARNING"]
    assert warning.startswith(f"{path} is no whole graph (")
    assert warning.endswith("): making it once more")
    path.write_bytes(cut)
    monkeypatch.setattr(runtimes, "write_onnx", lambda half, path: path.write_bytes(cut))
    model.runtime = runtime_for(model, runtime)
    with pytest.raises(
        CheckpointError, match=r"is no whole graph \(.*\), though it was just made: use --runtime eager$"
    ):
        logits(model)


def test_bfloat16_is_computed_by_openvino(cache):
    model = tiny_sam()
    model.runtime = runtime_for(model, "openvino", torch.bfloat16)
    apart = np.abs(logits(model) - logits(tiny_sam()))
    assert apart.max() < 0.1


def test_auto_is_eager_until_a_graph_pays(cache):
    model, seen = tiny_sam(), []
    model.runtime = runtime_for(model, "auto")
    model.runtime.embed.openvino.embed = lambda pixels: seen.append(len(pixels)) or model.embed(pixels)
    for _ in range(PAYS_AFTER):
        logits(model)
    assert seen == []
    assert not cache.exists()
    logits(model)
    assert seen == [1]


def test_auto_stays_eager_where_no_graph_can_be_kept(cache, caplog):
    cache.write_text("a file where the folder should be")
    model = tiny_sam()
    model.runtime = runtime_for(model, "auto")
    for _ in range(PAYS_AFTER + 2):
        logits(model)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and told[0].endswith("computing it eagerly")


def test_auto_takes_a_graph_that_is_there_at_once(cache):
    first = tiny_sam()
    first.runtime = runtime_for(first, "openvino")
    expected = logits(first)
    model = tiny_sam()
    model.runtime = runtime_for(model, "auto")
    np.testing.assert_allclose(logits(model), expected, atol=1e-4)
    assert model.runtime.embed.openvino._embed is not None
    assert model.runtime.answers is None


def test_other_weights_are_another_graph(cache):
    model, other = tiny_sam(), tiny_sam()
    with torch.no_grad():
        other.network.mask_decoder.iou_token.weight += 1
    assert graph_path(model, "encoder") != graph_path(other, "encoder")
    assert graph_path(model, "encoder") == graph_path(tiny_sam(), "encoder")


def test_auto_leaves_alone_what_gains_nothing(monkeypatch):
    model = tiny_model()
    assert runtime_for(model, "auto").embed is None
    sam = tiny_sam()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert runtime_for(sam, "auto").embed is None


@pytest.mark.parametrize(
    ("runtime", "extra", "missing"),
    [("openvino", "openvino", "openvino, onnx, onnxscript"), ("onnxruntime", "onnx", "onnxruntime, onnx, onnxscript")],
)
def test_a_runtime_that_is_not_installed_names_its_extra(pocket, monkeypatch, tmp_path, runtime, extra, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    says = f"{runtime} needs {missing}, not installed here: pip install 'anymask[{extra}]'"
    with pytest.raises(ValueError, match=re.escape(says)):
        load("pocket", runtime=runtime)
    assert main(["segment", str(tmp_path), "--point", "1,1", "--runtime", runtime]) == 0  # no photos, nothing to do
    with pytest.raises(ValueError, match=re.escape(says)):
        export("pocket", tmp_path / "exported", extra)


def test_int8_that_is_not_installed_names_its_extra(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name))
    with pytest.raises(ValueError, match=r"int8 needs nncf, not installed here: pip install 'anymask\[int8\]'"):
        export("pocket", tmp_path / "exported", dtype="int8")


def test_what_is_asked_for_wrongly():
    with pytest.raises(ValueError, match="runtime must be one of auto, eager, compile, openvino, onnxruntime, got tvm"):
        load("pocket", runtime="tvm")
    with pytest.raises(ValueError, match="runtime openvino computes on the CPU: give --device cpu, or --runtime eager"):
        load("pocket", "cuda", runtime="openvino")
    with pytest.raises(ValueError, match="int8 is calibrated once and kept: run anymask export MODEL -o DIR --format"):
        load("pocket", "cpu", "int8")


def test_compile_needs_a_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: None)
    with pytest.raises(
        ValueError, match=r"runtime compile needs a C\+\+ compiler \(c\+\+, g\+\+, clang\+\+, cl\): install"
    ):
        check_runtime("compile", "cpu")


def test_compile_is_given_both_halves(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic=None: compiled.append(function.__name__) or function)
    model = tiny_sam()
    model.runtime = runtime_for(model, "compile")
    np.testing.assert_array_equal(logits(model), logits(tiny_sam()))
    assert compiled == ["embed", "answers"]


def test_the_cache_is_where_the_system_keeps_such_things(monkeypatch, tmp_path):
    monkeypatch.delenv("ANYMASK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(runtimes.sys, "platform", "linux")
    assert cache_folder() == tmp_path / "anymask"
    monkeypatch.setattr(runtimes.sys, "platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "anymask")
