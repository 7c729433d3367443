"""The case study: it teaches, resumes, judges on the right images, and its tables are what their names say."""

import json
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

import tiny_sam3
from anymask.adapting import study as module
from anymask.adapting.settings import InversionSettings
from anymask.adapting.study import Study, evenly_ranked, to_markdown
from anymask.adapting.study_settings import GENERIC_PHRASES, LEARNING, StudyClass, StudySettings
from anymask.data.concepts import read_concept
from anymask.evaluation.reports import read_report
from anymask.models.load import load
from standin import write_disks
from tiny import tiny_model


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two classes; the first keeps two images to spare."""
    folder = tmp_path_factory.mktemp("classes")
    write_disks(folder / "disks", 6)
    write_disks(folder / "dots", 4, size=(40, 40))
    for part, names in {"train": "00\n01", "val": "02\n03", "spare": "04\n05"}.items():
        (folder / "disks" / f"{part}.txt").write_text(names)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """Every model that is loaded is a tiny one; runs leave no figures, which take longer than all else."""
    monkeypatch.setattr(module, "load", lambda *_, **__: tiny_model())
    without_figures(monkeypatch, "records", ("compare", "draw_curves"))


@pytest.fixture
def tiny(drawn, monkeypatch):
    """Nor does the study."""
    without_figures(monkeypatch, "study", ("draw_study", "draw_examples"))


def without_figures(monkeypatch, module, names):
    for name in names:
        monkeypatch.setattr(f"anymask.adapting.{module}.{name}", lambda *_: None)
    monkeypatch.setattr(f"anymask.adapting.{module}.save_figure", lambda path, _: path.touch() or path)


def a_study(places, output, names=("disks", "dots"), steps=2, **changes):
    settings = StudySettings(**{"output": output, "draws": 1, **changes})
    learning = InversionSettings("any", output, steps=steps, validate_every=1, batch_size=2, views=1, save_seconds=0)
    classes = [StudyClass(name, str(places / name), "a red dog", ("dog", "disk")) for name in names]
    return Study(settings, classes, learning)


def test_a_study_teaches_judges_and_writes(places, tmp_path, drawn):
    study = a_study(places, tmp_path, runs=2)
    assert study.remarks() == ["disks: 2 images to learn from, 2 held out", "dots: 3 images to learn from, 1 held out"]
    records = list(study.steps())
    assert [record.total for record in records] == [6] * len(records)
    assert [record.done for record in records] == sorted(record.done for record in records)
    assert (records[0].done, records[-1].done) == (0, 6)
    report = read_report(tmp_path / "study.json")
    assert report.tables == json.loads(json.dumps(study.report.tables))
    assert [(row["class"], row["train_images"], row["images"], row["runs"]) for row in report.tables["classes"]] == [
        ("disks", 2, 2, 2),
        ("dots", 3, 1, 2),
    ]
    assert [row["image"] for row in report.tables["images"]][:2] == ["02", "03"]
    assert {row["control"] for row in report.tables["controls"]} == {
        *("seed phrase", "best phrase", "random vectors", "initialiser", "mean embedding")
    }
    assert {row["phrase"] for row in report.tables["phrases"]} == {"a red dog", "dog", "disk"}
    concept = read_concept(tmp_path / "disks/seed-1/concept.safetensors")
    assert (concept.name, concept.made_by["seed"]) == ("disks", 1)
    assert (tmp_path / "dots/seed-0/final_comparison.png").exists()
    for picture in ("study.png", "examples.png"):
        with PillowImage.open(tmp_path / picture) as opened:
            assert np.asarray(opened).std() > 10
    assert (tmp_path / "study.md").read_text() == to_markdown(report)


def test_what_was_taught_is_read_back(places, tmp_path, tiny, monkeypatch):
    first = a_study(places, tmp_path)
    list(first.steps())
    monkeypatch.setattr(module.Inversion, "_step", lambda _: pytest.fail("taught again"))
    monkeypatch.setattr(module, "write_run", lambda *_: pytest.fail("written again"))
    again = a_study(places, tmp_path)
    list(again.steps())
    for table in ("classes", "controls", "confusion", "phrases", "images"):
        for row, before in zip(again.report.tables[table], first.report.tables[table], strict=True):
            assert row == pytest.approx(before, abs=2e-5), table


def test_a_half_run_goes_on(places, tmp_path, tiny):
    list(a_study(places, tmp_path / "whole", names=("disks",), steps=4).steps())
    half = a_study(places, tmp_path / "half", names=("disks",), steps=4).steps()
    assert [next(half).done for _ in range(4)] == [0, 0.25, 0.5, 0.75]
    half.close()
    records = list(a_study(places, tmp_path / "half", names=("disks",), steps=4).steps())
    assert [(record.done, record.text) for record in records[:2]] == [(1, "disks by seed 0"), (1, "judging disks")]
    one, other = (
        read_concept(tmp_path / kind / "disks/seed-0/concept.safetensors").token_embeddings
        for kind in ("whole", "half")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_other_settings_do_not_go_on(places, tmp_path, tiny):
    list(a_study(places, tmp_path, names=("disks",)).steps())
    with pytest.raises(ValueError, match=r"is of another run: steps changed"):
        list(a_study(places, tmp_path, names=("disks",), steps=3).steps())


def test_spare_images_are_judged_apart(places, tmp_path, tiny):
    list(a_study(places, tmp_path, names=("disks",)).steps())
    spare = a_study(places, tmp_path, names=("disks",), spare=True)
    assert spare.remarks() == ["disks: 2 images to learn from, 2 spare"]
    list(spare.steps())
    assert [row["image"] for row in spare.report.tables["images"]] == ["04", "05"]
    assert [row["image"] for row in read_report(tmp_path / "study.json").tables["images"]] == ["02", "03"]
    assert {path.name for path in tmp_path.glob("*spare*")} == {
        *("study_spare.json", "study_spare.md", "study_spare.png", "examples_spare.png")
    }
    assert "Nothing was chosen by these images." in (tmp_path / "study_spare.md").read_text()
    assert "on others it will do a little worse" in (tmp_path / "study.md").read_text()
    with pytest.raises(ValueError, match=r"the class 'dots' has no spare images: write spare.txt, or judge on val"):
        a_study(places, tmp_path, spare=True)


def test_of_one_class_there_is_no_other(places, tmp_path, tiny):
    study = a_study(places, tmp_path, names=("disks",))
    list(study.steps())
    assert len(study.report.tables["confusion"]) == 1
    assert study.report.tables["presence"] == []
    assert "mean embedding" not in {row["control"] for row in study.report.tables["controls"]}


def test_contrast_shows_the_others_as_images_without_the_class(places, tmp_path, tiny, monkeypatch):
    seen = {}
    inversion = module.Inversion

    def noted(settings, lessons, *rest):
        seen[settings.name] = lessons
        return inversion(settings, lessons, *rest)

    monkeypatch.setattr(module, "Inversion", noted)
    list(a_study(places, tmp_path, contrast=True).steps())
    dots = {pair.image for pair in seen["dots"].learn.rows}
    assert {pair.image for pair in seen["disks"].without} == dots
    assert all(len(pair.masks) == 0 for pair in seen["disks"].without)
    assert {pair.image.stem for pair in seen["disks"].held_out.rows} == {"02", "03"}
    next(a_study(places, tmp_path / "plain", contrast=False).steps())
    assert seen["disks"].without == ()


def test_a_model_of_queries_is_studied_too(places, tmp_path, tiny, monkeypatch):
    source = tiny_sam3.write_tiny_merges(tmp_path)
    monkeypatch.setattr(module, "load", lambda *_, **__: tiny_sam3.tiny_sam3(source))
    study = a_study(places, tmp_path / "out", names=("disks",), steps=1)
    list(study.steps())
    assert 0 <= study.report.metrics["disks_end_iou"] <= 1


def test_the_model_is_loaded_as_it_was_named(places, tmp_path, tiny_pocket):
    study = a_study(places, tmp_path, names=("disks",), model=str(tiny_pocket), device="cpu")
    assert study.space.digest == load(str(tiny_pocket)).words.digest


def test_bad_files_and_a_loss_that_is_not_finite_are_told(places, tmp_path, tiny, monkeypatch):
    write_disks(tmp_path / "disks", 4)
    (tmp_path / "disks/masks/00.png").write_bytes(b"torn")
    study = a_study(tmp_path, tmp_path / "out", names=("disks",))
    assert study.failed
    assert any("00.png" in line for line in study.remarks())
    sound = a_study(places, tmp_path / "sound", names=("disks",))
    assert not sound.failed
    monkeypatch.setattr(module.Inversion, "_step", lambda run: setattr(run.standing, "diverged", True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_run", lambda *_: None)
        next(iter(sound.steps()))
        list(sound.steps())
    assert sound.failed


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "a study needs a class: give NAME=DIR, once for each"),
        ([("disks", "")] * 2, "every class must have a name of its own, got 'disks' twice"),
        ([("a/b", "")], "the name of a class must be letters, digits, _ and - alone, got 'a/b'"),
        ([("disks", " ")], "a phrase for pocket must have 1 to "),
    ],
)
def test_wrong_classes_are_refused(classes, message, places, tmp_path, tiny):
    with pytest.raises(ValueError, match=re.escape(message)):
        Study(
            StudySettings(tmp_path),
            [StudyClass(name, str(places / name), seed) for name, seed in classes],
            InversionSettings("any", tmp_path),
        )


@pytest.mark.parametrize("name", ["max_train", "max_val", "runs", "draws"])
def test_settings_are_at_least_one(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        StudySettings(tmp_path, **{name: 0})
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        StudySettings(tmp_path, seed=-1)


def test_every_setting_of_an_inversion_is_taken_over_or_said_by_the_study():
    said = {"seed_text", "output", "name", "model", "device", "seed", "start", "phrase", "negatives", "image", "mask"}
    said |= {"images", "masks", "annotations", "category", "val_images", "val_masks", "train_list", "val_list"}
    said |= {"val_share"}
    assert said.isdisjoint(LEARNING)
    assert {one.name for one in fields(InversionSettings)} == said | set(LEARNING)


def test_a_class_begins_with_its_name():
    assert StudyClass("my_part-7", "x").seed_phrase == "my part 7"


def test_the_seed_phrase_is_one_of_ten_plain_phrases():
    assert StudyClass("polyps", "x", "polyp").tried == ("polyp", *GENERIC_PHRASES)
    assert len(StudyClass("polyps", "x").tried) == 10
    assert StudyClass("polyps", "x", "polyp", ("bump", "polyp", "bump")).tried == ("polyp", "bump")


def test_examples_are_evenly_spaced_in_rank():
    values = np.asarray([0.5, 0.9, 0.1, 0.3, 0.7])
    assert evenly_ranked(values, 3) == [1, 0, 2]
    assert evenly_ranked(values, 9) == [1, 4, 0, 3, 2]
    assert evenly_ranked(values[:1], 5) == [0]


def test_vectors_of_a_study_stay_apart_from_its_start(places, tmp_path, tiny, monkeypatch):
    taught = []
    judging = Study._judge
    monkeypatch.setattr(
        Study, "_judge", lambda self, one, all_: taught.append(all_[one.name]) or judging(self, one, all_)
    )
    study = a_study(places, tmp_path, names=("disks",))
    list(study.steps())
    [[embedding]] = taught
    assert torch.equal(embedding.start, study.space.vectors("a red dog"))
    learned = read_concept(tmp_path / "disks/seed-0/concept.safetensors").token_embeddings
    assert torch.equal(embedding.end, torch.from_numpy(learned))
