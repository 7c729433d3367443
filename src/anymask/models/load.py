"""`load`: one name, hub id, folder or file to a ready model.

The models that can be named are in `catalogue.py`, the places weights come from in `sources.py`. Here the family is
recognised, and its module, which may import transformers, is loaded alone.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from anymask.models import mobile_keys, sam2_keys, sam3_keys, sam_keys, sources
from anymask.models.catalogue import CATALOGUE, Entry
from anymask.models.checkpoints import check_file, first, metadata_of, read_config, read_state, whole_weights_of
from anymask.models.devices import pick_device, pick_dtype
from anymask.models.exported import is_exported, read_about, read_exported
from anymask.models.image_sizes import read_size
from anymask.models.pocket import PocketModel
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import CheckpointError, Model
from anymask.models.runtimes import ON_THE_CPU, check_runtime, runtime_for
from anymask.types import Size

__all__ = ["CATALOGUE", "CheckpointError", "Entry", "check", "load", "pick_device", "recognise"]

# Of each family: the class, and what knows its config.json and the tensors of its original files.
FAMILIES: dict[str, tuple[str, ModuleType]] = {
    "sam": ("anymask.models.sam:Sam", sam_keys),
    "mobile": ("anymask.models.mobile:MobileSam", mobile_keys),
    "sam2": ("anymask.models.sam2:Sam2", sam2_keys),
    "sam3": ("anymask.models.sam3:Sam3", sam3_keys),
}
# `model_type` in config.json to the family.
MODEL_TYPES = {kind: family for family, (_, keys) in FAMILIES.items() for kind in keys.MODEL_TYPES}

# Of detectors (grounding/detect.py), which can be packed too.
DETECTORS = ("grounding-dino", "mm-grounding-dino", "owlv2")

_log = logging.getLogger("anymask")


def load(
    model: str | Path = "pocket",
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    runtime: str = "auto",
    *,
    image_size: int | str | Sequence[int] | None = None,
    window_size: int | None = None,
) -> Model:
    """A model by catalogue name, hub id, folder (of transformers or `export`) or file (pocket's or an original one).

    `device` is auto, cpu, cuda or mps. `dtype` is that of the weights: float32 if None, auto for what suits the device.
    `runtime` is what computes it: auto, eager, compile, openvino or onnxruntime (docs/runtimes.md).
    `image_size` is another input than the native one, a side or (h, w) in pixels; `window_size` other windows of SAM's
    encoder, in cells of 16 pixels (docs/image_sizes.md says what both cost and gain).
    Raises ValueError for an unknown name (with the nearest ones), FileNotFoundError for a path that is not there,
    CheckpointError for weights that are missing, gated, broken or of another architecture.
    """
    chosen = pick_device(check_runtime(runtime, device))
    number = pick_dtype(dtype, chosen)
    size = None if image_size is None else read_size(image_size)
    found = sources.locate(model)
    path = sources.weights_at(found.path)
    name = _own_name(found.path, path) if found.given else str(model)
    if is_exported(path):
        _check_for_export(path, device, number, size, window_size)
        return read_exported(path, runtime, name, _family)
    weights = torch.float32 if runtime in ON_THE_CPU else number
    own = (_from_folder if path.is_dir() else _from_file)(path, chosen, weights, name)
    if size is not None or window_size is not None:
        _fit(own, size, window_size)
    if isinstance(own, PromptableModel):
        own.runtime = runtime_for(own, runtime, number)
    return own


def check(path: Path) -> None:
    """Raises CheckpointError if the folder or file of `sources.weights_at` is of no known family, or is not whole."""
    if is_exported(path):
        read_about(path)
    elif path.is_dir():
        read_config(path, (*MODEL_TYPES, *DETECTORS))
        for file in whole_weights_of(path):
            check_file(file)
    elif not _is_pocket(path):
        recognise({key: value.shape for key, value in read_state(path).items()}, path)


def recognise(shapes: Mapping[str, torch.Size], path: Path) -> tuple[str, str]:
    """Family and kind of the tensors of an original file; else a CheckpointError that names the nearest family."""
    for family, (_, keys) in FAMILIES.items():
        kind = keys.recognise(shapes)
        if kind is not None:
            return family, kind
    raise _another_architecture(shapes, path)


def _own_name(given: Path, path: Path) -> str:
    """Of a folder or file of the user."""
    folder = next((place for place in (path, given) if place.is_dir()), None)
    return path.stem if folder is None else folder.resolve().name


def _fit(model: Any, size: Size | None, window_size: int | None) -> None:
    if size is not None:
        model.set_input_size(size)
    if window_size is not None:
        model.set_window_size(window_size)


def _from_folder(path: Path, device: str, dtype: torch.dtype, name: str) -> Model:
    family = MODEL_TYPES[read_config(path, MODEL_TYPES)["model_type"]]
    model: Model = _family(family).from_folder(path, device, dtype, name)
    return model


def _check_for_export(path: Path, device: str, dtype: torch.dtype, size: Size | None, window_size: int | None) -> None:
    if device not in ("auto", "cpu"):
        raise ValueError(f"{path} is an exported model, which computes on the CPU: give --device cpu")
    if size is not None or window_size is not None:
        raise ValueError(f"{path} is an exported model, whose input and windows are fixed: export it at another size")
    if dtype != torch.float32:
        _log.warning("%s computes in what it was exported in, not %s", path, str(dtype).removeprefix("torch."))


def _from_file(path: Path, device: str, dtype: torch.dtype, name: str) -> Model:
    if _is_pocket(path):
        if dtype != torch.float32:
            _log.warning("pocket computes in float32, not %s", str(dtype).removeprefix("torch."))
        return PocketModel.read(path, device, name)
    state = read_state(path)
    family, kind = recognise({key: value.shape for key, value in state.items()}, path)
    model: Model = _family(family).from_original(state, kind, path, device, dtype, name)
    return model


def _family(name: str) -> Any:
    if name == PocketModel.family:
        return PocketModel
    module, _, attribute = FAMILIES[name][0].partition(":")
    return getattr(import_module(module), attribute)


def _is_pocket(path: Path) -> bool:
    """By the sizes in the metadata of a safetensors file."""
    return {"network", "text"} <= set(metadata_of(path))


def _another_architecture(shapes: Mapping[str, Any], path: Path) -> CheckpointError:
    known = f"the families that anymask knows are pocket, {', '.join(FAMILIES)} (anymask models)"
    if any(name.startswith(("vision_encoder.", "detector_model.", "shared_image_embedding.")) for name in shapes):
        return CheckpointError(
            f"{path} holds tensors as transformers names them: give the folder with its config.json; {known}"
        )
    there = {family: [name for name in keys.MARKERS if name in shapes] for family, (_, keys) in FAMILIES.items()}
    nearest = max(there, key=lambda family: len(there[family]))
    keys = FAMILIES[nearest][1]
    missing = [name for name in keys.MARKERS if name not in shapes]
    if not missing:
        return CheckpointError(f"{path} is {keys.NAME} of an unknown size: known are {', '.join(keys.KINDS)}")
    begins = f"it begins with {first(list(shapes))}; {known}"
    if not there[nearest]:
        return CheckpointError(f"{path} is of another architecture, with nothing in common: {begins}")
    return CheckpointError(
        f"{path} is of another architecture: nearest is {nearest}, of which it has {len(there[nearest])} of"
        f" {len(keys.MARKERS)} tensors looked for; missing {first(missing)}; {begins}"
    )
