"""`anymask teach concept` and what its concept is good for, as a user writes it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from anymask.adapting.inversion import Inversion
from anymask.cli.main import main
from anymask.data.concepts import read_concept, save_concept
from anymask.types import Concept
from standin import write_disks

SMALL = ("--steps", "6", "--validate-every", "3", "--model", "pocket")


@pytest.fixture
def here(tmp_path, monkeypatch, pocket) -> Path:
    """The current folder: IMAGES, MASKS, and one pair a.jpg, a.png; pocket is the tiny one."""
    monkeypatch.chdir(tmp_path)
    images, masks = write_disks(tmp_path / "disks", 5)
    images.rename("IMAGES")
    masks.rename("MASKS")
    with PillowImage.open("IMAGES/00.png") as picture:
        picture.save("a.jpg")
    Path("a.png").write_bytes(Path("MASKS/00.png").read_bytes())
    return tmp_path


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_one_image_is_learned_and_the_concept_used(here, capsys):
    words = ["teach", "concept", "--image", "a.jpg", "--mask", "a.png", "--seed-text", "red disk", *SMALL, "-o", "run/"]
    code, out, err = run(capsys, *words)
    assert code == 0 and "IoU on the images learned from: " in out
    assert "anymask segment photo.jpg --concept run/concept.safetensors" in out
    assert "2 vectors of 16 numbers learn from 'red disk' on; all weights of pocket rest" in err
    assert {path.name for path in Path("run").iterdir()} >= {
        "concept.safetensors", "history.json", "nearest_tokens.txt", "final_comparison.png", "curves.png",
        "settings.json",
    }  # fmt: skip
    assert json.loads(Path("run/settings.json").read_text())["seed_text"] == "red disk"
    use = ["segment", "a.jpg", "--concept", "run/concept.safetensors", "--model", "pocket", "-o", "out/", "--json"]
    code, out, err = run(capsys, *use)
    assert code == 0, err
    assert json.loads(out)[0]["made_by"]
    amid = ["segment", "a.jpg", "--concept", "run/concept.safetensors", "--text", "a <red disk> on the left", "--json"]
    [row] = json.loads(run(capsys, *amid)[1])
    found = [one["label"] for one in row["masks"]] + list(row["made_by"].get("missing", ()))
    assert set(found) == {"a red disk on the left"}


def test_a_class_is_learned_goes_on_and_is_not_overwritten(here, capsys):
    words = [
        "teach",
        "concept",
        "--images",
        "IMAGES",
        "--masks",
        "MASKS",
        "--seed-text",
        "disk",
        *SMALL,
        "--batch-size",
    ]
    code, out, _ = run(capsys, *words, "2", "-o", "run/", "--resume", "--json")
    found = json.loads(out)
    assert code == 0 and (found["step"], found["images"], found["held_out"]) == (6, 4, 1)
    assert found["concept"] == "run/concept.safetensors" and found["iou"] >= found["iou_before"]
    before = read_concept("run/concept.safetensors")
    code, _, err = run(capsys, *words, "2", "-o", "run/")
    assert code == 2 and "run/checkpoint.pt is of an earlier run: add --resume to go on with it" in err
    code, out, _ = run(capsys, *words, "2", "-o", "run/", "--resume", "--json")
    again = read_concept("run/concept.safetensors")
    assert code == 0 and np.array_equal(again.token_embeddings, before.token_embeddings)
    assert (again.made_by, again.quality) == (before.made_by, before.quality)
    code, _, err = run(capsys, *words, "3", "-o", "run/", "--resume")
    assert code == 2 and "is of another run: batch_size changed" in err


def test_files_that_do_not_match_are_listed_and_bad_ones_named(here, capsys):
    Path("MASKS/00.png").rename("MASKS/stranger.png")
    PillowImage.fromarray(np.full((48, 64), 255, np.uint8)).save("MASKS/01.png")
    words = ["teach", "concept", "--images", "IMAGES", "--masks", "MASKS", "--seed-text", "disk", *SMALL, "-o", "run/"]
    code, out, err = run(capsys, *words, "--json")
    found = json.loads(out)
    assert code == 1 and found["without_a_mask"] == ["00.png"] and found["without_an_image"] == ["stranger.png"]
    assert "its mask is all white" in found["failed"]["01.png"] and found["images"] + found["held_out"] == 3
    code, _, err = run(capsys, "teach", "concept", "--image", "a.jpg", "--mask", "MASKS/01.png", *SMALL, "-o", "other")
    assert code == 2 and "MASKS/01.png is all white" in err and not Path("other").exists()


def test_a_loss_that_is_not_finite_is_exit_code_1(here, capsys, monkeypatch):
    monkeypatch.setattr(Inversion, "_away", lambda self: self.vectors.sum() * float("nan"))
    words = ["teach", "concept", "--image", "a.jpg", "--mask", "a.png", "--seed-text", "disk", *SMALL, "-o", "run/"]
    code, out, err = run(capsys, *words, "--norm-weight", "1", "--json")
    assert code == 1 and "stopped at step 1, as the loss was not finite" in err
    assert json.loads(out)["step"] == 0 and np.isfinite(read_concept("run/concept.safetensors").token_embeddings).all()


def test_an_interrupted_run_says_how_to_go_on(here, capsys, monkeypatch):
    real = Inversion._step

    def interrupted(self):
        if self.standing.step == 4:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Inversion, "_step", interrupted)
    words = ["teach", "concept", "--image", "a.jpg", "--mask", "a.png", "--seed-text", "disk", *SMALL, "-o", "run/"]
    code, out, err = run(capsys, *words)
    assert (code, out) == (130, "")
    assert "interrupted at step 4, the last saved is 3: run/checkpoint.pt is kept; run the same command with" in err
    monkeypatch.undo()
    assert not Path("run/concept.safetensors").exists()


def test_a_dry_run_learns_nothing(here, capsys):
    words = ["teach", "concept", "--image", "a.jpg", "--mask", "a.png", "--model", "facebook/sam3", "--dry-run"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "facebook/sam3 on " in out and "its weights take 3,440 MB" in out and "a step: " in out and "memory: " in out
    found = json.loads(run(capsys, *words, "--json")[1])
    assert found["weights_mb"] == 3440 and found["images"] == 1 and not Path("run").exists()


def test_concepts_that_would_not_do_are_refused(here, capsys):
    save_concept(Concept("far", "facebook/sam3", np.zeros((1, 1024), np.float32)), "far.safetensors")
    save_concept(Concept("odd", "pocket", np.zeros((1, 16), np.float32), base_digest="0"), "odd.safetensors")
    save_concept(Concept("dog", "pocket", thresholds={"dino": 0.2}), "dog.safetensors")
    for words, message in (
        (
            ["--concept", "far.safetensors"],
            "'far' was made for facebook/sam3 with vectors of 1024, but those of pocket",
        ),
        (["--concept", "odd.safetensors"], "'odd' was made for pocket with other weights than those of pocket"),
        (
            ["--concept", "dog.safetensors"],
            "holds thresholds for dino alone, so that it would change nothing for pocket",
        ),
        (["--text", "a <cat>"], "the text 'a <cat>' speaks of <cat>: give the concept of that name with it"),
        (
            ["--concept", "far.safetensors", "--detector", "windows"],
            "holds vectors that facebook/sam3 reads: a detector",
        ),
    ):
        code, _, err = run(capsys, "segment", "a.jpg", *words, "-o", "out/")
        assert code == 2 and message in err, err
