"""Devices and number formats: what is there, what to fall back to, and what to do when memory runs out.

Nothing here needs a compiled extension. Every fallback is a warning of the logger `anymask`, which the command shows.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

R = TypeVar("R")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_TOO_LITTLE = ("out of memory", "can't allocate memory", "not enough memory")

_log = logging.getLogger("anymask")


def pick_device(device: str = "auto") -> str:
    """The device to use; auto takes the first of cuda, mps, cpu that is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    able = [name for name, is_there in there.items() if is_there]
    if device == "auto":
        return able[0]
    numbered = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if ":" in device else ["cuda"]
    known = [name for one in able for name in (numbered if one == "cuda" else [one])]
    if device not in known:
        seen = "" if there["cuda"] or not device.startswith("cuda") else ": PyTorch sees no CUDA device"
        raise ValueError(f"device must be one of auto, {', '.join(known)} here, got {device}{seen}")
    return device


def pick_dtype(dtype: torch.dtype | str | None, device: str) -> torch.dtype:
    """The number format of the weights: float32 by default, so that results are the same everywhere.

    auto is bfloat16 on a GPU that has it, float16 on other GPUs and MPS, float32 on a CPU. A format that the device
    lacks falls back to the next better one, with a warning.
    """
    if dtype is None:
        return torch.float32
    kind = device.partition(":")[0]
    brain = kind == "cpu" or (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    if dtype == "auto":
        return torch.float32 if kind == "cpu" else torch.bfloat16 if brain else torch.float16
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype == "int8":
        raise ValueError(
            "int8 is calibrated once and kept: run anymask export MODEL -o DIR --format openvino --dtype int8, then"
            " give -m DIR"
        )
    if wanted is None or wanted not in DTYPES.values():
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype}")
    if wanted == torch.bfloat16 and not brain:
        return _instead(wanted, torch.float16, device)
    if wanted == torch.float16 and kind == "cpu":
        return _instead(wanted, torch.float32, device)
    return wanted


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA raises an error of its own; MPS and the CPU raise a RuntimeError that only says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TOO_LITTLE)


@contextmanager
def memory_for(doing: str, device: str) -> Iterator[None]:
    """Where memory ends inside, a MemoryError that says while doing what, and what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"{device} has too little memory to {doing}: close other programs, take a smaller model, --dtype float16,"
            " or --device cpu"
        ) from error


def in_chunks(run: Callable[[Sequence[int]], R], rows: Sequence[int], most: int, device: str = "cpu") -> list[R]:
    """`run` on at most `most` rows at a time; where memory ends, on half as many, down to one.

    Raises MemoryError if not even one fits.
    """
    results: list[R] = []
    start = 0
    while start < len(rows):
        chunk = rows[start : start + most]
        if len(chunk) == 1:
            with memory_for("answer a single prompt", device):
                results.append(run(chunk))
        elif not _fits(run, chunk, results):
            most = len(chunk) // 2
            _log.warning("out of memory on %s: going on with %d prompts at a time", device, most)
            torch.cuda.empty_cache()
            continue
        start += most
    return results


def _fits(run: Callable[[Sequence[int]], R], rows: Sequence[int], results: list[R]) -> bool:
    """Runs and keeps the result; False where memory was too little, all of the failed try let go."""
    try:
        results.append(run(rows))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _instead(wanted: torch.dtype, used: torch.dtype, device: str) -> torch.dtype:
    _log.warning("%s cannot compute in %s: using %s", device, str(wanted)[6:], str(used)[6:])
    return used
