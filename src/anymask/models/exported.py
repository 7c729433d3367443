"""A folder of `anymask export` as a model again: graphs compute, the family does the rest.

The folder holds an encoder and a decoder (`graphs.py`), the model's own config.json, and `anymask.json`, which says
what the graphs take and give, for us and for other programs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from anymask.data.files import read_json
from anymask.models.checkpoints import building
from anymask.models.graphs import ANSWERS, CLICKS, require
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import CheckpointError
from anymask.models.runtimes import PRECISIONS, Session, Shape, graph_runtime, open_session

ABOUT = "anymask.json"
VERSION = 1  # of the layout of such a folder
Named = Mapping[str, Shape]  # what a graph takes or gives
NOT_EXPORTED = "not understood: an exported model answers points, boxes and masks"


@dataclass(frozen=True)
class Format:
    """The runtime that a format is for, the ending of its files, and the number formats it is written in."""

    runtime: str
    suffix: str
    dtypes: tuple[str, ...]


FORMATS = {
    "onnx": Format("onnxruntime", "onnx", ("float32", "int8")),
    "openvino": Format("openvino", "xml", ("float32", "float16", "bfloat16", "int8")),
}


@dataclass(frozen=True)
class Exported:
    """`anymask.json`; sizes are (h, w) of the input and of masks, `encoder` and `decoder` are files of the folder.

    `computed_in` is one of `PRECISIONS`: of int8 it is what the rest is in.
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
    model.capabilities = replace(
        model.capabilities, text=False, exemplars=False, concepts=False, named_prompts=False, notes=notes
    )
    encoder, decoder = (_opened(folder / file, chosen, about) for file in (about.encoder, about.decoder))
    _check_fit(folder, about, model, encoder, decoder)
    model.graphs = tuple(sorted(path for path in folder.iterdir() if path.is_file()))  # weights may lie beside graphs
    model.runtime = graph_runtime(model, chosen, encoder, decoder)
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
        known = about.format in FORMATS and about.computed_in in PRECISIONS
    except TypeError as error:
        raise CheckpointError(f"{path} does not describe an exported model ({error}): export it again") from error
    if not known:
        raise CheckpointError(
            f"{path} names format {about.format}, computed in {about.computed_in}, which are not known: export it again"
        )
    for file in ("config.json", about.encoder, about.decoder):
        if not isinstance(file, str) or file != Path(file).name:
            raise CheckpointError(f"{path} must name graphs by plain file names, got {file}: export the model again")
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder} is not whole: {file} is missing: export the model again")
    return about


def _runtime(asked: str, about: Exported, folder: Path) -> str:
    """The one that the folder is for; OpenVINO reads ONNX too."""
    own = FORMATS[about.format].runtime
    chosen = own if asked == "auto" else asked
    if chosen not in (own, "openvino"):
        able = own if own == "openvino" else f"{own} or openvino"
        raise ValueError(f"{folder} is an {about.format} export, which runtime {asked} cannot compute: use {able}")
    require(chosen)
    return chosen


def _opened(path: Path, runtime: str, about: Exported) -> Session:
    try:
        return open_session(path, runtime, about.computed_in)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: export the model again") from error


def _check_fit(folder: Path, about: Exported, model: PromptableModel, encoder: Session, decoder: Session) -> None:
    """Raises CheckpointError for files of two exports; `model` is what config.json describes."""
    said = (about.features, about.input_size, about.mask_size)
    wanted = (model.decoder_features, model.input_size, tuple(model.mask_size))
    if said != wanted:
        raise _misfit(folder / ABOUT, f"features, input and mask size {wanted}", str(said))
    features: Named = dict.fromkeys(about.features, (1, None, None, None))
    masks = (None, *about.mask_size)
    clicks: Named = dict(zip(CLICKS, ((None, None, 2), (None, None), masks, (None,)), strict=True))
    answers: Named = dict(zip(ANSWERS, ((None, *masks), (None, None)), strict=True))
    for file, there, needed in (
        (about.encoder, encoder.inputs, {"pixel_values": (1, 3, *about.input_size)}),
        (about.encoder, encoder.outputs, features),
        (about.decoder, decoder.inputs, {**encoder.outputs, **clicks}),
        (about.decoder, decoder.outputs, answers),
    ):
        for has, needs in zip_longest(there.items(), needed.items(), fillvalue=("nothing", ())):
            if has[0] != needs[0] or not _fits(has[1], needs[1]):
                raise _misfit(folder / file, _words(*needs), _words(*has))


def _fits(shape: Shape, needed: Shape) -> bool:
    return len(shape) == len(needed) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape, needed, strict=True)
    )


def _words(name: str, shape: Shape) -> str:
    return f"{name} ({' '.join('any' if n is None else str(n) for n in shape)})"


def _misfit(file: Path, wanted: str, got: str) -> CheckpointError:
    return CheckpointError(f"{file} must have {wanted} to fit the files beside it, has {got}: export the model again")
