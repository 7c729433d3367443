"""`load_detector`: one name, hub id, folder or original file to a ready detector; and the detectors that have a name.

Weights lie where those of models lie (`models/sources.py`): given paths, what `anymask models unpack` put here, the
hub's cache, the hub. transformers is imported with the detector's module, not before.
"""

import difflib
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from anymask.grounding import dino_keys
from anymask.grounding.protocol import Detector
from anymask.models import sources
from anymask.models.catalogue import APACHE, Entry
from anymask.models.checkpoints import first, read_config, read_state
from anymask.models.devices import pick_device, pick_dtype
from anymask.models.protocol import Capabilities, CheckpointError

DEFAULT = "grounding-dino-tiny"
# `model_type` in config.json to the class.
FAMILIES = {
    "grounding-dino": "anymask.grounding.dino:DinoDetector",
    "mm-grounding-dino": "anymask.grounding.dino:DinoDetector",
    "owlv2": "anymask.grounding.owl:OwlDetector",
}


def load_detector(name: str | Path = DEFAULT, device: str = "auto", dtype: torch.dtype | str | None = None) -> Detector:
    """A detector by catalogue name, hub id, folder as transformers saves it, or file of the GroundingDINO repository.

    `device` is auto, cpu, cuda or mps; `dtype` that of the weights, float32 if None: in bfloat16, boxes move by pixels.
    Raises ValueError for an unknown name, FileNotFoundError for a path that is not there, CheckpointError for weights
    that are missing, broken or of another architecture, with what to do.
    """
    chosen = pick_device(device)
    number = pick_dtype(dtype, chosen)
    path = sources.weights_at(_located(str(name)))
    if path.is_dir():
        family = read_config(path, FAMILIES)["model_type"]
        found: Detector = _class_of(family).from_folder(path, chosen, number, str(name))
        return found
    state = read_state(path)
    kind = dino_keys.recognise({key: tensor.shape for key, tensor in state.items()})
    if kind is None:
        raise _no_detector(list(state), path)
    original: Detector = _class_of("grounding-dino").from_original(state, kind, path, chosen, number, str(name))
    return original


def is_here(name: str | Path = DEFAULT) -> bool:
    """Whether its weights are on this machine; the hub is not asked."""
    return _found(str(name)) is not None


def _located(name: str) -> Path:
    """The folder or file of a detector; fetched if it is nowhere here and the hub is allowed."""
    if not name.strip():
        raise ValueError(f"the detector must be a name, hub id, folder or file, got nothing; {_known()}")
    if (found := _found(name)) is not None:
        return found
    entry = _named(name)
    if entry is None and not sources.may_be_hub_id(name):
        raise _unknown(name)
    instead = "names are found without it in windows of the image" if entry else _known()
    return sources.fetch(entry.hub_id if entry else name, entry, instead)


def _found(name: str) -> Path | None:
    """Where it lies on this machine; the names of the catalogue come before paths, and paths before the hub's cache."""
    if name not in CATALOGUE and name.strip() and Path(name).exists():
        return Path(name)
    entry = _named(name)
    return sources.find(entry.hub_id if entry else name)


def _named(name: str) -> Entry | None:
    return CATALOGUE.get(name) or next((entry for entry in CATALOGUE.values() if entry.hub_id == name), None)


def _class_of(family: str) -> Any:
    module, _, attribute = FAMILIES[family].partition(":")
    return getattr(import_module(module), attribute)


def _known() -> str:
    return f"the detectors that anymask knows by name are {', '.join(CATALOGUE)}"


def _unknown(name: str) -> Exception:
    if Path(name).suffix or len(Path(name).parts) > 1:
        return FileNotFoundError(f"no such detector file or folder: {name}")
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=1, cutoff=0.6)
    meant = f"did you mean {near[0]}? " if near else ""
    return ValueError(f"unknown detector {name!r}: {meant}{_known()}; or give a hub id, folder or file")


def _no_detector(keys: list[str], path: Path) -> CheckpointError:
    there = [marker for marker in dino_keys.MARKERS if marker in keys]
    if len(there) == len(dino_keys.MARKERS):
        return CheckpointError(f"{path} is {dino_keys.NAME} of an unknown size: known are {', '.join(dino_keys.SIZES)}")
    return CheckpointError(
        f"{path} is no detector: it must be a file of the GroundingDINO repository (groundingdino_swint_ogc.pth), or a"
        f" folder with config.json of {', '.join(FAMILIES)}; it begins with {first(keys)}"
    )


def _entry(name: str, family: str, hub_id: str, parameters: float, note: str) -> Entry:
    names_only = Capabilities(points=False, boxes=False, masks=False, text=True)
    return Entry(name, family, names_only, parameters, round(4 * parameters), APACHE, note, hub_id=hub_id)


_MM = "openmmlab-community/mm_grounding_dino"
CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _entry(
            DEFAULT,
            "grounding-dino",
            "IDEA-Research/grounding-dino-tiny",
            172.3,
            "the default; the original file groundingdino_swint_ogc.pth works as well",
        ),
        _entry(
            "grounding-dino-base",
            "grounding-dino",
            "IDEA-Research/grounding-dino-base",
            232.3,
            "larger encoder; the original file groundingdino_swinb_cogcoor.pth works as well",
        ),
        _entry(
            "mm-grounding-dino-tiny",
            "mm-grounding-dino",
            f"{_MM}_tiny_o365v1_goldg_v3det",
            172.9,
            "GroundingDINO trained anew in the open: better at rare names",
        ),
        _entry("mm-grounding-dino-base", "mm-grounding-dino", f"{_MM}_base_all", 233.0, "trained on most data"),
        _entry("mm-grounding-dino-large", "mm-grounding-dino", f"{_MM}_large_all", 343.1, "the best; wants a GPU"),
        _entry("owlv2-base", "owlv2", "google/owlv2-base-patch16-ensemble", 155.0, "one score per box and name"),
        _entry("owlv2-large", "owlv2", "google/owlv2-large-patch14-ensemble", 437.6, "wants a GPU"),
    )
}
