"""What `anymask train scorer` learns, as one JSON file: plain values, which `grounding/` turns into its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anymask.data.files import read_json, write_json

FORMAT = "anymask scorer 1"


@dataclass(frozen=True)
class FittedScorer:
    """Weights and thresholds that were fitted to labelled pictures.

    `quality` has a weight for each criterion (of sum 1) and `best_size` the shares of the image between which an object
    is of usual size (both as in `QualityWeights`); None where they could not be learned. `members` are weights by names
    as `parse_member` reads them; empty where there was no ensemble. `thresholds` are by model or detector, then by
    name; `of_all` are the best single ones by model or detector, for names that were not learned. `report` says from
    what they were learned and what they gain.
    """

    quality: Mapping[str, float] | None
    best_size: tuple[float, float] | None
    members: Mapping[str, float]
    thresholds: Mapping[str, Mapping[str, float]]
    of_all: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scorer(self) -> tuple[str, ...]:
        """The members with their weights, as `parse_member` and a command's --scorer take them."""
        return tuple(f"{name}={weight:g}" for name, weight in self.members.items())


def write_scorer(path: Path, fitted: FittedScorer) -> None:
    """Write the file, whole or not at all."""
    values = {
        "format": FORMAT,
        "quality": fitted.quality,
        "best_size": fitted.best_size,
        "members": fitted.members,
        "thresholds": fitted.thresholds,
        "of_all": fitted.of_all,
        "report": fitted.report,
    }
    write_json(path, values, indent=1)


def read_scorer(path: Path) -> FittedScorer:
    """A file that was written. Raises FileNotFoundError, or ValueError for a file that holds none."""
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format must be {FORMAT!r}, got {content['format']!r}")
        return FittedScorer(
            quality=None if content["quality"] is None else _numbers(content["quality"]),
            best_size=None if content["best_size"] is None else _pair(content["best_size"]),
            members=_numbers(content["members"]),
            thresholds={str(whose): _numbers(values) for whose, values in content["thresholds"].items()},
            of_all=_numbers(content["of_all"]),
            report=dict(content["report"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} must be a scorer.json of anymask train scorer: {reason}") from error


def _numbers(values: Any) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
