"""A learned `Concept` as one safetensors file: its token embeddings, and all the rest as metadata."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from anymask.data.files import write_whole
from anymask.data.images import PathLike
from anymask.types import Concept

_FORMAT = "anymask concept 1"


def save_concept(concept: Concept, path: PathLike) -> None:
    """Write the file; `made_by` and `quality` must be what JSON can hold."""
    metadata = {
        "format": _FORMAT,
        "name": concept.name,
        "base_model": concept.base_model,
        "base_digest": concept.base_digest,
        "made_by": json.dumps(dict(concept.made_by), allow_nan=False),
        "quality": json.dumps(dict(concept.quality), allow_nan=False),
        "thresholds": json.dumps(dict(concept.thresholds), allow_nan=False),
    }
    # safetensors writes the memory as it lies, whatever the strides of the array say.
    vectors = concept.token_embeddings
    content = save({} if vectors is None else {"token_embeddings": np.ascontiguousarray(vectors)}, metadata)
    with write_whole(path) as temporary:
        temporary.write_bytes(content)


def read_concept(path: PathLike) -> Concept:
    """The concept in a file; `ValueError` names a file that holds none."""
    if not Path(path).exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            return _concept_of(file.metadata() or {}, file)
    except (SafetensorError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a concept saved by anymask: {error}") from error


def _concept_of(metadata: dict[str, str], file: Any) -> Concept:
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"its format must be {_FORMAT!r}, got {metadata.get('format')!r}")
    return Concept(
        name=metadata["name"],
        base_model=metadata["base_model"],
        base_digest=metadata.get("base_digest", ""),
        token_embeddings=file.get_tensor("token_embeddings") if "token_embeddings" in file.keys() else None,
        made_by=json.loads(metadata["made_by"]),
        quality=json.loads(metadata["quality"]),
        thresholds=json.loads(metadata.get("thresholds", "{}")),
    )
