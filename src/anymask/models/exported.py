"""A folder of `anymask export` as a model again: graphs compute, the family does the rest.

The folder holds an encoder and a decoder (`graphs.py`), the model's own config.json, and `anymask.json`, which says
what the graphs take and give, for us and for other programs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anymask.data.files import read_json
from anymask.models.checkpoints import building
from anymask.models.graphs import ANSWERS, CLICKS, require
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import CheckpointError
from anymask.models.runtimes import Session, graph_runtime, open_session

ABOUT = "anymask.json"
VERSION = 1  # of the layout of such a folder
RUNTIME_OF = {"onnx": "onnxruntime", "openvino": "openvino"}
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "fastest": None}  # of OpenVINO; fastest is what suits the CPU
NOT_EXPORTED = "not understood: an exported model answers points, boxes and masks"


@dataclass(frozen=True)
class Exported:
    """`anymask.json`; sizes are (h, w) of the input and of masks, file names are relative to the folder.

    `computed_in` is float32, bfloat16 or fastest: of int8 it is what the rest is in.
    """

    version: int
    family: str
    model: str
    format: str
    dtype: str
    computed_in: str
    features: tuple[str, ...]
    input_size: tuple[int, int]
    mask_size: tuple[int, int]
    encoder: str
    decoder: str
    clicks: tuple[str, ...] = CLICKS
    answers: tuple[str, ...] = ANSWERS


def is_exported(folder: Path) -> bool:
    """Whether `anymask export` wrote it."""
    return (folder / ABOUT).is_file()


def read_exported(folder: Path, runtime: str, name: str, family: Callable[[str], Any]) -> PromptableModel:
    """The model, on the CPU; `family` gives the class of a name.

    Raises CheckpointError for a folder that is not whole, ValueError for a runtime that cannot compute it.
    """
    about = read_about(folder)
    chosen = _runtime(runtime, about, folder)
    try:
        kind = family(about.family)
    except KeyError as error:
        raise CheckpointError(
            f"{folder / ABOUT} names the unknown family {about.family}: export the model again"
        ) from error
    with building(folder):
        model: PromptableModel = kind.without_weights(read_json(folder / "config.json"), name)
    model.device = "cpu"
    can = dict.fromkeys(("text", "negative text", "exemplars"), NOT_EXPORTED)
    notes = {**model.capabilities.notes, **can}
    model.capabilities = replace(model.capabilities, text=False, exemplars=False, concepts=False, notes=notes)
    model.graphs = (folder / about.encoder, folder / about.decoder)
    encoder, decoder = (_opened(path, chosen, about) for path in model.graphs)
    model.runtime = graph_runtime(model, chosen, encoder, decoder, about.features)
    return model


def read_about(folder: Path) -> Exported:
    """`anymask.json` of an exported folder that is whole. Raises CheckpointError."""
    path = folder / ABOUT
    try:
        values = read_json(path)
        wanted = values["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} does not describe an exported model: export it again") from error
    if wanted != VERSION:
        raise CheckpointError(
            f"{path} must be of version {VERSION}, got {wanted}: use the anymask that wrote it, or export again"
        )
    try:
        lists: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        about = Exported(**lists)
        known = about.format in RUNTIME_OF and about.computed_in in PRECISIONS
    except TypeError as error:
        raise CheckpointError(f"{path} does not describe an exported model ({error}): export it again") from error
    if not known:
        raise CheckpointError(
            f"{path} names format {about.format}, computed in {about.computed_in}, which are not known: export it again"
        )
    for file in ("config.json", about.encoder, about.decoder):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder} is not whole: {file} is missing: export the model again")
    return about


def _runtime(asked: str, about: Exported, folder: Path) -> str:
    """The one that the folder is for; OpenVINO reads ONNX too."""
    own = RUNTIME_OF[about.format]
    chosen = own if asked == "auto" else asked
    if chosen not in (own, "openvino"):
        able = own if own == "openvino" else f"{own} or openvino"
        raise ValueError(f"{folder} is an {about.format} export, which runtime {asked} cannot compute: use {able}")
    require(chosen)
    return chosen


def _opened(path: Path, runtime: str, about: Exported) -> Session:
    try:
        return open_session(path, runtime, PRECISIONS[about.computed_in])
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} is no whole graph ({reason}): export the model again") from error
