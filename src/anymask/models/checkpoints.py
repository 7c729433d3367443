"""Weights of files: read safely, recognised by their tensors, loaded strictly."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from anymask.models.protocol import CheckpointError

SHOWN = 3  # differing keys that an error shows of each kind
WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys under which training scripts put the tensors


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file; nothing in the file is run. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is no whole safetensors file ({error}): fetch it again") from error
    content = _read_pickle(path)
    while isinstance(content, Mapping) and not _is_state(content):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            raise CheckpointError(f"{path} holds no tensors by name: it must be the checkpoint of a model")
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: it must be tensors by name")
    return {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Loads every tensor by name and shape, else raises CheckpointError with the first keys that differ.

    Tensors of `state` take the place of the network's own, so a network on the meta device is filled.
    """
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted]
    shapes = [n for n, shape in wanted.items() if n in state and state[n].shape != shape]
    if missing or extra or shapes:
        shaped = [f"{n} {list(state[n].shape)} for {list(wanted[n])}" for n in shapes]
        rows = (("missing", missing), ("not known", extra), ("of another shape", shaped))
        raise CheckpointError(
            f"{path} is no {what}: " + "; ".join(f"{len(r)} tensors {kind} ({_first(r)})" for kind, r in rows if r)
        )
    network.load_state_dict(dict(state), strict=True, assign=True)


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is a pickle with more than tensors in it, which could run code: it is not opened; ask its author"
            " for a safetensors file, or convert it where you trust it"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is no whole PyTorch file ({path.stat().st_size / 1e6:.1f} MB): the download may have stopped half"
            " way, fetch it again"
        ) from error


def _is_state(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
