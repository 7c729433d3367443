"""What a command is, and what all of them share: the parser, one-line errors, JSON and tables on stdout."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from anymask.ops.tables import align

# Exit codes.
DONE, SOME_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """One command: its help, how its flags are added, and the function that runs it and gives the exit code."""

    description: str
    examples: tuple[str, ...]
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    notes: str = ""

    def parser(self, name: str) -> argparse.ArgumentParser:
        """The parser of `anymask NAME`, with the flags that every command has."""
        lines = ["examples:", *(f"  {example}" for example in self.examples)]
        parser = _Parser(
            prog=f"anymask {name}",
            description=self.description,
            epilog="\n".join([*([self.notes, ""] if self.notes else []), *lines]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_flags(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        parser.add_argument("--debug", action="store_true", help="on an error show where it was raised")
        return parser


def add_dtype_flag(group: argparse._ActionsContainer) -> None:
    """--dtype, for every command that loads a model."""
    kinds = "auto (what suits the device), float32, bfloat16 or float16 (default: float32, the same results everywhere)"
    choices = ("auto", "float32", "bfloat16", "float16", "int8")  # int8 is refused, with what to do
    group.add_argument("--dtype", default="float32", choices=choices, metavar="KIND", help=kinds)


def add_runtime_flag(group: argparse._ActionsContainer) -> None:
    """--runtime, for every command that loads a model to look at images."""
    kinds = "auto, eager or compile (PyTorch), openvino or onnxruntime (on a CPU): what computes (default: auto)"
    group.add_argument("--runtime", default="auto", metavar="NAME", help=kinds)


def add_size_flags(group: argparse._ActionsContainer) -> None:
    """--image-size and --window-size, for every command that encodes images."""
    image = "input of the encoder in pixels: a side (512) or height x width (768x1024); smaller is faster, and coarser"
    window = "windows of SAM's encoder in cells of 16 pixels (14 as trained)"
    group.add_argument("--image-size", metavar="SIZE", help=f"{image} (default: the model's own)")
    group.add_argument("--window-size", type=int, metavar="N", help=window)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: {message} (see {self.prog} --help)")
        raise SystemExit(WRONG_USE)


def say(line: str) -> None:
    """A line for the person at the terminal: stderr, so that stdout holds results alone."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def messages_shown(level: int) -> Iterator[None]:
    """What the library logs from `level` on, as lines for the person at the terminal, while a command runs."""
    logger, handler = logging.getLogger("anymask"), _Said()
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Said(logging.Handler):
    """A record of the library as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"anymask: {' '.join(record.getMessage().split())}")


def one_line(error: BaseException) -> str:
    """The message of an error in one line; the system's own errors say it as `what: which file`."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split()) or type(error).__name__


def show_json(value: object) -> None:
    """One JSON document on stdout, in standard JSON (no NaN)."""
    print(json.dumps(value, allow_nan=False))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the names of their columns; numbers to the right, floats with three digits."""
    columns = list(rows[0])
    lines = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    return align(lines, [any(isinstance(row[column], str) for row in rows) for column in columns])


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
