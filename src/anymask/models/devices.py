"""Devices and number formats: what is there, what to fall back to, and what to do when memory runs out.

Nothing here needs a compiled extension. Every fallback is a warning of the logger `anymask`, which the command shows.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

R = TypeVar("R")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

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
        raise ValueError(f"device must be one of auto, {', '.join(known)} here, got {device}")
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
    if wanted is None or wanted not in DTYPES.values():
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype}")
    if wanted == torch.bfloat16 and not brain:
        return _instead(wanted, torch.float16, device)
    if wanted == torch.float16 and kind == "cpu":
        return _instead(wanted, torch.float32, device)
    return wanted


def in_chunks(run: Callable[[Sequence[int]], R], rows: Sequence[int], most: int) -> list[R]:
    """`run` on at most `most` rows at a time; where a device runs out of memory, on half as many, down to one.

    Raises MemoryError if not even one fits.
    """
    results: list[R] = []
    start = 0
    while start < len(rows):
        try:
            results.append(run(rows[start : start + most]))
        except torch.OutOfMemoryError as error:
            if most == 1:
                raise MemoryError(
                    "the device has too little memory for a single prompt: close other programs, take a smaller model,"
                    " --dtype float16, or --device cpu"
                ) from error
            most = max(1, min(most, len(rows) - start) // 2)
            _log.warning("out of memory on the device: going on with %d prompts at a time", most)
            torch.cuda.empty_cache()
            continue
        start += most
    return results


def _instead(wanted: torch.dtype, used: torch.dtype, device: str) -> torch.dtype:
    _log.warning("%s cannot compute in %s: using %s", device, str(wanted)[6:], str(used)[6:])
    return used
