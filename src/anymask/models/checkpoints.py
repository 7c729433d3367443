"""Configs and weights of files: read safely, without what training wrapped around them, and loaded strictly."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anymask.data.files import read_json, write_json, write_whole
from anymask.models.protocol import CheckpointError

SHOWN = 3  # differing keys that an error shows of each kind
WEIGHTS = ("model.safetensors", "model-*.safetensors", "pocket.safetensors")  # of a folder
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")  # of a folder, where there are no safetensors
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # of files that hold weights
WRAPPERS = ("model", "state_dict", "model_state_dict", "sam_model")  # keys under which training scripts put the tensors
PREFIXES = ("module.", "_orig_mod.", "model.", "sam_model.", "sam.")  # what wrappers put before every name
SNIFFED = 512  # bytes that tell a web page or a text from weights
POSITION = "positional_embedding"  # ends the names of position codes


def read_config(folder: Path, model_types: Collection[str]) -> dict[str, Any]:
    """`config.json` of a folder as transformers saves it. Raises CheckpointError if it is of no such `model_type`."""
    path = folder / "config.json"
    try:
        config: Any = read_json(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must be a JSON object, got a {type(config).__name__}")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in model_types:
        raise CheckpointError(f"{path} must be of model_type {', '.join(model_types)}, got {kind}")
    return config


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Values of a `config.json` that no network can be built with as a CheckpointError that says what is wrong."""
    from huggingface_hub.errors import StrictDataclassError  # what transformers raises; not loaded for pocket

    wrong = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
    unknown_to_timm = ImportError
    try:
        yield
    except (StrictDataclassError, unknown_to_timm, *wrong) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{folder / 'config.json'} describes no network that can be built ({type(error).__name__}: {reason}):"
            " correct it, or fetch it again"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file by name; nothing in the file is run. Raises CheckpointError."""
    _check_head(path)
    content: Any = _read_safetensors(path) if _is_safetensors(path) else read_pickle(path)
    inner = _unwrapped(content)
    if inner is None:
        kind = type(content).__name__
        raise CheckpointError(f"{path} holds no tensors by name but a {kind}: it must be the checkpoint of a model")
    state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a transformers folder, in one file or several. Raises CheckpointError."""
    return {name: value for file in whole_weights_of(folder) for name, value in read_state(file).items()}


def whole_weights_of(folder: Path) -> list[Path]:
    """As `weights_of`; raises CheckpointError that names the missing part if there are none."""
    if files := weights_of(folder):
        return files
    for index, missing in ((index, name) for index, names in _missing(folder).items() for name in names):
        raise CheckpointError(f"{folder} is not whole: {missing} is missing, which {index} names: fetch it again")
    raise CheckpointError(f"{folder} must hold model.safetensors or pytorch_model.bin, whole, beside config.json")


def weights_of(folder: Path) -> list[Path]:
    """The files of weights of a transformers or pocket folder, of one format; none if any part is missing."""
    for kind in (WEIGHTS, PICKLES):
        files = sorted({path for pattern in kind for path in folder.glob(pattern)})
        if files:
            return [] if _missing(folder).get(_index(kind)) else files
    return []


def check_file(path: Path) -> None:
    """Raises CheckpointError if the file cannot be weights: empty, a web page, git-lfs pointer or text, cut off."""
    _check_head(path)
    if _is_safetensors(path):
        with _whole(path), safe_open(path, framework="pt"):
            return


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; of a file of another format nothing. Raises CheckpointError."""
    if not _has_header(path):
        return {}
    with _whole(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_folder(folder: Path, network: nn.Module, config: Mapping[str, Any]) -> None:
    """config.json and model.safetensors as transformers lays them out, each written whole."""
    state: dict[str, Tensor] = {}
    places = set()
    for name, tensor in network.state_dict().items():
        own = tensor.detach().cpu().contiguous()
        state[name] = own.clone() if own.data_ptr() in places else own  # safetensors takes no shared memory
        places.add(own.data_ptr())
    with write_whole(folder / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", dict(config), indent=2)


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
            f"{path} is no {what}: " + "; ".join(f"{len(r)} tensors {kind} ({first(r)})" for kind, r in rows if r)
        )
    network.load_state_dict(dict(state), strict=True, assign=True)


def in_dtype(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floats in `dtype`, but position codes in float32: in fewer bits, clicks would move by pixels."""
    return {
        name: value.to(torch.float32 if name.endswith(POSITION) else dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """The name after every rule (pattern, replacement), one after another."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def first(names: list[str]) -> str:
    """The first few of many, for an error."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _check_head(path: Path) -> None:
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: the download never began, fetch it again")
    with path.open("rb") as file:
        head = file.read(SNIFFED)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of git-lfs, not the weights: run git lfs pull in its folder")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not weights: fetch the file itself, not the page that shows it")
    if _is_text(head):
        raise CheckpointError(f"{path} is a text file, not weights: it must be a safetensors or PyTorch file")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _whole(path):
        return load_file(path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}): fetch it again") from error


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, tensors and plain values only; nothing in it is run. Raises CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that other programs wrote: what matters is said below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"[Uu]nsupported (?:(?:global: )?GLOBAL|operand) (\S+)", str(error))
        if found and (zipfile.is_zipfile(path) or _begins(path, b"\x80")):  # else noise that reads as an operand
            what = "" if found[1].isdecimal() else f" ({found[1]})"
            raise CheckpointError(
                f"{path} is a pickle that holds more than tensors{what}, which could run code: it is not opened; ask"
                " its author for a safetensors file, or convert it where you trust it"
            ) from error
        raise CheckpointError(_not_whole(path)) from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(_not_whole(path)) from error


def _not_whole(path: Path) -> str:
    megabytes = path.stat().st_size / 1e6
    return (
        f"{path} is no whole PyTorch file ({megabytes:.1f} MB): the download may have stopped half way, fetch it again"
    )


def _unwrapped(content: object) -> Mapping[Any, Any] | None:
    """The mapping of names to tensors, in whatever a training script put around it."""
    if not isinstance(content, Mapping):
        return None
    for key in WRAPPERS:
        if (inner := _unwrapped(content.get(key))) is not None:
            return inner
    return content if any(isinstance(value, Tensor) for value in content.values()) else None


def _missing(folder: Path) -> dict[str, list[str]]:
    """The parts that an index of a sharded model names and that are not there, by the name of the index."""
    return {
        index: sorted(name for name in _listed(folder / index) if not (folder / name).is_file())
        for index in map(_index, (WEIGHTS, PICKLES))
    }


def _index(kind: tuple[str, ...]) -> str:
    return f"{kind[0]}.index.json"


def _listed(index: Path) -> set[str]:
    """The parts that the index of a sharded model names."""
    try:
        return {str(part) for part in read_json(index)["weight_map"].values()} if index.is_file() else set()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights: fetch the model again") from error


def _is_safetensors(path: Path) -> bool:
    return _has_header(path) or path.suffix == ".safetensors"


def _has_header(path: Path) -> bool:
    """Whether it begins as safetensors do, with the length of a header in JSON and then its bracket."""
    return _begins(path, b"{", 8)


def _begins(path: Path, mark: bytes, at: int = 0) -> bool:
    with path.open("rb") as file:
        return file.read(at + len(mark))[at:] == mark


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="ignore")
    return all(letter.isprintable() or letter.isspace() for letter in text)
