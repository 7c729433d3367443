"""Files written whole or not at all, and JSON in and out.

A result appears under its name in one step (`os.replace`), so that a reader, an interruption or a full disk never meets
half a file.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it becomes `path` at the end of the block, or vanishes on any error.

    The temporary name is hidden and keeps the suffix. Missing parent folders are made. Every `OSError` is raised again
    with the path in its message and its `errno` kept.
    """
    target = Path(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise _named(error, target) from error
    finally:
        _remove(temporary)


@contextmanager
def write_whole_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """A hidden folder beside `target` to fill; it becomes `target` at the end, or vanishes on any error.

    Where `target` is there already, its files take the place of those in it, or with `replace` the folder that of all.
    """
    temporary, before = (target.with_name(f".{uuid.uuid4().hex}") for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.is_dir() and not replace:
            for file in temporary.iterdir():
                os.replace(file, target / file.name)
            return
        if target.is_dir():
            os.replace(target, before)
        os.replace(temporary, target)
        shutil.rmtree(before, ignore_errors=True)  # only now that the new is in its place
    except OSError as error:
        raise _named(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | os.PathLike[str], value: object, indent: int | None = None) -> None:
    """Standard JSON (no NaN), UTF-8; numpy scalars, arrays and paths become numbers, lists and strings."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=_plain)
    with write_whole(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="surrogatepass")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file; `ValueError` names a file that holds none."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from error


def _named(error: OSError, path: Path) -> OSError:
    """The same error, saying what could not be written. Pillow raises some without an `errno`."""
    message = f"cannot write {path}: {error.strerror or error}"
    return OSError(message) if error.errno is None else OSError(error.errno, message)


def _remove(temporary: Path) -> None:
    """Best effort: where the folder itself cannot be reached, there is nothing to remove."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON: pass numbers, strings, lists or dicts")
