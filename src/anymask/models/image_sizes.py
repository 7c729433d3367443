"""The input size that a user asks for: read from text, and held to what a network can take.

How a network is fitted to it is said by its family (`PromptableModel.set_input_size`).
"""

from collections.abc import Sequence

from anymask.types import Size

SMALLEST, LARGEST = 64, 4096  # pixels


def read_size(given: int | str | Sequence[int]) -> Size:
    """(h, w) of a side (512 or "512"), of "768x1024" (height x width) or of (768, 1024). Raises ValueError."""
    parts = [str(side) for side in given] if isinstance(given, list | tuple) else str(given).lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() for part in parts):
        raise ValueError(f"image_size must be a side or height x width, as 512 or 768x1024, got {given!r}")
    return int(parts[0]), int(parts[-1])


def check_size(size: Size, multiple: int, name: str) -> None:
    """Raises ValueError, with the nearest size that works, if the network `name` cannot take this one."""
    nearest = (_nearest(size[0], multiple), _nearest(size[1], multiple))
    if size != nearest:
        raise ValueError(
            f"image_size for {name} must be in multiples of {multiple} from {SMALLEST} to {LARGEST} pixels,"
            f" got {shown(size)}: nearest is {shown(nearest)}"
        )


def shown(size: Size) -> str:
    """As `read_size` reads it."""
    h, w = size
    return str(h) if h == w else f"{h}x{w}"


def as_written(size: Size) -> int | Size:
    """As a config has it: one number for a square, which is all that transformers knows, else (h, w)."""
    return size[0] if size[0] == size[1] else size


def as_size(written: int | Sequence[int]) -> Size:
    """(h, w) of what a config, or its file, has."""
    return (written, written) if isinstance(written, int) else (written[0], written[1])


def _nearest(side: int, multiple: int) -> int:
    low, high = -(-SMALLEST // multiple), LARGEST // multiple
    return min(max(round(side / multiple), low), high) * multiple
