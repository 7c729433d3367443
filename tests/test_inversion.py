"""Textual inversion: learns, is the same twice, goes on exactly where it stopped, and keeps the best."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from anymask.adapting import inversion
from anymask.adapting.beginnings import begin, best_phrase
from anymask.adapting.inversion import Inversion
from anymask.adapting.judging import Gallery
from anymask.adapting.records import write_run
from anymask.adapting.settings import InversionSettings
from anymask.data.concepts import read_concept, save_concept
from anymask.data.images import read_image
from anymask.data.pairs import read_pairs
from anymask.models.load import load
from anymask.names import ground
from anymask.training.caching import FeatureStore
from anymask.types import Concept, Prompt
from standin import write_disks
from tiny import tiny_model
from tiny_sam3 import tiny_sam3, write_tiny_merges


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    return write_disks(tmp_path_factory.mktemp("disks"), 6)


def settings(disks, output, **changes):
    small = {"steps": 12, "validate_every": 4, "batch_size": 3, "warmup": 2, "patience": 0, "seed_text": "red disk"}
    return InversionSettings(**{"images": disks[0], "masks": disks[1], "output": output, **small, **changes})


def taught(disks, output, model=None, **changes):
    run = Inversion(settings(disks, output, **changes), model=model or tiny_model())
    for _ in run.steps():
        pass
    return run


@pytest.mark.parametrize("family", ["pocket", "sam3"])
def test_the_loss_falls_and_weights_rest(disks, tmp_path, family):
    model = tiny_model() if family == "pocket" else tiny_sam3(write_tiny_merges(tmp_path))
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    run = taught(
        disks, tmp_path / "run", model, steps=30, batch_size=6, learning_rate=0.1, seed_text="red car", views=1
    )
    losses = [row["loss"] for row in run.standing.history if "loss" in row]
    assert np.mean(losses[-6:]) < np.mean(losses[:2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert (run.vectors != run.beginning).all()


def test_the_shipped_pocket_learns_what_it_cannot_name(disks, tmp_path):
    run = taught(disks, tmp_path, load("pocket"), steps=24, validate_every=12, learning_rate=0.02, seed_text="kettle")
    assert run.standing.best > run.standing.before + 0.1
    concept = run.concept
    assert concept.base_model == "pocket" and concept.token_embeddings.shape[1] == 128
    model, pair = load("pocket"), run.held_out.pairs[0]
    [found] = ground(model, model.encode([read_image(pair.image)])[0], [Prompt.concept(concept)], semantic=True).masks
    assert (found == run.held_out.mask(0, run.best)).mean() > 0.99


def test_the_same_seed_gives_the_same_and_another_does_not(disks, tmp_path):
    one, two, other = (taught(disks, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert torch.equal(one.vectors, two.vectors) and not torch.equal(one.vectors, other.vectors)
    assert one.standing.history == two.standing.history != other.standing.history


def test_a_run_that_was_cut_off_ends_as_if_it_was_not(disks, tmp_path):
    whole = taught(disks, tmp_path / "whole")
    part = Inversion(settings(disks, tmp_path / "part"), model=tiny_model())
    for record in part.steps():
        if record.step == 7:  # the last checkpoint is of step 4
            break
    again = taught(disks, tmp_path / "part")
    assert torch.equal(again.vectors, whole.vectors) and torch.equal(again.best, whole.best)
    assert again.standing.history == whole.standing.history and again.standing.nearest == whole.standing.nearest
    with pytest.raises(ValueError, match="checkpoint.pt is of another run: beginning, seed_text changed"):
        Inversion(settings(disks, tmp_path / "part", seed_text="another"), model=tiny_model())
    with pytest.raises(ValueError, match="is of another run: beginning, tokens changed"):
        Inversion(settings(disks, tmp_path / "part", tokens=3), model=tiny_model())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(disks, tmp_path, monkeypatch, caplog):
    real, calls = inversion.judge_image, []

    def spoiled(*given):
        calls.append(1)
        lesson = real(*given)
        return replace(lesson, loss=lesson.loss * float("nan")) if len(calls) > 3 * 6 else lesson

    monkeypatch.setattr(inversion, "judge_image", spoiled)
    run = taught(disks, tmp_path, learning_rate=0.05)
    assert run.standing.diverged and run.standing.step == 6
    assert "stopped at step 7, as the loss was not finite: the best vectors so far are kept" in caplog.text
    assert np.isfinite(run.concept.token_embeddings).all() and "not finite" in run.concept.made_by["stopped"]
    monkeypatch.undo()
    again = taught(disks, tmp_path, learning_rate=0.05)  # from the checkpoint of step 4
    assert again.standing.step == 12 and not again.standing.diverged


def test_it_stops_where_nothing_is_gained(disks, tmp_path, monkeypatch):
    monkeypatch.setattr(inversion, "mean_iou", lambda _: 0.5)
    run = taught(disks, tmp_path, patience=2, steps=40)
    assert run.standing.step == 8 and run.standing.stopped == "stopped at step 8: nothing was gained since step 0"
    assert torch.equal(run.best, run.beginning)


def test_pictures_without_the_thing_lower_the_score_there(disks, tmp_path):
    given = {"steps": 16, "learning_rate": 0.1, "score_weight": 20.0, "mask_weight": 0.0, "box_weight": 0.0}
    run = taught(
        disks, tmp_path / "run", load("pocket"), negatives=_grey(tmp_path / "grey"), seed_text="thing", **given
    )
    rows = [row for row in run.standing.history if "absent_score" in row]
    assert rows[-1]["score"] - rows[-1]["absent_score"] > rows[0]["score"] - rows[0]["absent_score"] + 0.2
    assert run.concept.made_by["without"] == 3


def test_norms_can_be_held_to_those_of_the_table(disks, tmp_path):
    given = {"steps": 20, "learning_rate": 0.2, "views": 1, "optimizer": "adam"}
    free, held = (taught(disks, tmp_path / str(w), norm_weight=w, **given) for w in (0.0, 1000.0))
    usual = free.space.table.norm(dim=1).mean()
    away = [(run.vectors.detach().norm(dim=1) - usual).abs().mean() for run in (free, held)]
    assert away[1] < 0.2 * away[0]


def test_beginnings(disks, tmp_path):
    space = tiny_model().words
    words = space.vectors("red disk")
    assert torch.equal(begin(space, "red disk"), words)
    four = begin(space, "red disk", 4)
    assert torch.equal(four[:2], words) and not torch.equal(four[2:], words)
    assert (four[2:] - words).norm() < 0.1 * words.norm()
    torch.testing.assert_close(begin(space, "red disk", 1), words.mean(0, keepdim=True))
    assert begin(space, "noise").shape == (1, space.width)
    assert torch.equal(begin(space, "noise", 3, 5), begin(space, "noise", 3, 5))
    assert not torch.equal(begin(space, "noise", 3, 5), begin(space, "noise", 3, 6))
    save_concept(Concept("c", "pocket", words.numpy(), base_digest=space.digest), tmp_path / "c.safetensors")
    assert torch.equal(begin(space, str(tmp_path / "c.safetensors")), words)
    with pytest.raises(ValueError, match="tokens must be 1 to 10 for pocket, got 99"):
        begin(space, "red", 99)
    store = FeatureStore(space.model, tmp_path / "features", 100, names=space.feature_names)
    gallery = Gallery(space, read_pairs(*disks).rows[:2], store)
    best, found = best_phrase(gallery, ["cat", "red disk", "cat"])
    assert list(found) == ["cat", "red disk"] and found[best] == max(found.values())
    run = Inversion(settings(disks, tmp_path / "n", start="nearest", phrase=("cat", "dog")), model=tiny_model())
    assert run.standing.start in ("cat", "dog")


def test_what_a_run_leaves_behind(disks, tmp_path):
    run = taught(disks, tmp_path, tokens=3, name="spot")
    paths = write_run(run, run.judge(run.best))
    assert [path.name for path in paths[:3]] == ["concept.safetensors", "nearest_tokens.txt", "history.json"]
    assert all(path.stat().st_size for path in paths) and {"final_comparison.png", "curves.png"} < {
        p.name for p in paths
    }
    concept = read_concept(paths[0])
    assert (concept.name, concept.base_digest) == ("spot", run.space.digest)
    assert concept.made_by["level"] == "word vectors before the text transformer" and concept.made_by["best_step"] >= 0
    assert concept.made_by["seed_text"] == "red disk" and set(concept.quality) == {
        "held_out_iou",
        "held_out_iou_before",
    }
    rows = json.loads(paths[2].read_text())["steps"]
    assert [row["step"] for row in rows] == list(range(13))
    assert {"loss", "mask_loss", "box_loss", "score_loss", "iou", "score", "query"} <= set(rows[3])
    assert rows[3]["query"] == [0, 0, 0] and "judged_iou" in rows[4]
    lines = paths[1].read_text().splitlines()
    assert len(lines) == 4 * 3 and lines[3].startswith("step 4, vector 1: ")


def test_settings_that_make_no_sense_are_refused(disks, tmp_path):
    for changes, message in (
        ({"seed_text": " "}, "the seed text must be words, without < and >, got ' '"),
        ({"name": "a<b>"}, "the name must be words, without < and >, got 'a<b>'"),
        ({"name": " "}, "the name must be words"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0 and at most 10, got nan"),
        ({"mask_weight": -1.0}, "mask_weight must be at least 0, got -1"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or adam, got 'sgd'"),
        ({"match": "most"}, "match must be best, top, soft, all"),
        ({"start": "nearest"}, "--start nearest chooses among phrases"),
        ({"phrase": ("cat",)}, "--start nearest chooses among phrases"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(disks, tmp_path, **changes)


def _grey(folder):
    """Pictures of noise."""
    from PIL import Image as PillowImage

    folder.mkdir()
    rng = np.random.default_rng(3)
    for i in range(3):
        PillowImage.fromarray(rng.integers(100, 140, (48, 48, 3), dtype=np.uint8)).save(folder / f"g{i}.png")
    return folder
