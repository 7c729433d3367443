"""Networks of transformers filled with weights: quietly, whole, and under whatever names that version gives to layers.

transformers renames layers from version to version and reads the names of older files, so `from_pretrained` fills a
network that only the hub's names describe.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from anymask.models.checkpoints import building, first
from anymask.models.protocol import CheckpointError


def configured(values: Mapping[str, Any], path: Path) -> Any:
    """The configuration that the values of a `config.json` at `path` describe. Raises CheckpointError."""
    with building(path), _quiet():
        return AutoConfig.for_model(**values)


def filled(
    kind: Any, config: Any, state: Mapping[str, Tensor], path: Path, dtype: torch.dtype, leftovers: bool = False
) -> Any:
    """A network of the class `kind`, ready for use on the CPU; `state` has the names of the hub's files.

    Raises CheckpointError for tensors that are missing or of another shape, and unless `leftovers` for unknown ones.
    """
    with building(path), _quiet():
        network, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    shapes = [f"{name} {list(came)} for {list(wanted)}" for name, came, wanted in report["mismatched_keys"]]
    extra = [] if leftovers else sorted(report["unexpected_keys"])
    rows = (("missing", sorted(report["missing_keys"])), ("not known", extra), ("of another shape", sorted(shapes)))
    if any(names for _, names in rows):
        wrong = "; ".join(f"{len(names)} tensors {what} ({first(names)})" for what, names in rows if names)
        raise CheckpointError(f"{path} is no {kind.__name__}: {wrong}")
    return network.eval().requires_grad_(False)


def beside(kind: Any, folder: Path, files: tuple[str, ...] = ("preprocessor_config.json",)) -> Any | None:
    """A tokenizer or image processor of the class `kind` as saved in a folder; None if it has none of the `files`.

    Raises CheckpointError for one that is broken.
    """
    if not any((folder / name).is_file() for name in files):
        return None
    try:
        with _quiet():
            return kind.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{' or '.join(files)} in {folder} cannot be read ({reason}): fetch it again") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no table of what was loaded: that is said above."""
    logger, had_bars = logging.getLogger("transformers"), transformers_logging.is_progress_bar_enabled()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if had_bars:
            transformers_logging.enable_progress_bar()
