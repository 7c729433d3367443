"""Settings that are out of range, refused before any work; no PyTorch, as help reads settings, too."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def check_counts(settings: Any, names: Sequence[str]) -> None:
    """Raises ValueError for one of these settings that is below 1; None is left to be chosen."""
    for name in names:
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}")


def check_limits(settings: Any, limits: Mapping[str, float]) -> None:
    """Raises ValueError for one of these settings that is no number from 0 to its limit."""
    for name, most in limits.items():
        if not 0 <= getattr(settings, name) <= most:  # also false for NaN
            upto = f" and at most {most:g}" if np.isfinite(most) else ""
            raise ValueError(f"{name} must be at least 0{upto}, got {getattr(settings, name)}")
