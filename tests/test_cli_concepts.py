"""`anymask teach words` and `teach inspect`, as a user types them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PillowImage

from anymask.cli.commands import DONE, INTERRUPTED, SOME_FAILED, one_line
from anymask.cli.teach_concepts import INSPECT, WORDS
from anymask.data.concepts import save_concept
from anymask.models.load import load
from anymask.models.word_space import word_space_of
from standin import write_disks
from word_galleries import concept_of


@pytest.fixture
def folder(tmp_path, pocket):
    """Images with masks, and two concepts of the model that is loaded."""
    write_disks(tmp_path, 3)
    space = word_space_of(load("pocket"))
    for words, name in (("red fox", "a"), ("blue whale here", "b")):
        save_concept(concept_of(space, words, name), tmp_path / f"{name}.safetensors")
    (tmp_path / "names.txt").write_text("polyp\n\n  red   car \n")
    (tmp_path / "list.txt").write_text("00\n01\n")
    (tmp_path / "held.txt").write_text("02\n")
    return tmp_path


def run(command, words, folder, monkeypatch) -> int:
    monkeypatch.chdir(folder)
    return command.run(command.parser("teach x").parse_intermixed_args(words.split()))


CLASS = "a.safetensors --images images --masks masks --most-judged 5 --most-words 2"
ONE = "a.safetensors --image images/00.png --mask masks/00.png --most-judged 4"


def test_words_of_a_class(folder, monkeypatch, capsys):
    assert (
        run(WORDS, f"{CLASS} --phrases names.txt --list list.txt --val-list held.txt --json", folder, monkeypatch)
        == DONE
    )
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 2 and found["held_out"]["images"] == 1
    assert found["iou"] == found["tried"][0]["iou"] and found["phrase"] == found["tried"][0]["phrase"]
    near = [one["words"] for one in found["nearest_phrases"]]
    assert sorted(near) == ["a", "polyp", "red car"]  # the concept's own name is tried too
    assert set(near[:2]) < {one["phrase"] for one in found["tried"]} and len(found["tried"]) == 5
    assert [row[0]["words"] for row in found["nearest_words"]] == ["red", "fox"] and found["failed"] == {}


def test_words_of_one_image(folder, monkeypatch, capsys):
    assert run(WORDS, ONE, folder, monkeypatch) == DONE
    out = capsys.readouterr().out
    assert "vector 1 is nearest to red 1.00" in out and "vector 2 is nearest to fox 1.00" in out
    assert "on 1 image, 4 phrases judged" in out and "held out" not in out and "all of it is nearest to a " in out


def test_held_out_images_and_phrases_are_told(folder, monkeypatch, capsys):
    assert run(WORDS, f"{CLASS} --phrases names.txt --val-list held.txt", folder, monkeypatch) == DONE
    out = capsys.readouterr().out
    assert "held out: the words" in out and "on 2 images, 5 phrases judged" in out and "red car" in out


def test_a_broken_mask_is_named_and_the_rest_is_done(folder, monkeypatch, capsys):
    (folder / "masks" / "01.png").write_bytes(b"no picture")
    assert run(WORDS, f"{CLASS} --json", folder, monkeypatch) == SOME_FAILED
    shown = capsys.readouterr()
    assert list(json.loads(shown.out)["failed"]) == ["01.png"] and "01.png" in shown.err


def test_an_interrupted_search_says_how_far_it_came(folder, monkeypatch, capsys):
    from anymask.adapting import wording

    def stops(gallery, vectors, search, phrases, heard):
        heard(3, wording.Tried("fox", 0.5))
        raise KeyboardInterrupt

    monkeypatch.setattr(wording, "search_words", stops)
    assert run(WORDS, CLASS, folder, monkeypatch) == INTERRUPTED
    assert "interrupted after 3 phrases" in capsys.readouterr().err


def test_inspect_two_concepts(folder, monkeypatch, capsys):
    words = "a.safetensors b.safetensors --image images/00.png --mask masks/00.png -o out --json"
    assert run(INSPECT, words, folder, monkeypatch) == DONE
    found = json.loads(capsys.readouterr().out)
    assert [row["concept"] for row in found["sensitivity"]] == ["a", "b"] and len(found["interpolation"]) == 6
    assert all((folder / path).is_file() for path in found["files"]) and len(found["files"]) == 6


def test_inspect_one_concept_without_a_mask(folder, monkeypatch, capsys):
    assert run(INSPECT, "a.safetensors --image images/00.png -o out", folder, monkeypatch) == DONE
    out = capsys.readouterr().out
    assert "a: agreement 1.000" in out and "fox" in out and "wrote out/sensitivity.png" in out


def blank(folder, value):
    PillowImage.fromarray(np.full((48, 64), value, np.uint8)).save(folder / "blank.png")


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (WORDS, "none.safetensors --images images --masks masks", "no such file: none.safetensors"),
        (WORDS, "names.txt --images images --masks masks", "names.txt must be a concept saved by anymask"),
        (WORDS, f"{CLASS} --phrases gone.txt", "no such file: gone.txt"),
        (WORDS, f"{CLASS} --phrases empty.txt", "empty.txt must hold phrases, one a line, but is empty"),
        (WORDS, f"{CLASS} --most-words 0", "most_words must be at least 1, got 0"),
        (WORDS, f"{CLASS} --image images/00.png", "give what to judge words on once: --images and --masks, or --image"),
        (WORDS, "a.safetensors --images images", "give what to judge words on once: --images and --masks, or --image"),
        (WORDS, "a.safetensors", "give what to judge words on once"),
        (WORDS, f"{ONE} --val-list held.txt", "--list and --val-list choose images of --images: leave them out"),
        (WORDS, f"{CLASS} --list held.txt --val-list held.txt", "no image is left to search on: all are held out"),
        (WORDS, "a.safetensors --image images/00.png", "images/00.png needs its mask: give --mask FILE"),
        (WORDS, "a.safetensors --image images/00.png --mask blank.png", "the mask blank.png is all black"),
        (WORDS, "other.safetensors --images images --masks masks", "made for pocket with other weights than those of"),
        (INSPECT, "a.safetensors --image gone.png -o out", "no such file: gone.png"),
        (INSPECT, "a.safetensors gone.safetensors --image images/00.png -o out", "no such file: gone.safetensors"),
        (INSPECT, "a.safetensors other.safetensors --image images/00.png -o out", "with other weights than those of"),
        (INSPECT, "a.safetensors --image images/00.png --mask blank.png -o out", "the mask blank.png is all black"),
    ],
)
def test_wrong_use_is_told_in_one_line(folder, monkeypatch, command, words, message):
    (folder / "empty.txt").write_text("\n \n")
    blank(folder, 0)
    space = word_space_of(load("pocket"))
    save_concept(replace(concept_of(space, "fox"), base_digest="other"), folder / "other.safetensors")
    with pytest.raises((ValueError, OSError)) as caught:
        run(command, words, folder, monkeypatch)
    assert message in one_line(caught.value)
    assert not (folder / "out").exists()


def test_a_model_without_words_is_refused(folder, monkeypatch):
    from tiny_families import tiny_sam

    monkeypatch.setattr("anymask.models.load.load", lambda *_: tiny_sam())
    with pytest.raises(ValueError, match="tiny-sam knows no text, so that it cannot be taught a word"):
        run(INSPECT, "a.safetensors --image images/00.png -o out -m sam", folder, monkeypatch)
