"""Text evaluation: ways of finding whose answers are known must give the numbers that these imply."""

import json
from dataclasses import replace

import numpy as np
import pytest

from anymask.cli.main import main
from anymask.data.images import read_image
from anymask.evaluation.baselines import score_map_instances
from anymask.evaluation.text import TextSettings, evaluate_text, finders
from anymask.evaluation.text_summary import DRAWS, summarise
from anymask.models.protocol import Capabilities
from anymask.ops.average_precision import IOU_THRESHOLDS
from anymask.types import Image, Masks
from oracles import OBJECTS, SIZE, SOURCES, Oracle, box_mask, write_set

# Of the four pictures of the set: cats and a dog in each; two absent names in each of farm, farm and wild.
PRESENT, ABSENT = 8, 6
ONES = ("ap50", "ap", "miou", "ciou", "boundary_iou", "precision", "recall", "presence_precision", "presence_recall")
ONES += ("presence_f1", "il_mcc", "pm_f1", "cgf1")
TRUE = [(name, box_mask(box)) for name, box, _ in OBJECTS]


def masks_of(rows, **columns) -> Masks:
    if not rows:
        return Masks.empty(SIZE)
    return Masks.from_dense(np.stack([mask for _, mask in rows]), labels=[name for name, _ in rows], **columns)


def truth(image, names):
    return masks_of([row for row in TRUE if row[0] in names])


def unions(image, names):
    held = dict.fromkeys(name for name, _ in TRUE if name in names)
    return masks_of([(name, np.any([mask for other, mask in TRUE if other == name], axis=0)) for name in held])


def nothing(image, names):
    return Masks.empty(SIZE)


def everything(image, names):
    return masks_of([(name, np.ones(SIZE, bool)) for name in names])


def settings_of(folder, **changes):
    return TextSettings(images=folder, annotations=folder / "set.json", **changes)


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path)
    return tmp_path


def report(folder, *ways, **changes):
    settings = settings_of(folder, **changes)
    return summarise(list(evaluate_text({way.__name__: way for way in ways}, settings)), settings, "a stand-in")


def test_who_knows_all_gets_full_marks(folder):
    found = report(folder, truth)
    assert {measure: found.metrics[measure] for measure in ONES} == dict.fromkeys(ONES, 1)
    assert {found.metrics[f"{measure}_{end}"] for measure in ONES for end in ("ci95_low", "source_mean")} == {1}
    counts = ("images", "names_present", "names_absent")
    assert [found.metrics[count] for count in counts] == [4, PRESENT, ABSENT]
    assert [row["source"] for row in found.tables["sources"]] == ["farm", "zoo", "wild"]
    names = {row["name"]: row for row in found.tables["names"]}
    assert names["cat"] | {"present": 4, "asked": 4, "ap": 1, "miou": 1, "presence_recall": 1} == names["cat"]
    assert sum(row["asked"] - row["present"] for row in names.values()) == ABSENT
    assert found.tables["ablation"] == []


def test_a_union_has_the_pixels_but_not_the_objects(folder):
    """The cats have 100 and 50 pixels: as one mask it has IoU 2/3 with the larger, and the other one is missed."""
    found = report(folder, unions).metrics
    assert (found["miou"], found["ciou"], found["presence_f1"]) == (1, 1, 1)
    half = 51 / 101  # the recalls up to 0.5
    matches = (IOU_THRESHOLDS <= 2 / 3).mean()
    assert found["ap50"] == pytest.approx((1 + half) / 2, abs=1e-5)
    assert found["ap"] == pytest.approx((1 + half * matches) / 2, abs=1e-5)
    # An image has three objects and two masks, of which two or one are right.
    assert found["pm_f1"] == pytest.approx(matches * 4 / 5 + (1 - matches) * 2 / 5, abs=1e-5)


def test_who_finds_nothing_or_everything_tells_nothing(folder):
    none, all_ = report(folder, nothing).metrics, report(folder, everything).metrics
    for measure in ("ap50", "miou", "ciou", "boundary_iou", "recall", "presence_recall", "il_mcc", "pm_f1", "cgf1"):
        assert none[measure] == 0, measure
    assert none["precision"] is none["presence_precision"] is None
    assert all_["presence_precision"] == pytest.approx(PRESENT / (PRESENT + ABSENT), abs=1e-5)
    assert (all_["presence_recall"], all_["recall"], all_["il_mcc"]) == (1, 1, 0)
    areas = [sum(mask.sum() for name, mask in TRUE if name == wanted) for wanted in ("cat", "dog")]
    pixels = SIZE[0] * SIZE[1]
    assert all_["miou"] == pytest.approx(np.mean(areas) / pixels, abs=1e-5)
    assert all_["ciou"] == pytest.approx(sum(areas) / 2 / pixels, abs=1e-5)


def test_pixels_add_up_in_ciou_where_miou_counts_names(folder):
    def cats(image, names):
        return truth(image, {"cat"} & set(names))

    found = report(folder, cats).metrics
    cat, dog = (sum(mask.sum() for name, mask in TRUE if name == wanted) for wanted in ("cat", "dog"))
    assert found["miou"] == found["presence_recall"] == 0.5
    assert found["ciou"] == pytest.approx(cat / (cat + dog), abs=1e-5)
    assert found["ap50"] == 0.5


def test_mcc_is_the_correlation_of_found_and_present(folder):
    def wrong(image, names):
        return masks_of([(name, np.ones(SIZE, bool)) for name in names if name not in ("cat", "dog")])

    assert report(folder, wrong).metrics["il_mcc"] == -1


def test_merged_objects_are_not_counted_one_by_one(tmp_path):
    write_set(tmp_path, rows=[row | {"true_instances": row["name"] != "farm"} for row in SOURCES])
    rows = {row["source"]: row for row in report(tmp_path, truth).tables["sources"]}
    assert (rows["farm"]["ap"], rows["farm"]["pm_f1"], rows["farm"]["cgf1"]) == (None, None, None)
    assert (rows["farm"]["miou"], rows["wild"]["ap"]) == (1, 1)


def test_a_set_without_sources_is_scored_without_absent_names(tmp_path):
    write_set(tmp_path, sources=["", ""], rows=())
    found = report(tmp_path, truth)
    assert (found.metrics["ap"], found.metrics["names_absent"]) == (1, 0)
    of_absent = ("presence_precision", "presence_f1", "il_mcc", "cgf1")
    [source] = found.tables["sources"]
    assert source["source"] == "all"
    for measure in of_absent:
        assert found.metrics[measure] is source[measure] is found.metrics[f"{measure}_ci95_low"] is None, measure
    assert (found.metrics["presence_recall"], found.metrics["pm_f1"]) == (1, 1)
    [row] = found.tables["notes"]
    assert "no name was asked that is not there" in row["note"] and "--exhaustive" in row["note"]
    found = report(tmp_path, everything, exhaustive=True)
    assert (found.metrics["names_absent"], found.metrics["presence_precision"]) == (4, 0.5)
    assert found.tables["notes"] == []


def test_what_lies_on_a_crowd_does_not_count(folder):
    document = json.loads((folder / "set.json").read_text())
    for row in document["annotations"][2::3]:  # the smaller cats
        row["iscrowd"] = 1
    (folder / "set.json").write_text(json.dumps(document))
    found = report(folder, truth).metrics
    assert (found["ap"], found["pm_f1"]) == (1, 1)
    assert found["ciou"] < 1


def test_images_without_names_are_not_asked(folder):
    document = json.loads((folder / "set.json").read_text())
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] != 3]  # of the zoo
    (folder / "set.json").write_text(json.dumps(document))
    records = list(evaluate_text({"full": truth}, settings_of(folder)))
    found = summarise(records, settings_of(folder), "")
    assert found.metrics["images_without_names"] == 1
    assert found.tables["notes"] == [{"note": "1 of 4 images have no name to ask for and are left out"}]
    assert [len(record.answers) for record in records] == [1, 1, 0, 1]
    assert summarise(records, settings_of(folder), "").metrics["images"] == 3
    empty = summarise(records[2:3], settings_of(folder), "")
    assert (empty.metrics["images"], empty.metrics["ap50"], empty.tables["names"]) == (0, None, [])


def test_several_ways_answer_the_same_questions_once_an_image(folder):
    asked = {"first": [], "second": []}

    def way(label, find):
        def finder(image, names):
            asked[label].append((image.name, tuple(names)))
            return find(image, names)

        return finder

    settings = settings_of(folder)
    records = list(evaluate_text({"first": way("first", truth), "second": way("second", unions)}, settings))
    assert asked["first"] == asked["second"]
    assert [name for name, _ in asked["first"]] == ["1", "2", "3", "4"]
    assert {record.total for record in records} == {4}
    rows = summarise(records, settings, "").tables["ablation"]
    assert [row["way"] for row in rows] == ["first", "second"]
    assert rows[0]["ap"] == 1 > rows[1]["ap"]
    assert [rows[0][f"ap50_gain{end}"] for end in ("", "_ci95_low", "_ci95_high")] == [0, 0, 0]
    assert rows[1]["ap50_gain"] == pytest.approx(rows[1]["ap50"] - 1, abs=1e-5)
    assert rows[1]["ap50_gain_ci95_low"] == rows[1]["ap50_gain_ci95_high"] == rows[1]["ap50_gain"]  # images are alike
    assert all(row["seconds_per_image"] >= 0 and row["rss_mb"] > 10 for row in rows)


def test_stages_are_averaged_over_images(folder, monkeypatch):
    def staged(image, names):
        return replace(truth(image, names), made_by={"seconds": {"encode": 2.0, "masks": 4.0 * (image.name == "1")}})

    held = iter((70.0, 90.0, 80.0, 80.0))
    monkeypatch.setattr("anymask.evaluation.reports.rss_mb", lambda: next(held))
    assert report(folder, staged).tables["stages"] == [
        {"way": "staged", "stage": "encode", "seconds": 2, "rss_mb": 90},
        {"way": "staged", "stage": "masks", "seconds": 1, "rss_mb": 90},
    ]
    monkeypatch.undo()
    assert report(folder, truth).tables["stages"] == []


def test_intervals_are_over_images(folder):
    def first_alone(image, names):
        return truth(image, names) if image.name == "1" else nothing(image, names)

    found = report(folder, first_alone).metrics
    assert (found["miou"], found["miou_ci95_low"], found["ap50"]) == (0.25, 0, pytest.approx(26 / 101, abs=1e-5))
    assert 0.25 < found["miou_ci95_high"] < 1
    assert found["ap50_ci95_low"] < found["ap50"] < found["ap50_ci95_high"]
    assert DRAWS >= 200


def test_a_score_map_alone_gives_its_connected_parts():
    pixels = np.zeros((*SIZE, 3), np.uint8)
    for _, box, grey in OBJECTS:
        pixels[box_mask(box)] = grey
    found = score_map_instances(Oracle(), Image(pixels), ["cat", "cow", "dog"])
    assert found.labels == ("cat", "cat", "dog")
    assert sorted(found.areas[:2].tolist()) == sorted(int(mask.sum()) for name, mask in TRUE if name == "cat")
    assert found.ids.tolist() == [1, 2, 3]
    assert np.allclose(found.scores, 0.9, atol=1e-3)
    assert len(score_map_instances(Oracle(), Image(pixels), ["cow"])) == 0
    unsure = Oracle(presence=lambda name, picture: 0.1)
    assert len(score_map_instances(unsure, Image(pixels), ["dog"])) == 0
    assert np.allclose(score_map_instances(unsure, Image(pixels), ["dog"], presence=0.0).scores, 0.1, atol=1e-3)


def test_what_is_compared_depends_on_who_finds_the_names(folder, monkeypatch):
    monkeypatch.setattr("anymask.grounding.loading.load", lambda *_: Oracle())
    cleanups, maps = ["full", "clean-up none", "clean-up classic"], ["score map", "score map, any presence"]
    parts = [f"without {part}" for part in ("choice by quality", "refinement", "one name each")]
    ablate = settings_of(folder, ablate=True)
    assert list(finders(Oracle(), settings_of(folder))) == ["full"]
    assert list(finders(Oracle(), ablate)) == [*cleanups, "through windows", *maps]
    assert list(finders(Oracle(), replace(ablate, detector="windows"))) == [*cleanups, *parts, *maps]
    assert list(finders(Oracle(capabilities=Capabilities()), ablate)) == [*cleanups, *parts]


def test_every_way_of_a_detector_gives_masks_of_the_names_asked(folder):
    settings = settings_of(folder, ablate=True, detector="windows", scorer=("pocket",), limit=1)
    image = read_image(folder / "1.png")
    for label, find in finders(Oracle(), settings).items():
        assert set(find(image, ["cat", "dog"]).labels) <= {"cat", "dog"}, label


def test_wrong_settings_are_refused(folder):
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        settings_of(folder, seed=-1)
    with pytest.raises(ValueError, match=r"scorer is for what a detector finds: give a detector \(windows needs no "):
        settings_of(folder, scorer=("pocket",))


WANTED = {"ap50", "ap", "miou", "ciou", "presence_precision", "presence_recall", "seconds_per_image", "peak_rss_mb"}


def test_the_command_prints_a_flat_object(folder, capsys, monkeypatch):
    monkeypatch.setattr("anymask.models.load.load", lambda *_, **__: Oracle())
    words = ["evaluate", "text", "--images", str(folder), "--annotations", str(folder / "set.json")]
    code = main([*words, "--ablate", "--limit", "3", "--json", "-o", str(folder / "report.json")])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) >= WANTED
    assert {row["way"] for row in found["ablation"]} >= {"full", "clean-up none", "score map"}
    assert {row["name"] for row in found["names"]} >= {"cat", "dog"}
    assert json.loads((folder / "report.json").read_text()) == found
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "text to masks: oracle on set.json" in shown
    assert "presence_recall" in shown


def test_an_interrupted_command_writes_what_was_measured(folder, capsys, monkeypatch):
    def stopped(image, names):
        if image.name == "3":
            raise KeyboardInterrupt
        return truth(image, names)

    monkeypatch.setattr("anymask.models.load.load", lambda *_, **__: Oracle())
    monkeypatch.setattr("anymask.evaluation.text.finders", lambda *_: {"full": stopped})
    words = ["evaluate", "text", "--images", str(folder), "--annotations", str(folder / "set.json")]
    file = folder / "report.json"
    assert main([*words, "-o", str(file)]) == 130
    told = "anymask evaluate text: interrupted after 2 images: "
    assert capsys.readouterr().err == f"{told}{file} is the report of these\n"
    found = json.loads(file.read_text())
    assert (found["images"], found["miou"]) == (2, 1)
    assert found["notes"] == [{"note": "stopped before the end: these are 2 of 4 images"}]
    assert main(words) == 130
    assert capsys.readouterr().err == f"{told}no report was written\n"


def test_an_interrupted_command_without_an_image_writes_nothing(folder, capsys, monkeypatch):
    def interrupted(image, names):
        raise KeyboardInterrupt

    monkeypatch.setattr("anymask.models.load.load", lambda *_, **__: Oracle())
    monkeypatch.setattr("anymask.evaluation.text.finders", lambda *_: {"full": interrupted})
    words = ["--images", str(folder), "--annotations", str(folder / "set.json"), "-o", str(folder / "report.json")]
    assert main(["evaluate", "text", *words]) == 130
    assert capsys.readouterr().err == "anymask evaluate text: interrupted after 0 images: no report was written\n"
    assert not (folder / "report.json").exists()
