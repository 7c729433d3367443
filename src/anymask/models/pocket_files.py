"""The pocket model as a file: network and text tower together in float16 safetensors, with the sizes as metadata."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from anymask.data.files import write_whole
from anymask.models.pocket_network import PocketConfig, PocketNetwork
from anymask.models.pocket_text import TextConfig, TextTower, Tokenizer
from anymask.models.protocol import CheckpointError

UNSAVED = "num_batches_tracked"  # counters of batch norm, of use in training alone
SHIPPED = Path(str(files("anymask"))) / "weights" / "pocket"


def save_pocket(path: Path, network: PocketNetwork, tower: TextTower, made_by: Mapping[str, Any]) -> None:
    """Writes weights of both parts, their sizes, and how they were made; whole or not at all."""
    parts = {"network": network.state_dict(), "text": tower.state_dict()}
    tensors = {
        f"{part}.{name}": tensor.half() if tensor.is_floating_point() else tensor
        for part, state in parts.items()
        for name, tensor in state.items()
        if not name.endswith(UNSAVED)
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sizes = {"network": json.dumps(asdict(network.config)), "text": json.dumps(asdict(tower.config))}
    whole = save(contiguous, {**sizes, "made_by": json.dumps(dict(made_by))})
    with write_whole(path) as temporary:
        temporary.write_bytes(whole)


def read_network(path: Path) -> PocketNetwork:
    """The network in float32, ready for use; the text tower of the file is left alone."""
    with _reading(path), safe_open(path, framework="pt") as file:
        network = PocketNetwork(PocketConfig.read(json.loads(file.metadata()["network"])))
        counters = {name: value for name, value in network.state_dict().items() if name.endswith(UNSAVED)}
        network.load_state_dict({**_part(file, "network."), **counters})
    return network.eval().requires_grad_(False)


def read_text_tower(path: Path) -> tuple[TextTower, Tokenizer]:
    """The frozen text tower of a distillation or of a whole pocket model, with its tokenizer."""
    with _reading(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        prefix = "text." if "text" in metadata else ""
        tower = TextTower(TextConfig(**json.loads(metadata["text" if prefix else "config"])))
        tower.load_state_dict(_part(file, prefix))
    return tower.eval().requires_grad_(False), read_tokenizer(tower.config)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with the file becomes a CheckpointError of one line that names it."""
    try:
        yield
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} holds no whole pocket model: {reason}") from error


def read_tokenizer(config: TextConfig) -> Tokenizer:
    """The tokenizer whose vocabulary ships with the package."""
    return Tokenizer(SHIPPED / "vocab.txt", config.max_tokens)


def _part(file: Any, prefix: str) -> dict[str, torch.Tensor]:
    names = [name for name in file.keys() if name.startswith(prefix)]
    tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
