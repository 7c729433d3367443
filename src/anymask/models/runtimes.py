"""What computes a model: PyTorch as it is (eager) or compiled, OpenVINO, or ONNX Runtime (docs/runtimes.md).

A runtime takes the place of a family's `embed` and `answers`; frames, prompts and the choice among masks stay, as do
the stages of a model with weights (`decode.py`) for many prompts. OpenVINO and ONNX Runtime compute graphs on the CPU
(`graphs.py`), which are made when they are first needed and kept.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anymask.data.files import write_whole_folder
from anymask.models.decode import PromptTensors
from anymask.models.digests import digest_of_weights
from anymask.models.graphs import Half, decoder_of, encoder_of, require, write_onnx
from anymask.models.promptable import PromptableModel, Runtime
from anymask.models.protocol import CheckpointError

RUNTIMES = ("auto", "eager", "compile", "openvino", "onnxruntime")
ON_THE_CPU = ("openvino", "onnxruntime")
FASTER_IN_OPENVINO = ("sam", "mobile")  # families whose encoder auto gives to it: docs/runtimes.md
PAYS_AFTER = 6  # images: then making the graph has cost less than it saves
COMPILERS = ("c++", "g++", "clang++", "cl")
GRAPHS = 1  # raised where the same weights give another graph than before
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "fastest": None}  # OpenVINO's words; fastest is what suits the CPU

Shape = tuple[int | None, ...]  # None where any number goes

_log = logging.getLogger("anymask")


@dataclass(frozen=True)
class Session:
    """A graph made ready: what it takes and gives by name, in order, and what computes it."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    run: Callable[..., list[np.ndarray]]


def check_runtime(runtime: str, device: str) -> str:
    """The device to ask for. Raises ValueError for what is unknown, not installed, or not for the device."""
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime}")
    if runtime in ON_THE_CPU:
        require(runtime)
        if device not in ("auto", "cpu"):
            raise ValueError(f"runtime {runtime} computes on the CPU: give --device cpu, or --runtime eager")
        return "cpu"
    compiler = os.environ.get("CXX") or next((name for name in COMPILERS if shutil.which(name)), None)
    if runtime == "compile" and compiler is None:
        raise ValueError(
            f"runtime compile needs a C++ compiler ({', '.join(COMPILERS)}): install one, or --runtime eager"
        )
    return device


def runtime_for(model: PromptableModel, runtime: str, dtype: torch.dtype = torch.float32) -> Runtime:
    """What computes `model` from now on; OpenVINO computes in `dtype`, the weights in `model` are float32."""
    if runtime == "compile":
        return Runtime("compile", torch.compile(model.embed), torch.compile(model.answers, dynamic=True))
    if runtime in ON_THE_CPU:
        return _Lazy(model, runtime, "bfloat16" if dtype == torch.bfloat16 else "float32").runtime()
    if runtime == "auto" and _is_faster_in_openvino(model):
        return Runtime("auto", _Auto(model))
    return Runtime()


def graph_runtime(model: PromptableModel, name: str, encoder: Session, decoder: Session) -> Runtime:
    """Both halves by sessions of the graphs of `graphs.py`."""
    return Runtime(name, _embed_by(encoder), _answers_by(model, decoder))


def open_session(path: Path, runtime: str, computed_in: str = "float32") -> Session:
    """A graph of ONNX or OpenVINO made ready; OpenVINO computes in one of `PRECISIONS`, ONNX Runtime in float32.

    Raises CheckpointError for a file that is no whole graph.
    """
    try:
        return _openvino(path, PRECISIONS[computed_in]) if runtime == "openvino" else _onnxruntime(path)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} is no whole graph ({reason})") from error


def cache_folder() -> Path:
    """Of graphs that were made: `ANYMASK_CACHE`, else where the system keeps what programs can make again."""
    if given := os.environ.get("ANYMASK_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "anymask"
    windows = sys.platform == "win32"
    kept = os.environ.get("LOCALAPPDATA" if windows else "XDG_CACHE_HOME")
    return (Path(kept) if kept else Path.home() / ("AppData/Local" if windows else ".cache")) / "anymask"


class _Lazy:
    """Sessions that are opened when a half is first called, from the cache or made anew."""

    def __init__(self, model: PromptableModel, runtime: str, computed_in: str) -> None:
        self.model, self.name, self.computed_in = model, runtime, computed_in
        self._embed: Callable[[Tensor], dict[str, Tensor]] | None = None
        self._answers: Callable[[Mapping[str, Tensor], Tensor, PromptTensors], tuple[Tensor, Tensor]] | None = None

    def runtime(self) -> Runtime:
        """Of both halves."""
        return Runtime(self.name, self.embed, self.answers)

    def embed(self, pixels: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """As `PromptableModel.embed`."""
        if self._embed is None:
            self._embed = _embed_by(self._open("encoder", encoder_of(self.model, self.model.feature_names)))
        return self._embed(pixels)

    def answers(
        self, features: Mapping[str, Tensor], image_rows: Int[Tensor, "n"], prompts: PromptTensors
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """As `PromptableModel.answers`."""
        if self._answers is None:
            one = {name: features[name][:1] for name in self.model.decoder_features}
            self._answers = _answers_by(self.model, self._open("decoder", decoder_of(self.model, one)))
        return self._answers(features, image_rows, prompts)

    def _open(self, part: str, half: Half) -> Session:
        path = graph_path(self.model, part)
        if path.is_file():
            try:
                return open_session(path, self.name, self.computed_in)
            except CheckpointError as error:
                _log.warning("%s: making it once more", error)
        _log.info("making the graph of the %s of %s, once", part, self.model.name)
        with write_whole_folder(path.parent) as temporary:  # a large graph comes with a file of its weights
            write_onnx(half, temporary / path.name)
        try:
            return open_session(path, self.name, self.computed_in)
        except CheckpointError as error:
            raise CheckpointError(f"{error}, though it was just made: use --runtime eager") from error


class _Auto:
    """Eager for the first images, then OpenVINO; at once where the graph was made before."""

    def __init__(self, model: PromptableModel) -> None:
        self.model, self.done, self.cannot = model, 0, False
        self.openvino = _Lazy(model, "openvino", "float32")
        self.known = cache_folder().is_dir() and graph_path(model, "encoder").is_file()

    def __call__(self, pixels: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        self.done += 1
        if self.cannot or (self.done <= PAYS_AFTER and not self.known):
            return self.model.embed(pixels)
        try:
            return self.openvino.embed(pixels)
        except OSError as error:
            _log.warning("the graph of %s cannot be kept (%s): computing it eagerly", self.model.name, error)
            self.cannot = True
            return self.model.embed(pixels)


def graph_path(model: PromptableModel, part: str) -> Path:
    """Where the graph of these very weights is kept, or would be."""
    known_by = [model.config, GRAPHS, torch.__version__, digest_of_weights(model.network)]
    digest = hashlib.sha256(json.dumps(known_by, sort_keys=True, default=str).encode())
    return cache_folder() / "graphs" / digest.hexdigest()[:32] / f"{part}.onnx"


def _is_faster_in_openvino(model: PromptableModel) -> bool:
    if model.family not in FASTER_IN_OPENVINO or model.device != "cpu" or model.dtype != torch.float32:
        return False
    try:
        require("openvino")
    except ValueError:
        return False
    return True


def _embed_by(session: Session) -> Callable[[Tensor], dict[str, Tensor]]:
    def embed(pixels: Tensor) -> dict[str, Tensor]:
        return dict(zip(session.outputs, map(torch.from_numpy, session.run(pixels.numpy())), strict=True))

    return embed


def _answers_by(
    model: PromptableModel, session: Session
) -> Callable[[Mapping[str, Tensor], Tensor, PromptTensors], tuple[Tensor, Tensor]]:
    def answers(features: Mapping[str, Tensor], image_rows: Tensor, prompts: PromptTensors) -> tuple[Tensor, Tensor]:
        clicks = model.clicks(prompts)
        parts, order = [], []
        for image in image_rows.unique().tolist():
            rows = (image_rows == image).nonzero()[:, 0]
            seen = [features[name][image : image + 1].numpy() for name in model.decoder_features]
            asked = [column[rows].numpy() for column in (clicks.coords, clicks.labels, clicks.masks, clicks.has_mask)]
            parts.append([torch.from_numpy(output) for output in session.run(*seen, *asked)])
            order.append(rows)
        back = torch.cat(order).argsort()
        logits, iou = (torch.cat(column)[back] for column in zip(*parts, strict=True))
        return logits, iou

    return answers


def _openvino(path: Path, precision: str | None) -> Session:
    import openvino

    options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    core = openvino.Core()
    graph = core.read_model(path)
    inputs, outputs = (
        {port.any_name: tuple(None if n.is_dynamic else n.get_length() for n in port.partial_shape) for port in ports}
        for ports in (graph.inputs, graph.outputs)  # a compiled model's have names of what was fused with them
    )
    request = core.compile_model(graph, "CPU", options).create_infer_request()

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        return [np.array(output) for output in request.infer(list(arrays), share_outputs=True).values()]

    return Session(inputs, outputs, run)


def _onnxruntime(path: Path) -> Session:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (  # of no builtin kind
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    ) as error:
        raise RuntimeError(str(error)) from error
    inputs, outputs = (
        {port.name: tuple(n if isinstance(n, int) else None for n in port.shape) for port in ports}
        for ports in (session.get_inputs(), session.get_outputs())
    )

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        given: list[np.ndarray] = session.run(None, dict(zip(inputs, arrays, strict=True)))
        return given

    return Session(inputs, outputs, run)
