"""A model as one tar: what goes in comes out, and nothing else, whole or not at all."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anymask.models import sam3_keys, sources
from anymask.models.load import load
from anymask.models.packing import Manifest, pack, unpack
from anymask.models.protocol import CheckpointError

TINY = "facebook/sam2.1-hiera-tiny"
MODEL = {"config.json": b'{"model_type": "sam2"}', "LICENSE": b"free", "tokenizer.json": b"{}", "README.md": b"#"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ANYMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A transformers folder, with what else may lie there."""
    path = tmp_path / "mine"
    (path / "checkpoints").mkdir(parents=True)
    for name, content in {**MODEL, "training.pt": b"optimiser", ".hidden": b"x", "photo.jpg": b"x"}.items():
        (path / name).write_bytes(content)
    save_file({"a": torch.zeros(3)}, path / "model.safetensors")
    return path


def in_cache(tmp_path: Path, folder: Path) -> None:
    """The folder as a hub id in the hub's cache: links to blobs, as huggingface_hub keeps them."""
    repository = tmp_path / "hub" / f"models--{TINY.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    for name in ("blobs", "refs"):
        (repository / name).mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for i, path in enumerate(path for path in folder.iterdir() if path.is_file()):
        blob = path.rename(repository / "blobs" / str(i))
        (snapshot / path.name).symlink_to(blob)


def original(path: Path) -> None:
    """An original file, as far as it is recognised."""
    names = (sam3_keys.MARK, "transformer.decoder.presence_token.weight")
    torch.save(dict.fromkeys(names, torch.zeros(1)), path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def problem(tar: Path, folder: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        unpack(tar, folder)
    assert str(tar) in str(caught.value)
    return str(caught.value)


# --- there and back


def test_a_cached_model_comes_out_where_its_name_finds_it(tmp_path, folder, home, monkeypatch):
    weights = (folder / "model.safetensors").read_bytes()
    in_cache(tmp_path, folder)
    manifest = pack("sam2.1-hiera-tiny", tmp_path / "a.tar")
    assert (manifest.name, manifest.hub_id, manifest.licence) == (TINY, TINY, "Apache-2.0")
    assert {file.name for file in manifest.files} == {*MODEL, "model.safetensors"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another machine"))
    assert sources.find(TINY) is None
    again, place = unpack(tmp_path / "a.tar")
    assert again == manifest
    assert (
        place
        == home / "models" / "facebook--sam2.1-hiera-tiny"
        == sources.find(TINY)
        == sources.find("sam2.1-hiera-tiny")
    )
    found = contents(place)
    assert json.loads(found.pop("manifest.json"))["name"] == TINY
    assert found == {**MODEL, "model.safetensors": weights}


def test_a_folder_of_ones_own(tmp_path, folder, home):
    manifest = pack(folder, tmp_path / "a.tar")
    assert (manifest.name, manifest.hub_id) == ("mine", None)
    assert manifest.licence == "not known: ask where the weights came from"
    assert {file.name for file in manifest.files} == {*MODEL, "model.safetensors"}
    assert manifest.size == sum(file.size for file in manifest.files)
    _, place = unpack(tmp_path / "a.tar", tmp_path / "new" / "place")
    assert set(contents(place)) == {*MODEL, "model.safetensors", "manifest.json"}
    assert pack(place, tmp_path / "b.tar").files == manifest.files
    unpack(tmp_path / "a.tar")
    assert sources.locate("mine").path == home / "models" / "mine"


def test_an_original_file_takes_its_tokenizer_and_nothing_else(tmp_path, home):
    downloads = tmp_path / "Downloads"
    downloads.mkdir()
    original(downloads / "sam3.pt")
    for name in (
        "vocab.json",
        "merges.txt",
        "bpe_simple_vocab_16e6.txt.gz",
        "LICENSE",
        "letter.txt",
        "b.pt",
    ):
        (downloads / name).write_bytes(name.encode())
    manifest = pack(downloads / "sam3.pt", tmp_path / "a.tar")
    assert manifest.name == "sam3"
    wanted = {"sam3.pt", "vocab.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz"}
    assert {file.name for file in manifest.files} == wanted
    _, place = unpack(tmp_path / "a.tar")
    assert sources.lone_checkpoint(place) == place / "sam3.pt"
    assert sources.find("sam3") == place


def test_a_pocket_model_of_ones_own_is_not_called_pocket(tmp_path, tiny_pocket, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)  # where no folder is called run
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pocket.safetensors").write_bytes(tiny_pocket.read_bytes())
    assert pack(tmp_path / "run", tmp_path / "a.tar").name == "run"
    assert pack(tmp_path / "run" / "pocket.safetensors", tmp_path / "a.tar").name == "run"
    unpack(tmp_path / "a.tar")
    assert load("run").name == "run"


@pytest.mark.parametrize(
    ("named", "name"),
    [
        ("my größe modèl.bin", "my-größe-modèl"),
        ("mode\u0300l.pt", "mod\u00e8l"),
        ("-(a).pt", "a-"),
        ("!.pt", "model"),
        ("v1.2 final.pth", "v1.2-final"),
    ],
)
def test_any_file_name_makes_a_name_that_can_be_unpacked(named, name, tmp_path, home):
    original(tmp_path / named)
    assert pack(tmp_path / named, tmp_path / "a.tar").name == name
    assert unpack(tmp_path / "a.tar")[1] == sources.locate(name).path == home / "models" / name


def test_a_folder_in_the_way_is_not_what_a_catalogue_name_packs(tmp_path, folder, monkeypatch):
    in_cache(tmp_path, folder)
    (tmp_path / "work" / "sam2.1-hiera-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    manifest = pack("sam2.1-hiera-tiny", tmp_path / "a.tar")
    assert (manifest.name, manifest.hub_id, manifest.licence) == (TINY, TINY, "Apache-2.0")


def test_an_original_of_a_hub_folder_with_a_config_comes_out_as_it_was(tmp_path, home, monkeypatch):
    snapshot = tmp_path / "hub" / "models--dhkim2810--MobileSAM" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "README.md").write_text("#")
    original(snapshot / "mobile_sam.pt")
    pack("mobile-sam", tmp_path / "a.tar")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another machine"))
    _, place = unpack(tmp_path / "a.tar")
    assert sources.locate("mobile-sam").path == place / "mobile_sam.pt" == sources.weights_at(place)


def test_an_unpacked_model_keeps_its_origin_when_it_is_packed_again(tmp_path, folder, monkeypatch):
    in_cache(tmp_path, folder)
    first = pack("sam2.1-hiera-tiny", tmp_path / "a.tar")
    _, place = unpack(tmp_path / "a.tar", tmp_path / "there")
    assert pack(place, tmp_path / "b.tar") == first
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()
    save_file({"a": torch.ones(3)}, place / "model.safetensors")  # another model now
    manifest = pack(place, tmp_path / "b.tar")
    assert (manifest.name, manifest.hub_id, manifest.licence[:9]) == ("there", None, "not known")


def test_the_weights_of_a_folder_are_packed_as_the_folder(tmp_path, folder):
    assert pack(folder / "model.safetensors", tmp_path / "a.tar") == pack(folder, tmp_path / "b.tar")


def test_the_same_files_give_the_same_tar(tmp_path, folder):
    pack(folder, tmp_path / "a.tar")
    (folder / "config.json").touch()
    pack(folder, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_unpacking_twice_is_as_once(tmp_path, folder):
    pack(folder, tmp_path / "a.tar")
    assert unpack(tmp_path / "a.tar") == unpack(tmp_path / "a.tar")
    (folder / "config.json").write_text('{"model_type": "sam"}')
    pack(folder, tmp_path / "a.tar")
    with pytest.raises(FileExistsError, match=r"mine is there already and holds something else: remove it, or give"):
        unpack(tmp_path / "a.tar")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:9]), Path.unlink, flip_last])
def test_unpacking_again_repairs_what_was_damaged(damage, tmp_path, folder):
    pack(folder, tmp_path / "a.tar")
    _, place = unpack(tmp_path / "a.tar")
    (place / "notes.txt").write_text("mine")
    before = contents(place)
    damage(place / "model.safetensors")
    unpack(tmp_path / "a.tar")
    assert contents(place) == before
    assert {path.name for path in place.parent.iterdir()} == {"mine"}


# --- refusals of pack


def test_pocket_is_everywhere_already(tmp_path):
    with pytest.raises(ValueError, match="pocket ships with anymask: there is nothing to carry"):
        pack("pocket", tmp_path / "a.tar")


def test_a_tar_does_not_overwrite_its_model(tmp_path, folder):
    with pytest.raises(ValueError, match=r"config.json would overwrite the model: give another name, such as mine.tar"):
        pack(folder, folder / "config.json")


def test_a_folder_without_a_model_is_not_packed(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"is no folder of a model: it must hold config.json and model.safetensors"
    ):
        pack(tmp_path, tmp_path / "a.tar")


def test_what_load_would_not_take_is_not_packed(tmp_path, folder):
    def refused(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            pack(path, tmp_path / "a.tar")
        assert not (tmp_path / "a.tar").exists()
        return str(caught.value)

    assert "is no whole PyTorch file" in refused(cut(tmp_path / "a.pth", torch.save))
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    assert "photo.jpg is no whole PyTorch file" in refused(tmp_path / "photo.jpg")
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.pt")
    assert "resnet.pt is of another architecture" in refused(tmp_path / "resnet.pt")
    cut(folder / "model.safetensors", save_file)
    assert "is no whole safetensors file" in refused(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "must be of model_type sam, " in refused(folder)


def cut(path: Path, save) -> Path:
    save({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def test_what_is_not_here_is_not_packed_offline(tmp_path):
    with pytest.raises(CheckpointError, match="is not on this machine and the hub is switched off"):
        pack(TINY, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()


# --- refusals of unpack


def crafted(path: Path, *members: tuple[tarfile.TarInfo, bytes], manifest: object = None, **changes: object) -> Path:
    """A tar as `pack` writes it, with these members, and a manifest that names the plain files unless it is given."""
    files = [
        {"name": info.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for info, content in members
        if info.isreg()
    ]
    values = {"format": 1, "name": "mine", "hub_id": None, "licence": "", "anymask": "", "files": files, **changes}
    first = json.dumps(values if manifest is None else manifest).encode()
    with tarfile.open(path, "w") as tar:
        for info, content in ((tarfile.TarInfo("manifest.json"), first), *members):
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def link(name: str, to: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, b""


def plain(name: str = "config.json", content: bytes = b"{}") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


ONE = {"name": "config.json", "size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a/b", "..", ".ssh", "", "C:x", "a\\b", "manifest.json", "a\0"]
)
def test_no_file_leaves_its_folder(name, tmp_path, home):
    tar = crafted(tmp_path / "a.tar", plain(), files=[ONE, {**ONE, "name": name}])
    assert problem(tar).endswith(f"names a file {name!r}, which is no plain file name: refused")
    assert not home.exists()


@pytest.mark.parametrize("name", ["../x", "/x", "extra.txt", "config.json"])
def test_what_the_manifest_does_not_name_is_refused(name, tmp_path, home):
    tar = crafted(tmp_path / "a.tar", plain(), plain(name), files=[ONE])
    assert problem(tar).endswith(f"holds {name!r}, which its manifest does not name as a file: refused")
    assert not list((home / "models").iterdir())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind, tmp_path, home):
    tar = crafted(tmp_path / "a.tar", link("config.json", "/etc/passwd", kind), files=[ONE])
    assert problem(tar).endswith("holds 'config.json', which its manifest does not name as a file: refused")
    assert not list((home / "models").iterdir())


@pytest.mark.parametrize("name", ["../mine", "/mine", "a/b/c", "", "..", "a b"])
def test_the_name_of_a_model_is_no_path(name, tmp_path, home):
    tar = crafted(tmp_path / "a.tar", plain(), name=name)
    assert problem(tar).endswith(f"names its model {name!r}, which is no name: refused")
    assert not home.exists()


def test_the_name_of_what_ships_is_not_taken(tmp_path, home, monkeypatch, tiny_pocket):
    tar = crafted(tmp_path / "a.tar", plain(), name="pocket")
    assert problem(tar).endswith("names its model 'pocket', as one that ships with anymask: give -o FOLDER")
    assert not home.exists()
    assert unpack(tar, tmp_path / "there")[1] == tmp_path / "there"
    (tmp_path / "pocket").mkdir()
    (tmp_path / "pocket" / "pocket.safetensors").write_bytes(tiny_pocket.read_bytes())
    for path in (tmp_path / "pocket", tmp_path / "pocket" / "pocket.safetensors"):
        assert pack(path, tmp_path / "b.tar").name == "my-pocket"


def test_a_tar_without_files_is_refused(tmp_path, home):
    assert problem(crafted(tmp_path / "a.tar")).endswith("a.tar holds no files: refused")
    assert not home.exists()


@pytest.mark.parametrize("change", [{"size": 3}, {"sha256": "0" * 64}])
def test_a_changed_file_is_seen(change, tmp_path, home):
    tar = crafted(tmp_path / "a.tar", plain(), files=[{**ONE, **change}])
    assert problem(tar).endswith("is damaged: config.json is not what was packed, copy the file again")
    assert not list((home / "models").iterdir())


def test_a_missing_file_is_seen(tmp_path, home):
    tar = crafted(tmp_path / "a.tar", plain(), files=[ONE, {**ONE, "name": "model.safetensors"}])
    assert problem(tar).endswith("is not whole: model.safetensors missing, copy the file again")
    assert not list((home / "models").iterdir())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.7])
def test_half_a_tar_leaves_nothing(share, tmp_path, folder, home):
    save_file({"a": torch.zeros(30000)}, folder / "model.safetensors")
    tar = tmp_path / "a.tar"
    pack(folder, tar)
    tar.write_bytes(tar.read_bytes()[: int(share * tar.stat().st_size)])
    told = problem(tar)
    assert "is no whole tar" in told or "not whole" in told or "damaged" in told or "broken manifest" in told
    assert not home.exists() or not list((home / "models").iterdir())


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ("text", "has a broken manifest.json"),
        ({"files": []}, "has a broken manifest.json ('name'): pack the model again"),
        ({"files": [{}]}, "has a broken manifest.json ('name')"),
    ],
)
def test_a_broken_manifest(manifest, told, tmp_path):
    assert told in problem(crafted(tmp_path / "a.tar", plain(), manifest=manifest))


def test_another_format(tmp_path):
    assert problem(crafted(tmp_path / "a.tar", plain(), format=2)).endswith(
        "is of format 2, this anymask reads 1: update it"
    )


def test_another_tar_and_another_file(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("photo.jpg"))
    assert problem(tmp_path / "a.tar").endswith("pack`: its first file must be manifest.json")
    (tmp_path / "b.tar").write_bytes(b"no tar " * 1000)
    assert "is no whole tar of `anymask models pack`" in problem(tmp_path / "b.tar")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*c\.tar"):
        unpack(tmp_path / "c.tar")


def test_a_folder_that_is_there_stays(tmp_path, folder):
    pack(folder, tmp_path / "a.tar")
    before = contents_of_files(folder)
    with pytest.raises(FileExistsError, match="is there already and holds something else"):
        unpack(tmp_path / "a.tar", folder)
    assert contents_of_files(folder) == before


def test_a_place_that_cannot_be_written(tmp_path, folder):
    pack(folder, tmp_path / "a.tar")
    with pytest.raises(OSError, match=r"cannot write .*a\.tar/model: "):
        unpack(tmp_path / "a.tar", tmp_path / "a.tar" / "model")


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_interrupted_unpacking_leaves_nothing(tmp_path, folder, home, monkeypatch):
    pack(folder, tmp_path / "a.tar")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("anymask.models.packing._copied", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a.tar")
    assert not list((home / "models").iterdir())


def test_a_manifest_is_plain_data(tmp_path, folder):
    manifest = pack(folder, tmp_path / "a.tar")
    assert isinstance(manifest, Manifest)
    with tarfile.open(tmp_path / "a.tar") as tar:
        written = json.loads(tar.extractfile("manifest.json").read())
        names = tar.getnames()
    assert names == ["manifest.json", *(file.name for file in manifest.files)]
    assert names[-1] == "model.safetensors"
    assert written["files"][0] == {
        "name": "LICENSE",
        "size": 4,
        "sha256": hashlib.sha256(b"free").hexdigest(),
    }
    assert written["anymask"]
