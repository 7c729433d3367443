"""`load`: one name, hub id, folder or file to a ready model.

The models that can be named are in `catalogue.py`, the places weights come from in `sources.py`. Here the family is
recognised, and its module, which may import transformers, is loaded alone.
"""

import logging
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from anymask.models import sources
from anymask.models.catalogue import CATALOGUE, Entry
from anymask.models.checkpoints import check_file, first, read_state
from anymask.models.devices import pick_device, pick_dtype
from anymask.models.pocket import PocketModel
from anymask.models.protocol import CheckpointError, Model

__all__ = ["CATALOGUE", "CheckpointError", "Entry", "load", "pick_device", "recognise"]

# Of each family: the class, and the modules that know the tensors of its original files.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sam": ("anymask.models.sam:Sam", ("anymask.models.sam_keys",)),
    "mobile": ("anymask.models.mobile:MobileSam", ("anymask.models.mobile_keys",)),
    "sam2": ("anymask.models.sam2:Sam2", ("anymask.models.sam2_keys",)),
    "sam3": ("anymask.models.sam3:Sam3", ("anymask.models.sam3_keys",)),
}
# `model_type` in config.json to the family.
MODEL_TYPES = {
    "sam": "sam",
    "sam_hq": "sam",
    "mobile_sam": "mobile",
    "sam2": "sam2",
    "sam2_video": "sam2",
    "edgetam": "sam2",
    "edgetam_video": "sam2",
    "sam3": "sam3",
    "sam3_video": "sam3",
    "sam3_tracker": "sam3",
    "sam3_tracker_video": "sam3",
    "sam3_lite_text": "sam3",
}
# Tensors by which a person would know an original file; the share that is there tells the nearest family.
_HEADS = ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "mask_decoder.iou_token.weight")
_TRUNK, _DETECTOR = "image_encoder.trunk", "detector.backbone"
MARKERS: dict[str, tuple[str, ...]] = {
    "sam": (
        "image_encoder.pos_embed",
        "image_encoder.patch_embed.proj.weight",
        "image_encoder.blocks.0.attn.rel_pos_h",
        "image_encoder.neck.0.weight",
        *_HEADS,
    ),
    "mobile": (
        "image_encoder.patch_embed.seq.0.c.weight",
        "image_encoder.layers.1.blocks.0.attn.attention_biases",
        "image_encoder.neck.0.weight",
        *_HEADS,
    ),
    "sam2": (
        f"{_TRUNK}.pos_embed",
        f"{_TRUNK}.patch_embed.proj.weight",
        "image_encoder.neck.convs.0.conv.weight",
        "memory_encoder.out_proj.weight",
        *(f"sam_{name}" for name in _HEADS),
    ),
    "edgetam": (
        f"{_TRUNK}.body.stem.conv1.c.weight",
        "image_encoder.neck.convs.0.conv.weight",
        "spatial_perceiver.latents",
        *(f"sam_{name}" for name in _HEADS),
    ),
    "sam3": (
        f"{_DETECTOR}.vision_backbone.trunk.patch_embed.proj.weight",
        f"{_DETECTOR}.language_backbone.encoder.token_embedding.weight",
        "detector.transformer.decoder.query_embed.weight",
        "tracker.sam_mask_decoder.iou_token.weight",
    ),
}

_log = logging.getLogger("anymask")


def load(model: str | Path = "pocket", device: str = "auto", dtype: torch.dtype | str | None = None) -> Model:
    """A model by catalogue name, hub id, folder (as transformers saves it) or file (pocket's or an original one).

    `device` is auto, cpu, cuda or mps. `dtype` is that of the weights: float32 if None, auto for what suits the device.
    Raises ValueError for an unknown name (with the nearest ones), FileNotFoundError for a path that is not there,
    CheckpointError for weights that are missing, gated, broken or of another architecture.
    """
    chosen = pick_device(device)
    number = pick_dtype(dtype, chosen)
    path, name = sources.locate(model), str(model)
    given = Path(model).exists() and name not in CATALOGUE
    name = (path.stem if path.is_file() else path.resolve().name) if given else name
    return _from_folder(path, chosen, number, name) if path.is_dir() else _from_file(path, chosen, number, name)


def recognise(shapes: Mapping[str, torch.Size], path: Path) -> tuple[str, str]:
    """Family and kind of the tensors of an original file; else a CheckpointError that names the nearest family."""
    for family, (_, modules) in FAMILIES.items():
        for module in modules:
            kind = import_module(module).recognise(shapes)
            if kind is not None:
                return family, kind
    raise _another_architecture(shapes, path)


def _from_folder(folder: Path, device: str, dtype: torch.dtype, name: str) -> Model:
    if (folder / "pocket.safetensors").is_file():
        return _from_file(folder / "pocket.safetensors", device, dtype, name)
    if not (folder / "config.json").is_file():
        lone = sources.lone_checkpoint(folder)
        if lone is not None:
            return _from_file(lone, device, dtype, name)
        raise CheckpointError(
            f"{folder} is no folder of a model: it must hold config.json and model.safetensors (as transformers saves"
            " them), pocket.safetensors, or one original checkpoint"
        )
    kind = sources.read_config(folder).get("model_type")
    family = MODEL_TYPES.get(str(kind))
    if family is None:
        raise CheckpointError(
            f"{folder / 'config.json'} is of model_type {kind}, which anymask does not know: it must be one of"
            f" {', '.join(MODEL_TYPES)}"
        )
    model: Model = _family(family).from_folder(folder, device, dtype, name)
    return model


def _from_file(path: Path, device: str, dtype: torch.dtype, name: str) -> Model:
    check_file(path)
    if _is_pocket(path):
        if dtype != torch.float32:
            _log.warning("pocket computes in float32, not %s", str(dtype).removeprefix("torch."))
        return PocketModel.read(path, device, name)
    if (path.parent / "config.json").is_file() and path.name in ("model.safetensors", "pytorch_model.bin"):
        return _from_folder(path.parent, device, dtype, path.resolve().parent.name)
    state = read_state(path)
    family, kind = recognise({key: value.shape for key, value in state.items()}, path)
    model: Model = _family(family).from_original(state, kind, path, device, dtype, name)
    return model


def _family(name: str) -> Any:
    module, _, attribute = FAMILIES[name][0].partition(":")
    return getattr(import_module(module), attribute)


def _is_pocket(path: Path) -> bool:
    """By the sizes in the metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {"network", "text"} <= set(file.metadata() or {})
    except SafetensorError:  # another format
        return False


def _another_architecture(shapes: Mapping[str, Any], path: Path) -> CheckpointError:
    models = f"the models that anymask knows are of the families pocket, {', '.join(MARKERS)} (anymask models)"
    if any(name.startswith(("vision_encoder.", "detector_model.", "shared_image_embedding.")) for name in shapes):
        return CheckpointError(
            f"{path} holds tensors as transformers names them: give the folder with its config.json; {models}"
        )
    there = {family: [name for name in markers if name in shapes] for family, markers in MARKERS.items()}
    nearest = max(there, key=lambda family: len(there[family]) / len(MARKERS[family]))
    missing = [name for name in MARKERS[nearest] if name not in shapes]
    known = {name for markers in MARKERS.values() for name in markers}
    strange = [name for name in shapes if name not in known]
    share = f"{len(there[nearest])} of {len(MARKERS[nearest])}"
    return CheckpointError(
        f"{path} is of another architecture: nearest is {nearest}, of which it has {share} tensors looked for; missing"
        f" {first(missing) or 'none'}; not known {first(strange)}; {models}"
    )
