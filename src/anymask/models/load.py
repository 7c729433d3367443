"""The catalogue of models, and `load`: one name, file or folder to a ready model."""

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from anymask.models.devices import pick_device
from anymask.models.pocket import PocketModel
from anymask.models.pocket_files import SHIPPED
from anymask.models.protocol import Capabilities, CheckpointError, Model

__all__ = ["CATALOGUE", "CheckpointError", "Entry", "load", "pick_device"]


@dataclass(frozen=True)
class Entry:
    """One model that can be named: how to read it, and what a user wants to know before."""

    name: str
    family: str
    note: str
    licence: str
    megabytes: float
    path: Path
    capabilities: Capabilities
    read: Callable[[Path, str, str], Model]

    @property
    def installed(self) -> bool:
        """Whether its weights are on this machine."""
        return self.path.is_file()

    def describe(self) -> dict[str, Any]:
        """Plain values for a table or JSON."""
        can = asdict(self.capabilities)
        return {
            "name": self.name,
            "family": self.family,
            "installed": self.installed,
            "megabytes": self.megabytes,
            "licence": self.licence,
            "note": self.note,
            "prompts": [kind for kind, able in can.items() if able is True],
            "notes": can["notes"],
        }


def _read_pocket(path: Path, device: str, name: str) -> Model:
    return PocketModel.read(path, device, name)


CATALOGUE: dict[str, Entry] = {
    "pocket": Entry(
        name="pocket",
        family="pocket",
        note="small, shipped inside the package, works offline",
        licence="see the model card: docs/pocket.md",
        megabytes=19.2,
        path=SHIPPED / "pocket.safetensors",
        capabilities=PocketModel.capabilities,
        read=_read_pocket,
    ),
}


def load(model: str | Path = "pocket", device: str = "auto", dtype: torch.dtype | None = None) -> Model:
    """A model by catalogue name or by the path of a pocket checkpoint (`anymask train pocket`).

    `device` is auto, cpu, cuda or mps. Raises ValueError for an unknown name (with the nearest ones), FileNotFoundError
    for a path that is not there, CheckpointError for a file that holds no model.
    """
    if dtype not in (None, torch.float32):
        raise ValueError(f"dtype must be torch.float32 or None for pocket, got {dtype}")
    chosen, name = pick_device(device), str(model)
    entry = CATALOGUE.get(name)
    if entry is not None:
        if not entry.installed:
            raise CheckpointError(f"the weights of {name} are missing at {entry.path}: install anymask again")
        return entry.read(entry.path, chosen, name)
    path = Path(model)
    if path.is_dir() and (path / "pocket.safetensors").is_file():
        path = path / "pocket.safetensors"
    if path.is_file():
        return PocketModel.read(check_pocket_file(path), chosen, path.stem)
    raise _unknown(name, path)


def check_pocket_file(path: Path) -> Path:
    """`path` if it holds a pocket model, else a CheckpointError that says what it is."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint: it must be a safetensors file of a pocket model ({error})"
        ) from error
    if not {"network", "text"} <= set(metadata):
        raise CheckpointError(
            f"{path} is no pocket model: its metadata must name network and text, got {sorted(metadata)}"
        )
    return path


def _unknown(name: str, path: Path) -> Exception:
    if path.suffix or len(path.parts) > 1:
        return FileNotFoundError(f"no such model file or folder: {path}")
    near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.4) or list(CATALOGUE)
    return ValueError(
        f"unknown model {name!r}: the nearest known are {', '.join(near)}; or give a file (anymask models)"
    )
