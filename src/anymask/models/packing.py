"""A model as one file, to carry it to a machine without network: config, weights, tokenizer and licence in a plain tar.

The tar begins with `manifest.json`: the name to type, and the size and SHA-256 of every file. `unpack` believes nothing
else, and puts the folder where `load` looks for it, whole or not at all.
"""

import hashlib
import io
import json
import re
import shlex
import tarfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from anymask.data.files import sha256_of, write_whole, write_whole_folder
from anymask.models import sources
from anymask.models.catalogue import named
from anymask.models.checkpoints import whole_weights_of
from anymask.models.load import check
from anymask.models.protocol import CheckpointError

FORMAT = 1  # of the manifest
MOST_MANIFEST_BYTES = 1_000_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PackedFile:
    """A file of a packed model, all of which lie in one folder."""

    name: str
    size: int  # in bytes
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
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


def pack(model: str | Path, output: Path) -> Manifest:
    """Writes the files of a model (catalogue name, hub id, folder or file) into the tar `output`; says what went in.

    What is not here is fetched. Raises CheckpointError for what `load` would not take either.
    """
    found = sources.locate(model)
    if found.entry is not None and found.entry.path is not None:
        raise ValueError(f"{found.entry.name} ships with anymask: there is nothing to carry")
    path = sources.weights_at(found.path)
    check(path)
    files = _files(path)
    if output.resolve() in {file.resolve() for file in files}:
        instead = shlex.quote(f"{path.stem}.tar")
        raise ValueError(
            f"-o {shlex.quote(str(output))} would overwrite the model: give another name, such as {instead}"
        )
    packed = tuple(PackedFile(file.name, file.stat().st_size, sha256_of(file)) for file in files)
    hub_id, licence = _origin(model, found, packed)
    name = hub_id or _own_name(found.path if found.path.is_dir() else path)
    manifest = Manifest(name, hub_id, licence, _version(), packed)
    with write_whole(output) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        _add_manifest(tar, manifest)
        for file in files:
            with file.open("rb") as content:  # of what a link points to, too: the hub's cache is made of links
                tar.addfile(_member(file.name, file.stat().st_size), content)
    return manifest


def unpack(tar_file: Path, folder: Path | None = None) -> tuple[Manifest, Path]:
    """Puts a packed model into `folder`, by default where `load` finds it by its name.

    The folder must not be there yet, or hold this model, of which damaged files are then written again.
    Raises CheckpointError for a tar that `pack` did not write, that is not whole or was changed: then nothing is left.
    """
    if not tar_file.is_file():
        raise FileNotFoundError(f"no such file: {tar_file}")
    with _reading(tar_file), tarfile.open(tar_file, "r:") as tar:
        manifest = _read_manifest(tar, tar_file)
        target = folder or _place(manifest.name, tar_file)
        kept = _kept(target)
        if kept is not None and (kept.name, kept.files) == (manifest.name, manifest.files):
            if _is_whole(target, manifest):
                return manifest, target
        elif target.exists():
            raise FileExistsError(f"{target} is there already and holds something else: remove it, or give another -o")
        with write_whole_folder(target) as temporary:
            _extract(tar, manifest, temporary, tar_file)
            (temporary / sources.MANIFEST).write_text(_as_json(manifest), encoding="utf-8")
    return manifest, target


def _origin(model: str | Path, found: sources.Located, files: tuple[PackedFile, ...]) -> tuple[str | None, str]:
    """Hub id and licence, also of a model that was unpacked here and not changed since."""
    kept = _kept(found.path if found.path.is_dir() else found.path.parent)
    if kept is not None and set(kept.files) == set(files):
        return kept.hub_id, kept.licence
    if found.entry is not None:
        return found.entry.hub_id, found.entry.licence
    is_hub_id = not found.given and "/" in str(model)
    return str(model) if is_hub_id else None, "not known: ask where the weights came from"


def _own_name(path: Path) -> str:
    """Of a folder or file of the user, as `unpack` takes it; run/pocket.safetensors is `run`, pocket is what ships."""
    path = path.resolve()
    name = path.name if path.is_dir() else path.parent.name if _ships(path.stem) else path.stem
    plain = re.sub(r"[^\w.+-]+", "-", unicodedata.normalize("NFC", name)).lstrip(".+-") or "model"
    return f"my-{plain}" if _ships(plain) else plain


def _ships(name: str) -> bool:
    entry = named(name)
    return entry is not None and entry.path is not None


def _place(name: str, tar_file: Path) -> Path:
    """Where a model of this name is unpacked."""
    target = sources.unpacked_folder(name)
    if target is None:
        raise CheckpointError(f"{tar_file} names its model {name!r}, which is no name: refused")
    if _ships(name):
        raise CheckpointError(f"{tar_file} names its model {name!r}, as one that ships with anymask: give -o FOLDER")
    return target


def _files(path: Path) -> list[Path]:
    """What makes the model: weights of one kind, and the configs, tokenizers and licences beside them."""
    folder = path if path.is_dir() else path.parent
    weights = [path] if path.is_file() else whole_weights_of(path)
    patterns = sources.BESIDE if _is_model_folder(folder) else sources.TOKENIZER
    beside = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    of_others = {folder / sources.MANIFEST} | ({folder / "config.json"} if path.is_file() else set())
    return [*sorted(beside - {*weights, *of_others}), *weights]


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
    text = content.read(MOST_MANIFEST_BYTES)
    try:
        manifest = _parsed(text)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a broken manifest.json ({error}): pack the model again") from error
    if (found := json.loads(text).get("format")) != FORMAT:
        raise CheckpointError(f"{path} is of format {found}, this anymask reads {FORMAT}: update it")
    if not manifest.files:
        raise CheckpointError(f"{path} holds no files: refused")
    for file in manifest.files:
        if not _is_plain(file.name):
            raise CheckpointError(f"{path} names a file {file.name!r}, which is no plain file name: refused")
    return manifest


def _parsed(text: bytes) -> Manifest:
    values: dict[str, Any] = json.loads(text)
    files = tuple(PackedFile(str(f["name"]), int(f["size"]), str(f["sha256"])) for f in values["files"])
    rest = {key: str(values[key]) for key in ("name", "licence", "anymask")}
    hub_id = None if values["hub_id"] is None else str(values["hub_id"])
    return Manifest(**rest, hub_id=hub_id, files=files)


def _kept(folder: Path) -> Manifest | None:
    """The manifest of a folder that `unpack` made."""
    try:
        return _parsed((folder / sources.MANIFEST).read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
        if member.size != file.size or _copied(content, folder / file.name) != file.sha256:
            raise CheckpointError(f"{path} is damaged: {file.name} is not what was packed, copy the file again")
    if wanted:
        raise CheckpointError(f"{path} is not whole: {', '.join(wanted)} missing, copy the file again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise CheckpointError(f"{path} is no whole tar of `anymask models pack` ({error}): copy it again") from error


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether every file is there as it was packed."""
    places = [(folder / file.name, file) for file in manifest.files]
    return all(
        path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256 for path, file in places
    )


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
