"""Where weights come from: a catalogue name, hub id, folder or file to the folder or file on this machine.

Looked at in this order: what the name itself points to, what `anymask models unpack` put here, the hub's cache. The hub
is asked only for what is in none of them. `HF_*` variables mean what they mean to huggingface_hub, which reads them;
it is imported when a hub id is looked up, never for pocket.
"""

import fnmatch
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from anymask.models.catalogue import RECOMMENDED, Entry, misspelt, named, nearest
from anymask.models.checkpoints import PICKLES, SUFFIXES, WEIGHTS, weights_of
from anymask.models.protocol import CheckpointError

BESIDE = ("*.json", "*.txt", "*.txt.gz", "LICENSE*", "NOTICE*", "README.md")  # configs, tokenizers, licences
TOKENIZER = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "*bpe*.txt.gz")
MANIFEST = "manifest.json"  # of a packed model, not of the model itself
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
SECONDS_BETWEEN_LINES = 5.0  # about a download
_ON = ("1", "on", "yes", "true")

_log = logging.getLogger("anymask")


class Located(NamedTuple):
    """A folder or file; `given` if it is the user's own path, which no entry of the catalogue says anything about."""

    path: Path
    entry: Entry | None
    given: bool


def locate(model: str | Path) -> Located:
    """The folder or file that holds the weights of `model`; fetched if they are nowhere here and the hub is allowed.

    Raises ValueError for an unknown name, FileNotFoundError for a path that is not there, CheckpointError for weights
    that cannot be had, with what to do.
    """
    name, path, entry = str(model), Path(model), named(str(model))
    if not name.strip():
        raise ValueError("the model must be a catalogue name, hub id, folder or file, got nothing (anymask models)")
    if path.exists() and not (entry and entry.name == name):
        return Located(path, None, given=True)
    found = find(name)
    if found is None and entry is not None and entry.path is not None:
        raise CheckpointError(
            f"the weights of {name} are missing at {entry.path}: install anymask again{_namesake(entry)}"
        )
    if found is None and entry is None and not may_be_hub_id(name):
        raise _unknown(name, path)
    return Located(found or fetch(entry.hub_id if entry else name, entry), entry, given=False)


def find(name: str) -> Path | None:
    """Where the weights of a catalogue name, hub id or unpacked model lie on this machine; the hub is not asked."""
    entry = named(name)
    if entry is not None and entry.path is not None:
        return entry.path if entry.path.is_file() else None
    hub_id, file = (entry.hub_id, entry.file) if entry else (name, "")
    for unpacked in (unpacked_folder(hub_id), unpacked_folder(name)):
        if unpacked is not None and unpacked.is_dir():
            return unpacked / file if (unpacked / file).is_file() else unpacked
    return _cached(hub_id, file) if _HUB_ID.fullmatch(hub_id) else None


def weights_at(path: Path) -> Path:
    """What to read at a path: a folder with config.json, or one file. Raises CheckpointError if there is neither."""
    if path.is_file():
        is_part = any(fnmatch.fnmatch(path.name, pattern) for pattern in (*WEIGHTS[:2], *PICKLES))
        return path.parent if is_part and (path.parent / "config.json").is_file() else path
    if (path / "pocket.safetensors").is_file():
        return path / "pocket.safetensors"
    if (path / "config.json").is_file() or (path / "anymask.json").is_file():  # of transformers, or exported
        return path
    if (lone := lone_checkpoint(path)) is not None:
        return lone
    raise CheckpointError(
        f"{path} is no folder of a model: it must hold config.json and model.safetensors (as transformers saves"
        " them), pocket.safetensors, or one original checkpoint"
    )


def unpacked_folder(name: str) -> Path | None:
    """Where a model of this name is unpacked (there or not); None if no model can have such a name."""
    if not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)?", name):
        return None
    return home() / "models" / name.replace("/", "--")


def home() -> Path:
    """The folder of what is unpacked: `ANYMASK_HOME`, else where the system keeps data of programs."""
    if given := os.environ.get("ANYMASK_HOME"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "anymask"
    fallback = Path.home() / ("AppData/Local" if sys.platform == "win32" else ".local/share")
    kept = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_DATA_HOME")
    return Path(kept or fallback) / "anymask"


def is_offline() -> bool:
    """Whether the hub may not be asked: `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` is set."""
    from huggingface_hub import constants

    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return constants.HF_HUB_OFFLINE or any(os.environ.get(name, "").lower() in _ON for name in names)


def download(hub_id: str, patterns: tuple[str, ...]) -> Path:
    """The folder of a hub id in the cache, with all files of these names; what is long is logged, nothing is drawn."""
    from huggingface_hub import snapshot_download

    bars = _logged_bars(hub_id)
    options: Any = {"allow_patterns": [*patterns], "ignore_patterns": ["*/*"], "tqdm_class": bars}
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return Path(snapshot_download(hub_id, **options))
    finally:
        logger.setLevel(before)


def lone_checkpoint(folder: Path) -> Path | None:
    """The only file of weights in a folder without config.json, if there is one and no more."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    return files[0] if len(files) == 1 else None


def _cached(hub_id: str, file: str) -> Path | None:
    """The folder, or the file, of a hub id in the hub's cache if it is whole."""
    from huggingface_hub import constants

    if not Path(constants.HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}").is_dir():
        return None  # before what is slow to import
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=[file or "config.json"]))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    if file:
        return folder / file if (folder / file).is_file() else None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    is_pocket = (folder / "pocket.safetensors").is_file()
    return is_pocket or ((folder / "config.json").is_file() and weights_of(folder) != [])


def fetch(hub_id: str, entry: Entry | None, instead: str = "") -> Path:
    """From the hub into its cache: only what is needed, safetensors before pickles.

    Raises CheckpointError that says what to do, and what there is `instead` if not another model.
    """
    if is_offline():
        raise _absent(hub_id, entry, "the hub is switched off (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)", instead)
    weights = (entry.file,) if entry and entry.file else WEIGHTS
    with _explained(hub_id, entry, instead):
        folder = download(hub_id, BESIDE)  # small: what is wrong is found before anything is announced
        _log.info("fetching %s%s", hub_id, f" ({entry.megabytes:g} MB)" if entry else "")
        for kind in (weights, PICKLES):
            folder = download(hub_id, kind)
            if entry and entry.file and (folder / entry.file).is_file():
                return folder / entry.file
            if _is_whole(folder):
                return folder
    raise CheckpointError(
        f"{hub_id} holds no config.json with model.safetensors or pytorch_model.bin: fetch the file of its weights"
        " yourself and give its path"
    )


@contextmanager
def _explained(hub_id: str, entry: Entry | None, instead: str) -> Iterator[None]:
    """Whatever goes wrong on the way to the hub as a CheckpointError that says what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    # HTTPError is that of the library the hub uses, which was httpx and is httpx2; hf_xet raises RuntimeError.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    network = (LocalEntryNotFoundError, http_error, ConnectionError, TimeoutError, RuntimeError)
    try:
        yield
    except GatedRepoError as error:
        raise _gated(hub_id, entry, instead) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no {hub_id}, or it is private (then set HF_TOKEN), and {_nor_here(hub_id)}:"
            f" {instead or nearest(hub_id)}"
        ) from error
    except network as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:120]
        why = f"the hub did not give it ({type(cause).__name__}: {reason})"
        raise _absent(hub_id, entry, why, instead) from error
    except ValueError as error:  # no JSON
        why = "what answered was not the hub (a network that wants a login first, or HF_ENDPOINT is wrong)"
        raise _absent(hub_id, entry, why, instead) from error


def _gated(hub_id: str, entry: Entry | None, instead: str) -> CheckpointError:
    free = instead or f"free of that are {RECOMMENDED} for points and boxes, and pocket for text"
    return CheckpointError(f"{hub_id} is gated: {_access(hub_id, entry)}{_original(entry)}; {free}{_namesake(entry)}")


def _absent(hub_id: str, entry: Entry | None, why: str, instead: str) -> CheckpointError:
    tar = f"{entry.name if entry else hub_id.rpartition('/')[2]}.tar"
    access = f"{_access(hub_id, entry)}, then " if entry and entry.gated else ""
    here = "" if entry else f"; {_nor_here(hub_id)}"
    meant = None if entry or instead else misspelt(hub_id)
    free = instead or "pocket works without (-m pocket)"
    return CheckpointError(
        f"{hub_id} is not on this machine and {why}: where there is a network {access}run `anymask models pack"
        f" {hub_id} -o {tar}`, bring the file here and run `anymask models unpack {tar}`{_original(entry)};"
        f" {free}{here}{f'; did you mean {meant}?' if meant else ''}{_namesake(entry)}"
    )


def _access(hub_id: str, entry: Entry | None) -> str:
    from huggingface_hub import constants

    licence = f"the {entry.licence}" if entry else "its licence"
    return f"accept {licence} on {constants.ENDPOINT}/{hub_id}, then set HF_TOKEN or run `hf auth login`"


def _original(entry: Entry | None) -> str:
    return f"; or give the original file that you have (-m {entry.name}.pt)" if entry and entry.gated else ""


def _nor_here(hub_id: str) -> str:
    return f"there is no folder or file {hub_id} either"


def _namesake(entry: Entry | None) -> str:
    """That a path of the user has the name of the catalogue, which comes first."""
    return f"; or -m ./{entry.name}, which is here" if entry and Path(entry.name).exists() else ""


def _unknown(name: str, path: Path) -> Exception:
    is_version = path.suffix[1:2].isdigit()  # in sam2.1-hiera-tiny
    if (path.suffix and not is_version) or len(path.parts) > 1:
        return FileNotFoundError(f"no such model file or folder: {path}")
    return ValueError(f"unknown model {name!r}: {nearest(name)}; or give a hub id, folder or file")


def may_be_hub_id(name: str) -> bool:
    """Whether to ask the hub: not for what looks like a file, nor for a name in a folder that is here."""
    is_file = Path(name).suffix.lower() in (*SUFFIXES, ".tar", ".onnx")
    return _HUB_ID.fullmatch(name) is not None and not is_file and not Path(name).parent.is_dir()


def _logged_bars(hub_id: str) -> type:
    """Bars for the hub that draw nothing and log how many bytes are there, a line now and then."""
    from tqdm import tqdm

    spoke = monotonic()

    class Logged(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.counts_bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            nonlocal spoke
            self.n += n or 0
            if self.counts_bytes and monotonic() - spoke >= SECONDS_BETWEEN_LINES:
                spoke = monotonic()
                _log.info("fetching %s: %d of %d MB", hub_id, self.n / 1e6, (self.total or 0) / 1e6)

    return Logged
