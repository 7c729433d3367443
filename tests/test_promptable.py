import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PillowImage

from anymask.data.coco import read_coco
from anymask.data.images import read_image
from anymask.evaluation import naming
from anymask.evaluation.promptable import PromptableSettings, evaluate_promptable
from anymask.models.protocol import Capabilities
from anymask.names import find
from anymask.ops import rle
from anymask.types import Prompt
from oracles import OBJECTS, SIZE, Oracle, box_mask, true_mask, true_union, write_set

AREAS = np.asarray([box_mask(box).sum() for _, box, _ in OBJECTS])
PIXELS = SIZE[0] * SIZE[1]


def settings_of(folder, **changes):
    return PromptableSettings(images=folder, annotations=folder / "set.json", **changes)


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path)
    return tmp_path


def run(model, folder, **changes):
    return list(evaluate_promptable(model, settings_of(folder, **changes)))


def nothing(prompt, picture):
    return np.zeros(SIZE, bool)


def everything(prompt, picture):
    return np.ones(SIZE, bool)


def test_a_model_that_knows_all_gets_full_marks(folder):
    for record in run(Oracle(), folder):
        assert record.masks == 3
        for measure in (
            "click1_miou",
            "click3_miou",
            "click5_miou",
            "click1_best_miou",
            "box_miou",
            "box_boundary_iou",
        ):
            assert record.values[measure].tolist() == [1, 1, 1], measure
        assert record.values["noc80"].tolist() == record.values["noc85"].tolist() == [1, 1, 1]
        assert all(name.found == name.present for name in record.names)
        assert {(name.iou, name.precision, name.recall) for name in record.names if name.present} == {(1, 1, 1)}


def test_a_model_that_finds_nothing_gets_none(folder):
    for record in run(Oracle(mask=nothing, union=nothing), folder):
        for measure in (
            "click1_miou",
            "click3_miou",
            "click5_miou",
            "click1_best_miou",
            "box_miou",
            "box_boundary_iou",
        ):
            assert record.values[measure].tolist() == [0, 0, 0], measure
        assert record.values["noc80"].tolist() == [20, 20, 20]
        assert not any(name.found for name in record.names)
        assert {(name.iou, name.recall) for name in record.names if name.present} == {(0, 0)}


def test_a_model_that_takes_everything_gets_the_share_of_the_object(folder):
    """IoU and precision are the object's share of the picture, recall is 1, absent names are false positives."""
    model = Oracle(mask=everything, union=everything, presence=lambda *_: 1.0)
    record = run(model, folder)[0]
    np.testing.assert_allclose(record.values["click5_miou"], AREAS / PIXELS)
    np.testing.assert_allclose(record.values["box_miou"], AREAS / PIXELS)
    cat = next(name for name in record.names if name.name == "cat")
    assert cat.iou == cat.precision == pytest.approx((AREAS[0] + AREAS[2]) / PIXELS)
    assert cat.recall == 1
    assert all(name.found for name in record.names)


def rows_by_clicks(prompt, picture):
    """One more fifth of the object with every click, and a click after the first only with the answer before it."""
    target = true_mask(prompt, picture)
    if prompt.box_coords is None and len(prompt.point_coords) > 1:
        fifths = len(prompt.point_coords) - 1
        before = target & (np.cumsum(target, axis=1) * 5 <= fifths * target.sum(axis=1, keepdims=True))
        assert prompt.mask_input is not None
        np.testing.assert_array_equal(prompt.mask_input > 0, before)
    clicks = len(prompt.point_coords)
    return target & (np.cumsum(target, axis=1) * 5 <= clicks * target.sum(axis=1, keepdims=True))


def test_each_click_is_in_the_error_and_the_answer_before_is_passed_back(folder):
    """Objects are 10 pixels wide: 2 columns a click give IoU 0.2, 0.4, ... 1.0."""
    record = run(Oracle(mask=rows_by_clicks), folder)[0]
    np.testing.assert_allclose(record.values["click1_miou"], 0.2)
    np.testing.assert_allclose(record.values["click3_miou"], 0.6)
    np.testing.assert_allclose(record.values["click5_miou"], 1.0)
    assert record.values["noc80"].tolist() == [4, 4, 4]
    assert record.values["noc85"].tolist() == [5, 5, 5]


def test_clicks_stop_when_good_enough_but_not_before_the_fixed_ones(folder):
    """At IoU 0.9 an object is clicked `clicks` times and no more; one that stays below goes on to `noc_clicks`."""

    def nine_tenths_of_the_first(prompt, picture):
        target = true_mask(prompt, picture)
        x, _ = prompt.point_coords[0] if len(prompt.point_coords) else (0, 0)
        share = 0.9 if x < 13 else 0.5
        return target & (np.cumsum(target, axis=1) <= share * target.sum(axis=1, keepdims=True))

    model = Oracle(mask=nine_tenths_of_the_first)
    record = run(model, folder, limit=1, clicks=3, noc_clicks=6)[0]
    rounds = [prompts for prompts in model.asked if len(prompts[0].point_coords) and len(prompts) > 1]
    assert [len(prompts) for prompts in rounds] == [3, 3, 3, 3, 2, 2, 2]
    assert [len(prompts[0].point_coords) for prompts in rounds] == [1, 1, 2, 3, 4, 5, 6]  # candidates first
    assert record.values["noc85"].tolist() == [1, 6, 6]
    assert "click5_miou" not in record.values


def test_what_the_model_gives_counts_and_the_best_candidate_stands_beside_it(folder):
    """By itself the model gives the object; its candidates are half of it, and nothing."""

    def half_at_best(mask):
        half = mask & (np.cumsum(mask, axis=1) * 2 <= mask.sum(axis=1, keepdims=True))
        return [(mask & False, 0.9), (half, 0.7), (mask & False, 0.1)]

    record = run(Oracle(candidates=half_at_best), folder)[0]
    np.testing.assert_allclose(record.values["click1_miou"], 1.0)
    np.testing.assert_allclose(record.values["click1_best_miou"], 0.5)
    assert record.values["noc80"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("model", [Oracle(mask=rows_by_clicks), Oracle(mask=everything)])
def test_batches_of_any_size_measure_the_same(folder, model):
    for batched, single in zip(run(model, folder), run(model, folder, batch=1), strict=True):
        assert str(batched.names) == str(single.names)  # NaN differs from itself
        for measure, values in batched.values.items():
            np.testing.assert_array_equal(values, single.values[measure], err_msg=measure)


def test_without_clicks_for_noc_there_is_none(folder):
    record = run(Oracle(), folder, noc_clicks=0)[0]
    assert "noc80" not in record.values
    assert record.values["click5_miou"].tolist() == [1, 1, 1]


def test_boxes_are_tight_unless_jittered(folder):
    model = Oracle(mask=true_mask)
    run(model, folder, limit=1)
    boxes = [prompt.box_coords for prompts in model.asked for prompt in prompts if prompt.box_coords is not None]
    assert boxes == [tuple(map(float, box)) for _, box, _ in OBJECTS]
    assert run(model, folder, limit=1, box_jitter=0.2)[0].values["box_miou"].tolist() == [0, 0, 0]


def test_baselines_are_measured_on_the_same_boxes(folder):
    record = run(Oracle(), folder, limit=1, baselines=True)[0]
    assert record.values["whole_box_miou"].tolist() == [1, 1, 1]  # the objects are rectangles
    assert record.values["whole_box_boundary_iou"].tolist() == [1, 1, 1]
    assert record.values["grabcut_miou"].shape == (3,)
    assert "whole_box_miou" not in run(Oracle(), folder, limit=1)[0].values


def test_absent_names_are_asked_only_where_the_source_names_everything(folder):
    farm, _, zoo, wild = run(Oracle(), folder)
    absent = [sum(not name.present for name in record.names) for record in (farm, zoo, wild)]
    assert absent == [2, 0, 2]
    assert [name.name for name in zoo.names] == ["cat", "dog"]


def test_absent_names_are_never_those_of_a_crowd_nor_object(tmp_path):
    write_set(tmp_path, ["farm"] * 20, extra={"crowd_categories": ["cow", "bird"]})
    drawn = [name.name for record in run(Oracle(), tmp_path, noc_clicks=0) for name in record.names if not name.present]
    assert set(drawn) == {"horse", "sheep"}


def test_absent_names_do_not_depend_on_the_other_images(folder):
    everyone = {record.file_name: record.names for record in run(Oracle(), folder)}
    some = {record.file_name: record.names for record in run(Oracle(), folder, limit=2)}
    assert len(some) == 2
    assert all(str(names) == str(everyone[file_name]) for file_name, names in some.items())


def test_the_category_object_is_never_asked_for(folder):
    dataset = read_coco(folder / "set.json")
    truth = replace(dataset.masks(dataset.images[0]), labels=("cat", "object", ""))
    assert naming.present_names(truth) == ["cat"]


@pytest.mark.parametrize("threshold", [0.2, 0.8])
def test_names_are_answered_as_find_answers_them(folder, threshold):
    def unsure(name, picture):
        return {"cat": 0.9, "dog": 0.3, "cow": 0.7}.get(name, threshold)

    model = Oracle(presence=unsure, union=lambda name, picture: true_union("dog", picture) | true_union(name, picture))
    dataset = read_coco(folder / "set.json")
    features = model.encode([read_image(folder / "1.png")])[0]
    names = naming.ask(model, features, dataset.masks(dataset.images[0]), ["cow", "bird"])
    answered = find(model, features, [one.name for one in names], semantic=True)
    assert [one.name for one in names if one.found] == list(answered.labels)
    assert [one.presence for one in names] == [0.9, 0.3, 0.7, threshold]


@pytest.mark.parametrize("changes", [{"text": False}, {}])
def test_names_are_not_asked_of_a_model_without_text_or_when_not_wanted(folder, changes):
    model = Oracle(capabilities=Capabilities(text=bool(changes)))
    assert all(record.names == () for record in run(model, folder, **changes))


def test_sources_say_what_was_in_training(folder):
    assert [record.in_train for record in run(Oracle(), folder)] == [True, True, True, False]
    assert [record.in_train for record in run(Oracle(), folder, unseen_source=("zoo",))] == [True, True, False, False]


def test_a_set_without_sources_is_one_source(tmp_path):
    write_set(tmp_path, ["", ""], rows=())
    records = run(Oracle(), tmp_path)
    assert [(record.source, record.in_train) for record in records] == [("all", True)] * 2
    assert [name.name for name in records[0].names] == ["cat", "dog"]


def test_a_limit_draws_from_every_source(folder):
    assert {record.source for record in run(Oracle(), folder, limit=3)} == {"farm", "zoo", "wild"}


def test_it_is_a_generator_that_encodes_one_image_at_a_time(folder):
    model = Oracle()
    records = evaluate_promptable(model, settings_of(folder))
    assert model.encoded == 0
    first = next(records)
    assert (model.encoded, first.file_name, first.total) == (1, "1.png", 4)
    assert first.encode_seconds > 0 and first.click_seconds > 0


def test_an_image_without_masks_is_timed_and_asked_for_absent_names(tmp_path):
    file = write_set(tmp_path, ["farm"])
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "annotations": []}))
    record = run(Oracle(), tmp_path)[0]
    assert (record.masks, record.values) == (0, {})
    assert len(record.names) == 2 and not any(name.present for name in record.names)
    assert np.isnan(record.click_seconds) and record.encode_seconds > 0


def test_empty_annotations_are_passed_over(tmp_path):
    file = write_set(tmp_path, ["zoo"])
    document = json.loads(file.read_text())
    document["annotations"][1]["segmentation"] = rle.encode(np.zeros((1, *SIZE), bool))[0]
    file.write_text(json.dumps(document))
    record = run(Oracle(), tmp_path)[0]
    assert record.masks == 2
    assert [name.name for name in record.names] == ["cat"]


def test_missing_pictures_are_named_before_anything_is_measured(folder):
    (folder / "3.png").unlink()
    model = Oracle()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 pictures are not in .*: 3\.png"):
        run(model, folder)
    assert model.encoded == 0


def test_a_picture_of_another_size_is_refused(folder):
    PillowImage.new("RGB", (7, 5)).save(folder / "1.png")
    with pytest.raises(ValueError, match=r"1\.png must be \(20, 30\) \(h, w\) as in .*set\.json, got \(5, 7\)"):
        run(Oracle(), folder)


def test_a_set_without_images_is_refused(tmp_path):
    write_set(tmp_path, [])
    with pytest.raises(ValueError, match=r"set\.json must hold at least one image, got none"):
        run(Oracle(), tmp_path)


def test_an_unknown_unseen_source_is_refused(folder):
    with pytest.raises(ValueError, match=r"unseen_source must be a source of .*\(farm, wild, zoo\), got fram"):
        run(Oracle(), folder, unseen_source=("fram",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clicks": 0}, "clicks must be at least 1, got 0"),
        ({"noc_clicks": -1}, "noc_clicks must be at least 0, got -1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"box_jitter": -0.1}, "box_jitter must be at least 0, got -0.1"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        run(Oracle(), folder, **changes)


def test_the_oracle_itself_can_be_wrong():
    """The stand-in answers by pixel, so a click beside the object must give another mask."""
    picture = np.zeros(SIZE, np.uint8)
    picture[box_mask(OBJECTS[0][1])] = 50
    assert true_mask(Prompt.point(5.5, 5.5), picture).sum() == AREAS[0]
    assert true_mask(Prompt.point(0.5, 0.5), picture).sum() == PIXELS - AREAS[0]
