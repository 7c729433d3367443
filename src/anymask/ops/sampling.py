"""Which items of a set to take when not all are wanted."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def stratified(groups: Sequence[str], limit: int | None, seed: int = 0) -> Int[np.ndarray, "m"]:
    """The indices of `limit` items (None: all), in order, drawn so that every group keeps its share.

    Every group gives one item first, the largest group before the others; what remains is shared in proportion. A
    larger limit draws the same items and more.
    """
    if limit is None or limit >= len(groups):
        return np.arange(len(groups))
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    rng = np.random.default_rng(seed)
    turn: dict[int, tuple[float, float]] = {}
    for group in sorted(set(groups)):
        members = rng.permutation([i for i, held in enumerate(groups) if held == group])
        for rank, i in enumerate(members.tolist()):
            turn[i] = (0.0, -len(members)) if rank == 0 else (1.0, (rank + 0.5) / len(members))
    return np.sort(np.asarray(sorted(turn, key=lambda i: turn[i])[:limit], np.int64))
