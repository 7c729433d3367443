"""`anymask everything` through main: records, files, what is skipped, and one line for every wrong use."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

import anymask
from anymask import automatic
from anymask.automatic import Step
from anymask.cli.everything import DEFAULT_FORMATS
from anymask.cli.main import main
from anymask.data import exports
from anymask.data.coco import read_coco
from anymask.data.labelmaps import read_labelmap
from anymask.types import Masks

W, H = 40, 30
ENDINGS = (".json", ".labelmap.png", ".overlay.png", ".sheet.png")
# What a model of random weights finds: something, quickly.
LOOSE = ("--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--box-nms-thresh", "0.9")
SAM_KEYS = {
    "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box", "id",
}  # fmt: skip


@pytest.fixture
def here(pocket, tmp_path, monkeypatch) -> Path:
    """The current folder: photo.jpg, and photos/ with two more."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
    for name in ("photo.jpg", "photos/one.jpg", "photos/two.jpg"):
        PillowImage.fromarray(pixels).save(name)
    return tmp_path


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["everything", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def saved(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).is_dir() else []


def files_of(*stems: str) -> list[str]:
    return sorted(stem + ending for stem in stems for ending in ENDINGS)


# --- results


def test_the_command_of_the_issue(here, capsys):
    code, out, err = run(capsys, "photo.jpg", "--model", "pocket", *LOOSE, "-o", "out/", "--json")
    assert (code, err) == (0, "")
    [row] = json.loads(out)
    assert (row["file"], row["size"]) == ("photo.jpg", [H, W])
    assert row["masks"]
    for record in row["masks"]:
        assert set(record) == SAM_KEYS
        assert int(coco_mask.area(record["segmentation"])) == record["area"]
        assert coco_mask.toBbox(record["segmentation"]).tolist() == record["bbox"]
        assert record["crop_box"] == [0, 0, W, H]
        assert np.shape(record["point_coords"]) == (1, 2)
    assert [record["id"] for record in row["masks"]] == list(range(1, len(row["masks"]) + 1))
    assert saved() == files_of("photo")


def test_the_answer_is_that_of_the_function(here, capsys):
    _, out, _ = run(capsys, "photo.jpg", *LOOSE, "--json")
    settings = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9}
    records = automatic.everything("photo.jpg", **settings, output_mode="coco_rle")
    ids = [record.pop("id") for record in json.loads(out)[0]["masks"]]
    assert ids == list(range(1, len(records) + 1))
    rows = json.loads(out)[0]["masks"]
    assert [{key: value for key, value in row.items() if key != "id"} for row in rows] == json.loads(
        json.dumps(records)
    )


def test_files_hold_the_same_masks(here, capsys):
    _, out, _ = run(capsys, "photo.jpg", *LOOSE, "-o", "out", "--json")
    records = json.loads(out)[0]["masks"]
    coco = read_coco("out/photo.json")
    masks = coco.masks(coco.images[0])
    assert list(masks.rles) == [record["segmentation"] for record in records]
    assert masks.ids.tolist() == [record["id"] for record in records]
    assert masks.point_coords is not None
    np.testing.assert_allclose(masks.point_coords[:, None], [record["point_coords"] for record in records])
    assert masks.crop_boxes.tolist() == [[0, 0, W, H]] * len(masks)
    np.testing.assert_allclose(masks.stability, [record["stability_score"] for record in records])
    assert set(read_labelmap("out/photo.labelmap.png").ids) <= set(masks.ids)


def test_several_photos_in_order(here, capsys):
    code, out, err = run(capsys, "photos", "*.jpg", *LOOSE, "-o", "out", "--prefix", "all-", "--format", "coco")
    assert (code, err) == (0, "")
    starts = ["photos/one.jpg: 40 x 30, ", "photos/two.jpg: 40 x 30, ", "photo.jpg: 40 x 30, "]
    assert all(line.startswith(start) for line, start in zip(out.splitlines(), starts, strict=True))
    assert saved() == ["all-one.json", "all-photo.json", "all-two.json"]


def test_without_output_a_table_is_shown(here, capsys):
    code, out, err = run(capsys, "photo.jpg", *LOOSE)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:3] == ["id", "name", "score"]


def test_no_mask_is_an_empty_result(here, capsys):
    code, out, err = run(capsys, "photo.jpg", "--points-per-side", "2", "--pred-iou-thresh", "1", "-o", "out", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [{"file": "photo.jpg", "size": [H, W], "masks": []}]
    assert saved() == files_of("photo")
    assert json.loads(Path("out/photo.json").read_text())["annotations"] == []
    assert run(capsys, "photo.jpg", "--points-per-side", "2", "--pred-iou-thresh", "1")[1] == (
        "photo.jpg: 40 x 30, nothing found\n"
    )


def test_no_photo_is_an_empty_result(here, capsys):
    Path("empty").mkdir()
    assert run(capsys, "empty", "--json") == (0, "[]\n", "")
    assert run(capsys, "*.tif") == (0, "no photos found: nothing to segment\n", "")


def many_masks(image, model, settings):
    """More squares of one pixel than a sheet has cells, in two steps."""
    dense = np.zeros((410, H, W), bool)
    dense[np.arange(410), np.arange(410) // W, np.arange(410) % W] = True
    n = len(dense)
    columns = {"point_coords": np.zeros((n, 2)), "crop_boxes": np.tile([0, 0, W, H], (n, 1))}
    yield Step(1, 2)
    yield Step(2, 2, Masks.from_dense(dense, stability=np.ones(n, np.float32), **columns))


def test_hundreds_of_masks_and_a_sheet_that_says_what_it_leaves_out(here, capsys, monkeypatch):
    monkeypatch.setattr(automatic, "everything_steps", many_masks)
    code, out, err = run(capsys, "photo.jpg", "-o", "out")
    assert (code, out.splitlines()[0][:32]) == (0, "photo.jpg: 40 x 30, 410 masks ->")
    assert err == "anymask everything: photo.jpg: sheet does not keep the 10 smallest masks (it has 400 cells)\n"
    labelmap = read_labelmap("out/photo.labelmap.png")
    assert labelmap.ids.tolist() == list(range(1, 411))


def test_the_bar_moves_within_a_photo(here, capsys, monkeypatch):
    monkeypatch.setattr(automatic, "everything_steps", many_masks)
    monkeypatch.setattr("anymask.cli.progress.SECONDS_BETWEEN_LINES", -1.0)
    _, _, err = run(capsys, "photos", "--json")
    shown = ["0/2", "0.5/2", "1/2", "1/2", "1.5/2", "2/2"]
    names = ["one.jpg"] * 3 + ["two.jpg"] * 3
    assert err.splitlines() == [f"{done} image  {name}" for done, name in zip(shown, names, strict=True)]


def test_the_default_formats_are_in_the_help(here, capsys):
    assert set(DEFAULT_FORMATS) <= set(exports.FORMATS)
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "default: coco, labelmap, overlay and sheet" in " ".join(out.split())


# --- resume


def test_resume_leaves_out_what_is_done(here, capsys, monkeypatch):
    code, first, _ = run(capsys, "photos", *LOOSE, "-o", "out", "--json")
    assert code == 0
    monkeypatch.setattr(automatic, "everything_steps", lambda *_: pytest.fail("done again"))
    assert run(capsys, "photos", *LOOSE, "-o", "out", "--json", "--resume") == (0, first, "")
    _, out, _ = run(capsys, "photos/one.jpg", *LOOSE, "-o", "out", "--resume")
    assert out.endswith(" -> done earlier\n")


def test_coco_says_what_made_the_masks(here, capsys):
    run(capsys, "photo.jpg", "--points-per-side", "2", "-o", "out")
    made_with = read_coco("out/photo.json").info["settings"]
    own = anymask.load("pocket").capabilities.thresholds
    assert [len(made_with[name]) for name in ("photo", "weights")] == [64, 32]
    assert (made_with["model"], made_with["dtype"]) == ("pocket", "float32")
    assert (made_with["points_per_side"], made_with["pred_iou_thresh"]) == (2, own.predicted_iou)
    assert made_with["stability_score_thresh"] == own.stability


@pytest.mark.parametrize(
    "change", ["settings", "weights", "resize", "a file is gone", "another photo", "no result of ours"]
)
def test_resume_does_again_what_is_not_done_so(here, capsys, monkeypatch, change):
    run(capsys, "photos", *LOOSE, "-o", "out")
    words = ["photos", *LOOSE, "-o", "out", "--resume"]
    if change == "settings":
        words += ["--crop-nms-thresh", "0.5"]
    elif change == "resize":
        words += ["--resize", "64"]
    elif change == "weights":
        monkeypatch.setattr("anymask.models.digests.digest_of_weights", lambda _: "another")
    elif change == "a file is gone":
        Path("out/one.sheet.png").unlink()
    elif change == "another photo":
        PillowImage.fromarray(np.zeros((H, W, 3), np.uint8)).save("photos/one.jpg")
    else:
        Path("out/one.json").write_text("[]")
    again = []
    real = automatic.everything_steps
    monkeypatch.setattr(
        automatic, "everything_steps", lambda image, *rest: again.append(image.name) or real(image, *rest)
    )
    code, _, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert again == (["one", "two"] if change in ("settings", "weights", "resize") else ["one"])
    assert saved() == files_of("one", "two")


def test_a_photo_without_masks_is_done_too(here, capsys, monkeypatch):
    words = ["photo.jpg", "--points-per-side", "2", "--pred-iou-thresh", "1", "-o", "out", "--json"]
    _, first, _ = run(capsys, *words)
    monkeypatch.setattr(automatic, "everything_steps", lambda *_: pytest.fail("done again"))
    assert run(capsys, *words, "--resume") == (0, first, "")


def test_a_photo_named_settings_is_a_photo(here, capsys):
    Path("photo.jpg").rename("settings.jpg")
    assert run(capsys, "settings.jpg", "photos", *LOOSE, "-o", "out")[0] == 0
    assert saved() == files_of("one", "settings", "two")


# --- interruptions and bad input


def test_an_interruption_leaves_whole_files(here, capsys, monkeypatch):
    def stopped(image, model, settings):
        yield from many_masks(image, model, settings)
        if image.name == "two":
            raise KeyboardInterrupt

    monkeypatch.setattr(automatic, "everything_steps", stopped)
    code, out, err = run(capsys, "photos", "photo.jpg", "-o", "out", "--json")
    assert (code, out) == (130, "")
    assert err == "anymask everything: interrupted: 1 of 3 images are done, their results in out are whole\n"
    assert saved() == files_of("one")


def test_an_interruption_while_saving_leaves_none_of_the_photo(here, capsys, monkeypatch):
    def interrupted(path, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(exports, "write_image", interrupted)
    assert run(capsys, "photo.jpg", *LOOSE, "-o", "out")[0] == 130
    assert saved() == []


def test_one_bad_file_does_not_stop_the_others(here, capsys):
    Path("photos/bad.jpg").write_bytes(b"no picture")
    code, out, err = run(capsys, "photos", "nowhere.jpg", *LOOSE, "-o", "out", "--json")
    assert code == 1
    assert [row["file"] for row in json.loads(out)] == ["photos/one.jpg", "photos/two.jpg"]
    assert "anymask everything: photos/bad.jpg must be an image" in err
    assert err.splitlines()[-1] == "anymask everything: 2 of 4 inputs failed: nowhere.jpg, photos/bad.jpg"
    assert saved() == files_of("one", "two")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--points-per-side", "0"], "points_per_side must be a whole number from 1 to 1024, got 0"),
        (["--pred-iou-thresh", "2"], "pred_iou_thresh must be a number from 0 to 1, got 2"),
        (["--crop-n-layers", "-1"], "crop_n_layers must be a whole number from 0 to "),
        (["--crop-overlap-ratio", "1"], "crop_overlap_ratio must be a number from 0 to less than 1, got 1"),
        (["--format", "gif", "-o", "out"], "a format must be one of coco, original, overlay, sheet, panels, masks, "),
        (["--format", "coco"], "--format needs -o: a folder to save results in"),
        (["--prefix", "a/b", "-o", "out"], "--prefix must be a part of a file name, got 'a/b'"),
        (["--resume"], "--resume needs -o: the folder with the results of the earlier run"),
        (
            ["--resume", "-o", "out", "--format", "sheet"],
            "--resume needs --format coco: its files say which settings made the results",
        ),
        (["--model", "nothing"], "unknown model 'nothing'"),
        (["--limit", "0"], "limit must be"),
    ],
)
def test_wrong_use_is_one_line(words, message, here, capsys):
    code, out, err = run(capsys, "photo.jpg", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"anymask everything: {message}")
    assert err.count("\n") == 1
    assert saved() == []


def test_results_among_the_photos_are_no_photos(here, capsys):
    for _ in range(2):
        code, out, err = run(capsys, "photos", *LOOSE, "-o", "photos", "--json")
        assert (code, len(json.loads(out))) == (0, 2)
    assert err == "anymask: 6 pictures in photos are results of an earlier run: left out\n"
    assert saved("photos") == sorted([*files_of("one", "two"), "one.jpg", "two.jpg"])


def test_results_never_overwrite_an_input_or_each_other(here, capsys):
    PillowImage.open("photo.jpg").save("photo.sheet.png")
    code, _, err = run(capsys, "photo.jpg", "photo.sheet.png", "-o", ".")
    collision = "photo.sheet.png would overwrite an input: give another -o, or a --prefix"
    assert (code, err) == (2, f"anymask everything: {collision}\n")
    PillowImage.open("photo.jpg").save("photos/photo.jpg")
    code, _, err = run(capsys, "photo.jpg", "photos", "-o", "out")
    same = "photo.jpg and photos/photo.jpg would both be saved as out/photo.json"
    assert (code, err) == (2, f"anymask everything: {same}: use two runs, with another -o or --prefix\n")


def test_a_model_that_takes_no_points_is_refused_at_once(here, capsys, monkeypatch):
    model = anymask.load("pocket")
    monkeypatch.setattr(type(model), "capabilities", dataclasses.replace(model.capabilities, points=False))
    code, _, err = run(capsys, "photo.jpg")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("anymask everything: everything mode needs a model that takes points: pocket knows names and")
