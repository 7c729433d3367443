"""A model as one file, to carry it to a machine without network: config, weights, tokenizer and licence in a plain tar.

The tar begins with `manifest.json`: the name to type, and the size and SHA-256 of every file. `unpack` believes nothing
else, and puts the folder where `load` looks for it, whole or not at all.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from anymask.data.files import write_whole
from anymask.models import sources
from anymask.models.catalogue import named
from anymask.models.checkpoints import weights_of
from anymask.models.protocol import CheckpointError

FORMAT = 1  # of the manifest
MOST_MANIFEST_BYTES = 1_000_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PackedFile:
    """A file of a packed model, all of which lie in one folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is in a packed model: `name` is what to give to `load` once it is unpacked."""

    name: str
    hub_id: str | None
    licence: str
    anymask: str
    files: tuple[PackedFile, ...]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)


def pack(model: str | Path, output: Path) -> Manifest:
    """Writes the files of a model (catalogue name, hub id, folder or file) into the tar `output`; says what went in.

    What is not here is fetched.
    """
    entry = named(str(model))
    if entry is not None and entry.path is not None:
        raise ValueError(f"{entry.name} ships with anymask: there is nothing to carry")
    path = sources.locate(model)
    files = _files(path)
    if output.resolve() in {file.resolve() for file in files}:
        raise ValueError(f"-o {output} would overwrite the model: give another name, such as {path.stem}.tar")
    given = Path(model).exists()  # a folder or file of the user, which has no name beyond this machine
    hub_id = None if given else entry.hub_id if entry else str(model)
    manifest = Manifest(
        name=hub_id or _own_name(path.resolve()),
        hub_id=hub_id,
        licence=entry.licence if entry and not given else "not known: ask where the weights came from",
        anymask=_version(),
        files=tuple(PackedFile(file.name, file.stat().st_size, _sha256(file)) for file in files),
    )
    with write_whole(output) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        _add_manifest(tar, manifest)
        for file in files:
            with file.open("rb") as content:  # of what a link points to, too: the hub's cache is made of links
                tar.addfile(_member(file.name, file.stat().st_size), content)
    return manifest


def unpack(tar_file: Path, folder: Path | None = None) -> tuple[Manifest, Path]:
    """Puts a packed model into `folder` (which must not be there yet), by default where `load` finds it by its name.

    Raises CheckpointError for a tar that `pack` did not write, that is not whole or was changed: then nothing is left.
    """
    if not tar_file.is_file():
        raise FileNotFoundError(f"no such file: {tar_file}")
    with _reading(tar_file), tarfile.open(tar_file, "r:") as tar:
        manifest = _read_manifest(tar, tar_file)
        target = folder or sources.unpacked_folder(manifest.name)
        if target is None:
            raise CheckpointError(f"{tar_file} names its model {manifest.name!r}, which is no name: refused")
        if _is_same(target, manifest):
            return manifest, target
        if target.exists():
            raise FileExistsError(f"{target} is there already and holds something else: remove it, or give another -o")
        with _whole_folder(target) as temporary:
            _extract(tar, manifest, temporary, tar_file)
            (temporary / sources.MANIFEST).write_text(_as_json(manifest), encoding="utf-8")
    return manifest, target


def _own_name(path: Path) -> str:
    """Of a folder or file of the user; run/pocket.safetensors is `run`, for pocket means the one that ships."""
    entry = named(path.stem)
    shadowed = entry is not None and entry.path is not None
    return path.name if path.is_dir() else path.parent.name if shadowed else path.stem


def _files(path: Path) -> list[Path]:
    """What makes the model: weights of one kind, and the configs, tokenizers and licences beside them."""
    folder = path if path.is_dir() else path.parent
    weights = [path] if path.is_file() else weights_of(path)
    if path.is_dir() and not weights:
        lone = sources.lone_checkpoint(path)
        if lone is None:
            raise CheckpointError(f"{path} is no folder of a model: it must hold model.safetensors, or one checkpoint")
        weights = [lone]
    patterns = sources.BESIDE if _is_model_folder(folder) else sources.TOKENIZER
    beside = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return [*sorted(beside - {*weights, folder / sources.MANIFEST}), *weights]


def _is_model_folder(folder: Path) -> bool:
    """Whether all that lies there belongs to one model, as it does not where files are downloaded to."""
    snapshot = folder.parent.name == "snapshots"
    return snapshot or any((folder / name).is_file() for name in ("config.json", sources.MANIFEST))


def _add_manifest(tar: tarfile.TarFile, manifest: Manifest) -> None:
    content = _as_json(manifest).encode()
    tar.addfile(_member(sources.MANIFEST, len(content)), io.BytesIO(content))


def _as_json(manifest: Manifest) -> str:
    return json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n"


def _member(name: str, size: int) -> tarfile.TarInfo:
    """The same bytes for the same files: no owner, no time."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


def _read_manifest(tar: tarfile.TarFile, path: Path) -> Manifest:
    first = tar.next()
    content = _content(tar, first) if first is not None and first.name == sources.MANIFEST else None
    if content is None:
        raise CheckpointError(f"{path} was not written by `anymask models pack`: its first file must be manifest.json")
    try:
        values: dict[str, Any] = json.loads(content.read(MOST_MANIFEST_BYTES))
        files = tuple(PackedFile(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in values["files"])
        rest = {key: str(values[key]) for key in ("name", "licence", "anymask")}
        manifest = Manifest(**rest, hub_id=values["hub_id"], files=files)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a broken manifest.json ({error}): pack the model again") from error
    if values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of format {values.get('format')}, this anymask reads {FORMAT}: update it")
    for file in files:
        if not _is_plain(file.name):
            raise CheckpointError(f"{path} names a file {file.name!r}, which is no plain file name: refused")
    return manifest


def _is_plain(name: str) -> bool:
    hidden = name.startswith(".") or name == sources.MANIFEST
    return bool(name) and not hidden and not set(name) & set('/\\:\0*?"<>|') and name.isprintable()


def _extract(tar: tarfile.TarFile, manifest: Manifest, folder: Path, path: Path) -> None:
    """Every file of the manifest and no other, each checked against its size and hash while it is written."""
    wanted = {file.name: file for file in manifest.files}
    while (member := tar.next()) is not None:
        file = wanted.pop(member.name, None)
        content = _content(tar, member)
        if file is None or content is None:
            raise CheckpointError(f"{path} holds {member.name!r}, which its manifest does not name as a file: refused")
        if member.size != file.bytes or _copied(content, folder / file.name) != file.sha256:
            raise CheckpointError(f"{path} is damaged: {file.name} is not what was packed, copy the file again")
    if wanted:
        raise CheckpointError(f"{path} is not whole: {', '.join(wanted)} missing, copy the file again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise CheckpointError(f"{path} is no whole tar of `anymask models pack` ({error}): copy it again") from error


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to fill; it becomes `target` at the end, or vanishes on any error."""
    temporary = target.with_name(f".{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_same(folder: Path, manifest: Manifest) -> bool:
    """Whether this model is unpacked there already."""
    kept = folder / sources.MANIFEST
    whole = all((folder / file.name).is_file() for file in manifest.files)
    return whole and kept.is_file() and kept.read_text(encoding="utf-8") == _as_json(manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> io.BufferedReader | None:
    """The bytes of a plain file; None for links, devices and folders."""
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    return tar.extractfile(member) if plain else None  # type: ignore[return-value]


def _copied(source: io.BufferedReader, target: Path) -> str:
    """Copies in blocks; the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with target.open("xb") as file:
        while block := source.read(_BLOCK):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _version() -> str:
    try:
        return metadata.version("anymask")
    except metadata.PackageNotFoundError:  # it runs from a folder
        return "unknown"
