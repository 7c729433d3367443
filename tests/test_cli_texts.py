"""`anymask segment` with texts: through saved detectors and models, windows, fitted scorers and concepts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from skimage import data

from anymask.cli.main import main
from anymask.data.coco import read_coco
from anymask.data.concepts import save_concept
from anymask.data.scorers import FittedScorer, write_scorer
from anymask.types import Concept
from tiny_detectors import saved_detector
from tiny_families import tiny_sam2


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder: two photos of a cat, one of them broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anymask.cli.progress.SECONDS_BETWEEN_LINES", math.inf)
    Path("photos").mkdir()
    cat = PillowImage.fromarray(data.chelsea()).resize((226, 150))
    cat.save("photos/cat.jpg")
    cat.transpose(PillowImage.Transpose.FLIP_LEFT_RIGHT).save("photos/tac.jpg")
    Path("photos/zero.jpg").write_bytes(b"\xff\xd8broken")
    return tmp_path


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["segment", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_folder_through_a_saved_detector_and_a_saved_model(here, capsys):
    saved_detector("grounding-dino", Path("dino"))
    tiny_sam2().save(Path("sam2"))
    words = [
        "photos",
        "--text",
        "cat",
        "--text",
        "dog",
        "--model",
        "sam2",
        "--detector",
        "dino",
        "--box-threshold",
        "0.01",
    ]
    code, out, err = run(capsys, *words, "-o", "out", "--format", "coco", "--format", "panels", "--json")
    rows = json.loads(out)
    assert code == 1 and "zero.jpg" in err  # the broken one is named, the others are done
    assert [Path(row["file"]).name for row in rows] == ["cat.jpg", "tac.jpg"]
    for row in rows:
        assert row["made_by"]["detector"] == "dino" and row["made_by"]["scorer"] is None
        assert {one["label"] for one in row["masks"]} <= {"cat", "dog"} and row["masks"]
        assert set(row["masks"][0]["measures"]) >= {"quality", "text", "compactness", "size", "smoothness"}
    saved = read_coco("out/cat.json", "photos")
    assert saved.info["settings"]["detector"] == "dino"
    assert saved.masks(saved.images[0]).measures["quality"] == pytest.approx(
        [one["measures"]["quality"] for one in rows[0]["masks"]], abs=1e-5
    )
    assert Path("out/tac.panels.png").is_file()


def test_windows_stand_in_only_where_they_may(here, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["photos/cat.jpg", "--text", "cat", "--detector", "grounding-dino-tiny", "--json"]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and "grounding-dino-tiny is not on this machine" in err
    code, out, _ = run(capsys, *words, "--fallback")
    [row] = json.loads(out)
    assert code == 0 and row["made_by"]["detector"] == "windows of pocket"
    assert any("stand in for the detector" in note for note in row["made_by"]["notes"])


def test_nothing_found_says_how_near_it_was(here, capsys):
    code, out, _ = run(capsys, "photos/cat.jpg", "--text", "locomotive")
    assert code == 0 and "nothing found; not found: locomotive 0." in out and " of 0.62" in out
    code, out, _ = run(capsys, "photos/cat.jpg", "--text", "cat", "--text", "locomotive", "--json")
    [row] = json.loads(out)
    assert row["made_by"]["nearest"].keys() == {"locomotive"}


def test_what_would_have_no_effect_is_refused(here, capsys):
    text, windows = ["--text", "cat"], ["--text", "cat", "--detector", "windows"]
    for words, message in (
        ([*text, "--background", "grey"], "--background is for names that a detector finds, and this model finds"),
        ([*text, "--no-refine"], "--no-refine is for names that a detector finds, and this model finds names itself"),
        (["--point", "9,9", "--cleanup", "classic"], "--cleanup is for masks of texts, and there is no --text"),
        (["--point", "9,9", "--raw"], "--raw is for masks of texts, and there is no --text"),
        (["--point", "9,9", "--background", "pink"], "--background must be blurred or grey, got 'pink'"),
        ([*text, "--raw", "--cleanup", "adaptive"], "--raw leaves masks as they are and --cleanup cleans them"),
        ([*windows, "--text-threshold", "0.2"], "--text-threshold is for detectors of phrases, and windows of pocket"),
        ([*windows, "--box-threshold", "0"], "--box-threshold must be above 0 for windows: every place reaches 0"),
        ([*windows, "--scorer", "pocket", "--scorer", "ViT-L-14:openai"], "the scorer pocket stands alone"),
        ([*text, "--detector", "no/such/dino.pth", "--fallback"], "no such detector file or folder: no/such/dino.pth"),
    ):
        code, out, err = run(capsys, "photos/cat.jpg", *words)
        assert (code, out) == (2, "") and message in err, err


def test_a_text_beside_a_point_is_not_looked_at_closer_and_a_name_is_asked_for_once(here, capsys):
    words = ["--text", "locomotive", "--text", " Locomotive", "--point", "100,70", "--zoom", "--json"]
    [row] = json.loads(run(capsys, "photos/cat.jpg", *words)[1])
    assert len(row["masks"]) == 1 and list(row["made_by"]["missing"]) == ["locomotive"]


def test_what_was_learned_for_another_detector_is_noted(here, capsys):
    write_scorer(Path("other.json"), FittedScorer(None, None, {}, {"dino": {"cat": 0.2}}))
    words = ["photos/cat.jpg", "--text", "cat", "--scorer-file", "other.json"]
    assert "other.json holds no threshold for pocket: the usual one holds" in run(capsys, *words)[2]
    [row] = json.loads(run(capsys, *words, "--detector", "windows", "--json")[1])
    assert "other.json holds no threshold for windows of pocket: the usual one holds" in row["made_by"]["notes"]


def test_raw_masks_are_those_of_the_model(here, capsys):
    def masks(*words):
        return [
            one["segmentation"]["counts"]
            for one in json.loads(run(capsys, "photos/cat.jpg", "--text", "cat", "--json", *words)[1])[0]["masks"]
        ]

    raw, adaptive, classic = masks("--raw"), masks(), masks("--cleanup", "classic")
    assert len(raw) == len(adaptive) and len({*map(tuple, (raw, adaptive, classic))}) == 3


def test_a_threshold_of_ones_own_by_scorer_file_and_by_concept(here, capsys):
    def found(*words):
        return [one["label"] for one in json.loads(run(capsys, "photos/cat.jpg", "--json", *words)[1])[0]["masks"]]

    assert "cat" in found("--text", "cat")
    for name, value in (("strict", 1.0), ("loose", 0.01)):
        write_scorer(Path(f"{name}.json"), FittedScorer(None, None, {}, {"pocket": {"cat": value}}))
        save_concept(Concept("cat", "pocket", thresholds={"pocket": value}), f"{name}.safetensors")
    assert found("--text", "cat", "--scorer-file", "strict.json") == found("--concept", "strict.safetensors") == []
    assert "cat" in found("--text", "cat", "--scorer-file", "loose.json")
    assert "cat" in found("--concept", "loose.safetensors")


def test_a_second_run_reads_the_cache_and_finds_the_same(here, capsys):
    words = ["photos/cat.jpg", "--text", "cat", "--detector", "windows", "--cache", "kept", "--json"]
    first = json.loads(run(capsys, *words)[1])
    files = {path: path.stat().st_mtime_ns for path in Path("kept").rglob("*.safetensors")}
    second = json.loads(run(capsys, *words)[1])
    assert files and {path: path.stat().st_mtime_ns for path in files}.keys() == set(
        Path("kept").rglob("*.safetensors")
    )
    assert first[0]["masks"] == second[0]["masks"]


def test_a_negative_name_and_many_names_in_one_run(here, capsys):
    names = [word for i in range(300) for word in ("--text", f"thing {i}")]
    code, out, _ = run(capsys, "photos/cat.jpg", *names, "--text", "cat", "--not-text", "dog", "--json")
    [row] = json.loads(out)
    assert code == 0 and "cat" in {one["label"] for one in row["masks"]}
    assert np.isfinite([one["score"] for one in row["masks"]]).all()
