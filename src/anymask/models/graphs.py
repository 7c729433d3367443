"""The two halves of a model as ONNX graphs: what other runtimes compute, and what exported folders hold.

The encoder takes `pixel_values` and gives the family's features by name. The decoder takes those of one image and any
number of prompts, each with any number of clicks (`promptable.Clicks`), and gives what every mask token says of each.
OpenVINO reads the same graphs: its own conversion of PyTorch modules (2026.4) gives wrong features for SAM and Hiera.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymask.models.promptable import Clicks, PromptableModel

CLICKS = ("point_coords", "point_labels", "mask_input", "has_mask_input")  # segment-anything's names, `SamOnnxModel`
ANSWERS = ("logits", "predicted_iou")
EXAMPLE_PROMPTS, EXAMPLE_LABELS = 3, (1, 0, 2, 3, -1)  # as many as would not become constants of the graph
SHAPED_BY = {"point_coords": ("prompts", "points"), "point_labels": ("prompts", "points")}
EXTRAS = {  # the extra that brings a runtime, or what quantises, and what is imported of it
    "openvino": ("openvino", ("openvino", "onnx", "onnxscript")),
    "onnxruntime": ("onnx", ("onnxruntime", "onnx", "onnxscript")),
    "int8": ("int8", ("nncf",)),
}


@dataclass(frozen=True)
class Half:
    """A module of tensors alone, and what it is called with."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names of the first axes of inputs


def require(what: str) -> None:
    """Raises ValueError that names the extra to install, if a runtime of `EXTRAS` is not here."""
    extra, modules = EXTRAS[what]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}, not installed here: pip install 'anymask[{extra}]'")


def encoder_of(model: PromptableModel, features: Sequence[str]) -> Half:
    """Of one image, with these of its features."""
    pixels = torch.zeros(1, 3, *model.input_size, dtype=model.dtype, device=model.device)
    return Half(_Encoder(model, features), {"pixel_values": pixels}, tuple(features))


def decoder_of(model: PromptableModel, features: Mapping[str, Tensor]) -> Half:
    """Of prompts on one image, whose `features` serve as an example."""
    n, names = EXAMPLE_PROMPTS, model.decoder_features
    labels = torch.tensor(EXAMPLE_LABELS).expand(n, -1).contiguous()
    masks = torch.zeros(n, *model.mask_size)
    clicks = (torch.ones(*labels.shape, 2), labels, masks, torch.zeros(n))
    inputs = {name: features[name] for name in names} | dict(zip(CLICKS, clicks, strict=True))
    return Half(_Decoder(model, names), inputs, ANSWERS, {name: SHAPED_BY.get(name, ("prompts",)) for name in CLICKS})


def write_onnx(half: Half, path: Path, optimised: bool = False) -> None:
    """The graph and its weights, as one file or, if that were too large for the format, with a file beside it.

    Runtimes optimise by themselves, and onnxscript's own pass doubles the time; NNCF needs its folded constants.
    """
    axes = {name: torch.export.Dim(name) for names in half.dynamic.values() for name in names}
    shapes = tuple({i: axes[axis] for i, axis in enumerate(half.dynamic.get(name, ()))} for name in half.inputs)
    with torch.no_grad(), quiet("torch.onnx", "onnxscript", "onnx_ir"):
        graph = torch.export.export(half.module, tuple(half.inputs.values()), dynamic_shapes={"inputs": shapes})
        names = (list(half.inputs), list(half.outputs))
        program = torch.onnx.export(
            graph, dynamo=True, optimize=optimised, verbose=False, input_names=names[0], output_names=names[1]
        )
    if program is None:  # for type checkers: so it is when a file is written right away
        raise RuntimeError("torch.onnx.export gave no program")
    program.save(path)


def save_openvino(graph: Any, path: Path, half_size: bool = False) -> None:
    """An `openvino.Model` as two files. Raises OSError where they cannot be written."""
    import openvino

    try:
        openvino.save_model(graph, path, compress_to_fp16=half_size)
    except RuntimeError as error:  # of C++'s streams
        raise OSError(f"OpenVINO cannot save ({error})") from error


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without what libraries tell those who write them: warnings, logs (of these loggers), and bars on stdout."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class _Encoder(nn.Module):
    """`embed`."""

    def __init__(self, model: PromptableModel, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.model, self.names = model.network, model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        features = self.model.embed(inputs[0])
        return tuple(features[name] for name in self.names)


class _Decoder(nn.Module):
    """`answer_clicks`."""

    def __init__(self, model: PromptableModel, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.model, self.names = model.network, model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        features = dict(zip(self.names, inputs[: len(self.names)], strict=True))
        return self.model.answer_clicks(features, Clicks(*inputs[len(self.names) :]))
