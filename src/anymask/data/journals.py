"""A file that a long run writes row by row, so that it can go on where it was stopped: JSON lines.

The first line says which run it is of, each further one is a row. A last line that was cut short is left out.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymask.data.files import write_whole


@dataclass(frozen=True)
class Journal:
    """The file and what its rows depend on; it is made with the first row."""

    path: Path
    run: Mapping[str, str]

    def read(self) -> list[dict[str, Any]]:
        """The rows so far. Raises ValueError if they are of another run, and names what differs."""
        if not self.path.is_file():
            return []
        first, *rows = list(_lines(self.path)) or [{}]
        began = first.get("run")
        if not isinstance(began, dict):
            raise ValueError(f"{self.path} is no journal of a run: remove it, or give another -o")
        if differing := [name for name in {**began, **self.run} if began.get(name) != self.run.get(name)]:
            raise ValueError(
                f"{self.path} is of another run: {', '.join(differing)} changed; give what it began with, or another -o"
            )
        return rows

    def start(self) -> list[dict[str, Any]]:
        """The rows so far, in a file to which rows can be added."""
        rows = self.read()
        with write_whole(self.path) as temporary:
            temporary.write_text("".join(_line(row) for row in [{"run": dict(self.run)}, *rows]), encoding="utf-8")
        return rows

    def add(self, row: Mapping[str, Any]) -> None:
        """A further row, on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Up to the first that is none."""
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict):
            return
        yield row
