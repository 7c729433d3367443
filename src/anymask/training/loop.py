"""The parts that every training run shares: schedule, moving average of the weights, checkpoints, curves."""

import copy
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from anymask.data.files import write_whole
from anymask.models.checkpoints import read_pickle
from anymask.models.protocol import CheckpointError

M = TypeVar("M", bound=nn.Module)


def trapezoid(step: int, steps: int, warmup: int, decay: int) -> float:
    """Factor of the learning rate: a linear rise, a plateau, and a linear fall over the last `decay` steps.

    The plateau may be prolonged later without having wasted a schedule (Zhai et al. 2022, section 3.5).
    """
    return max(0.0, min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, decay)))


def cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: a linear rise over `warmup` steps, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class MovingAverage(Generic[M]):
    """An exponential moving average of a model's weights, with a short memory at the start."""

    def __init__(self, model: M, decay: float) -> None:
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Moves towards `model`; the decay grows with the step to its final value."""
        keep = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = ([p.detach() for p in one.parameters()] for one in (self.model, model))
        torch._foreach_lerp_(ours, theirs, 1 - keep)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes the whole state or nothing."""
    buffer = io.BytesIO()  # torch's own writer reports a full disk as a RuntimeError
    torch.save(dict(state), buffer)
    with write_whole(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, None if there is none. Raises CheckpointError for anything but a saved state."""
    if not path.is_file():
        return None
    try:
        state = read_pickle(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no whole checkpoint: remove it to begin anew, or give another -o") from error
    if not isinstance(state, dict) or "optimizer" not in state:
        raise CheckpointError(f"{path} is no checkpoint of a training run: remove it, or give another -o")
    return state


def told(settings: Any, free: Sequence[str]) -> dict[str, str]:
    """The settings that the numbers of a run depend on: all but `free` and paths, which count by what is in them."""
    rest = {name: value for name, value in asdict(settings).items() if name not in free}
    return {name: str(value) for name, value in rest.items() if not isinstance(value, Path | None)}


def load_same_run(path: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """The state saved at `path` by a run of this identity, its entry `run`; None if there is none.

    Raises ValueError if what its numbers depend on was another.
    """
    state = load_checkpoint(path)
    if state is None:
        return None
    began = state.get("run", {})
    names = dict.fromkeys([*identity, *began])
    if differing := [name for name in names if identity.get(name) != began.get(name)]:
        raise ValueError(
            f"{path} is of another run: {', '.join(differing)} changed; give what it began with, or another -o"
        )
    return state


@dataclass(frozen=True)
class StepRecord:
    """One step of a run: losses and IoUs, and how fast it goes. Step 0 is what was measured before the first."""

    step: int
    steps: int
    images_per_second: float
    metrics: dict[str, float]


class Curve:
    """A CSV file with a row per record; rows after a resumed step are cut off first."""

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resume_at]

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row, which must have a `step`, and writes the file."""
        self.rows.append(dict(row))
        names = list(dict.fromkeys(name for one in self.rows for name in one))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        with write_whole(self.path) as temporary:
            temporary.write_text(text.getvalue())


def means_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """For a row of the curve: the mean of each metric over the steps that have it, NaN left aside."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row and row[name] == row[name]] for name in names}
    return {name: round(float(np.mean(found)), 5) for name, found in values.items() if found}
