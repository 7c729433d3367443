"""`anymask models`, `pack` and `unpack`, and the lines a user sees when weights cannot be had."""

import json
import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file

import anymask
from anymask.cli.commands import messages_shown
from anymask.cli.main import main
from anymask.grounding import detect
from anymask.models.catalogue import CATALOGUE
from anymask.models.load import FAMILIES
from anymask.types import Image
from tiny import tiny_model

TINY = "facebook/sam2.1-hiera-tiny"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a photo, an empty hub cache, an empty home, and no network."""
    monkeypatch.setenv("ANYMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    anymask.write_image(tmp_path / "photo.png", Image(pixels))
    return tmp_path


@pytest.fixture
def packed(place) -> Path:
    """A transformers folder of random numbers."""
    folder = place / "mine"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "sam"}')
    return folder


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def refused(capsys, *words: str) -> str:
    """The one line of a command that could do nothing."""
    code, out, err = run(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err.rstrip("\n")


# --- the list


def test_every_model_is_listed_with_what_it_can_and_costs(pocket, place, capsys):
    for hub_id in ("facebook--sam-vit-base", "IDEA-Research--grounding-dino-tiny"):
        (place / "home" / "models" / hub_id).mkdir(parents=True)
    code, out, err = run(capsys, "models", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert [name for name, row in rows.items() if row["kind"] == "model"] == list(CATALOGUE)
    detectors = {name: row for name, row in rows.items() if row["kind"] == "detector"}
    assert [*CATALOGUE, *detectors] == list(rows) and list(detectors) == list(detect.CATALOGUE)
    assert {row["family"] for row in detectors.values()} == set(detect.FAMILIES)
    assert rows["owlv2-base"]["hub_id"] == "google/owlv2-base-patch16-ensemble"
    assert [name for name, row in rows.items() if row["installed"]] == [
        *("pocket", "sam-vit-base", "grounding-dino-tiny")
    ]
    assert [name for name, row in rows.items() if row["gated"]] == ["sam3"]
    assert [name for name, row in rows.items() if row["recommended"]] == ["sam2.1-hiera-base-plus"]
    assert rows["sam3"]["licence"] == "SAM License"
    assert "text" in rows["sam3"]["prompts"]
    assert "text" not in rows["sam-vit-base"]["prompts"]
    for row in rows.values():
        assert row["kind"] == "detector" or {"negative points"} <= set(row["notes"])
        assert row["parameters_millions"] > 0
        assert row["megabytes"] > 0


def test_the_table_and_the_notes_of_families(pocket, capsys):
    code, out, err = run(capsys, "models")
    table, *families, detectors = out.split("\n\n")
    assert (code, err) == (0, "")
    assert table.splitlines()[0].split() == [
        *("model", "family", "million", "MB", "installed", "gated", "hub", "id", "licence", "of", "the", "weights")
    ]
    assert len(table.splitlines()) == 1 + len(CATALOGUE)
    assert [family.split(":")[0] for family in families] == list(dict.fromkeys(e.family for e in CATALOGUE.values()))
    assert detectors.splitlines()[0].split() == ["detector", "million", "installed", "hub", "id", "note"]
    assert [line.split()[0] for line in detectors.splitlines()[1:]] == list(detect.CATALOGUE)
    assert all("negative points: " in family for family in families)
    assert "\n  sam-vit-base, sam-vit-large, sam-vit-huge: the first Segment Anything" in out


def test_a_misspelt_subcommand_gets_the_nearest(capsys):
    assert refused(capsys, "models", "pck") == (
        "anymask models: unknown command 'pck': did you mean pack? (see anymask models --help)"
    )
    assert refused(capsys, "models", "xyz").endswith(
        "the commands are pack, unpack, verify (see anymask models --help)"
    )


# --- pack and unpack


def test_pack_and_unpack_say_what_to_type_next(packed, place, capsys):
    code, out, err = run(capsys, "models", "pack", "mine", "-o", "a.tar")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "a.tar: mine, 2 files, 0.0 MB; licence of the weights: not known: ask where the weights came from",
        "on the other machine: anymask models unpack a.tar",
    ]
    packed.rename(place / "away")
    code, out, err = run(capsys, "models", "unpack", "a.tar")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(f"mine is whole, in {place / 'home' / 'models' / 'mine'}; licence")
    assert out.splitlines()[1] == "use it: anymask segment photo.jpg --box 40,30,600,410 -m mine -o out/"
    code, out, err = run(capsys, "models", "unpack", "a.tar", "-o", "here", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["folder"], found["model"], found["files"]) == ("here", "here", ["config.json", "model.safetensors"])


def test_what_to_type_next_is_quoted(packed, place, capsys):
    _, out, _ = run(capsys, "models", "pack", "mine", "-o", "my model.tar")
    assert out.endswith("on the other machine: anymask models unpack 'my model.tar'\n")
    _, out, _ = run(capsys, "models", "unpack", "my model.tar", "-o", "my place")
    assert out.endswith(" -m 'my place' -o out/\n")


def test_pack_in_json(packed, capsys):
    code, out, err = run(capsys, "models", "pack", "mine", "-o", "a.tar", "--json")
    found = json.loads(out)
    assert (code, err, found["name"], found["file"]) == (0, "", "mine", "a.tar")
    assert found["bytes"] == sum(Path("mine", name).stat().st_size for name in found["files"])


def test_what_pack_and_unpack_refuse(packed, place, capsys):
    assert refused(capsys, "models", "pack", "mine", "-o", ".").startswith("anymask models pack: -o must be the name")
    assert refused(capsys, "models", "pack", TINY, "-o", "a.tar").startswith(
        f"anymask models pack: {TINY} is not on this"
    )
    assert refused(capsys, "models", "pack", "a/b.pt", "-o", "a.tar").endswith("no such model file or folder: a/b.pt")
    assert refused(capsys, "models", "unpack", "a.tar") == "anymask models unpack: no such file: a.tar"
    (place / "a.tar").write_bytes(b"noise " * 500)
    assert "a.tar is no whole tar of `anymask models pack`" in refused(capsys, "models", "unpack", "a.tar")
    assert not (place / "home").exists()


# --- errors of commands that load a model


def segment(capsys, model: str) -> str:
    line = refused(capsys, "segment", "photo.png", "--box", "4,3,60,41", "--model", model, "-o", "out/")
    return line.removeprefix("anymask segment: ")


def test_a_hub_id_while_offline(capsys):
    assert segment(capsys, TINY).startswith(
        f"{TINY} is not on this machine and the hub is switched off (HF_HUB_OFFLINE"
    )


def test_a_missing_file(capsys):
    assert segment(capsys, "sam_vit_b_01ec64.pth") == "no such model file or folder: sam_vit_b_01ec64.pth"


def test_no_model(capsys):
    assert segment(capsys, "").startswith("the model must be a catalogue name, hub id, folder or file, got nothing")


def test_another_architecture(capsys):
    torch.save({"conv1.weight": torch.ones(1)}, "resnet.pt")
    assert segment(capsys, "resnet.pt").startswith("resnet.pt is of another architecture, with nothing in common: it")


def test_a_gated_model(capsys, monkeypatch):
    import huggingface_hub

    http = sys.modules[GatedRepoError.__mro__[3].__module__.partition(".")[0]]
    error = GatedRepoError("403", response=http.Response(403, request=http.Request("GET", "http://localhost")))
    real = huggingface_hub.snapshot_download

    def gated(hub_id: str, **options: object) -> str:
        if options.get("local_files_only"):
            return real(hub_id, **options)
        raise error

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", gated)
    assert segment(capsys, "sam3").startswith("facebook/sam3 is gated: accept the SAM License on ")


def test_a_dtype_and_a_device_that_are_none(capsys):
    words = ["segment", "photo.png", "--point", "1,1"]
    assert "argument --dtype: invalid choice: 'half'" in refused(capsys, *words, "--dtype", "half")
    assert "device must be one of auto, " in refused(capsys, *words, "--device", "tpu")


# --- what the library logs


@pytest.fixture
def loud_family(monkeypatch, packed):
    """A family that logs while it loads, and remembers the number format it was asked for."""
    module = types.ModuleType("loud")
    module.asked = []

    class Loud:
        @classmethod
        def from_folder(cls, folder, device, dtype, name):
            module.asked.append(dtype)
            logging.getLogger("anymask").info("fetching\nsomething")
            logging.getLogger("anymask").warning("attention falls back")
            return tiny_model()

    module.Loud = Loud
    monkeypatch.setitem(sys.modules, "loud", module)
    monkeypatch.setitem(FAMILIES, "sam", ("loud:Loud", FAMILIES["sam"][1]))
    return module


def test_fallbacks_are_lines_on_stderr(loud_family, capsys):
    words = ["segment", "photo.png", "--point", "9,9", "-m", "mine"]
    code, out, err = run(capsys, *words)
    assert code == 0
    assert err == "anymask: fetching something\nanymask: attention falls back\n"
    assert "1 mask" in out
    code, out, err = run(capsys, *words, "--json", "--dtype", "bfloat16")
    assert (code, err) == (0, "anymask: attention falls back\n")
    assert len(json.loads(out)) == 1
    assert loud_family.asked == [torch.float32, torch.bfloat16]


def test_the_library_alone_shows_nothing(loud_family, capsys):
    anymask.load("mine")
    assert capsys.readouterr().err == ""


def test_the_logger_is_left_as_it_was():
    logger = logging.getLogger("anymask")
    before = (logger.level, list(logger.handlers))
    with pytest.raises(ValueError, match="x"), messages_shown(logging.INFO):
        assert logger.isEnabledFor(logging.INFO)
        raise ValueError("x")
    assert (logger.level, list(logger.handlers)) == before


def test_evaluate_takes_a_dtype(place, capsys):
    words = ["--images", ".", "--annotations", "none.json", "--dtype", "half"]
    assert "dtype must be auto, float32, bfloat16, float16, got half" in refused(
        capsys, "evaluate", "promptable", *words
    )
