"""Progress on stderr: a bar at a terminal, else a plain line now and then, so that a log stays short."""

import sys
from time import monotonic
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
# tqdm's own, but for a number done that may be 1.25 images.
_BAR = "{l_bar}{bar}| {n:.6g}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress:
    """Shows how far a run is; use it in a `with` block, which clears the bar at its end."""

    def __init__(self, unit: str) -> None:
        self.unit, self.done, self.total = unit, 0.0, 0
        self._bar: tqdm[None] | None = None
        self._spoke = monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: float, total: int, text: str = "") -> None:
        """`done` of `total` units are finished; a part of one counts."""
        self.done, self.total = round(done, 2), total
        if sys.stderr.isatty():
            self._draw(text)
        elif monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = monotonic()
            self.say(f"{self.done:.6g}/{total} {self.unit}  {text}".rstrip())

    def say(self, line: str) -> None:
        """A line above the bar."""
        tqdm.write(line, file=sys.stderr)

    def _draw(self, text: str) -> None:
        if self._bar is None or self._bar.total != self.total:
            options = {"unit": self.unit, "bar_format": _BAR, "dynamic_ncols": True, "leave": False}
            self._bar = tqdm(total=self.total, initial=self.done, **options)
        self._bar.update(self.done - self._bar.n)
        self._bar.set_postfix_str(text)

    def print(self, text: str) -> None:
        """A result on stdout, clear of the bar."""
        tqdm.write(text, file=sys.stdout)
