import json
import math
from pathlib import Path

import numpy as np
import pytest

from anymask.evaluation.naming import NameRecord
from anymask.evaluation.promptable import ImageRecord, PromptableSettings, evaluate_promptable
from anymask.evaluation.summaries import summarise
from anymask.ops.metrics import bootstrap_interval
from oracles import Oracle, write_set

NAN = float("nan")
SETTINGS = PromptableSettings(images=Path("pictures"), annotations=Path("pictures/set.json"))
ISSUE_KEYS = {
    "click1_miou",
    "click3_miou",
    "click5_miou",
    "noc80",
    "noc85",
    "box_miou",
    "box_boundary_iou",
    "text_miou",
    "text_false_positive_rate",
    "encode_ms",
    "click_ms",
    "peak_rss_mb",
    "images",
    "masks",
}


def record(source, ious, *, in_train=True, names=(), encode=0.05, click=0.01):
    return ImageRecord(
        file_name=f"{source}.jpg",
        source=source,
        in_train=in_train,
        masks=len(ious),
        values={"box_miou": np.asarray(ious, float), "box_predicted_iou": np.full(len(ious), 0.55)} if ious else {},
        names=tuple(names),
        encode_seconds=encode,
        click_seconds=click if ious else NAN,
        total=4,
    )


def there(name, iou, precision, recall, presence=0.9):
    return NameRecord(name, True, precision == precision, presence, iou, precision, recall)


def away(name, found, presence=0.1):
    return NameRecord(name, False, found, presence, NAN, NAN, NAN)


RECORDS = [
    record(
        "a",
        [0.2, 0.4, 0.6],
        names=[there("cat", 0.5, 0.6, 0.7), away("dog", True, 0.95), away("cow", False)],
        encode=0.01,
    ),
    record("a", [0.8], names=[there("dog", 0.0, NAN, 0.0, 0.2)], encode=0.03, click=0.02),
    record("b", [1.0, 0.0], names=[away("cat", False)], encode=0.02, click=0.03),
    record("c", [0.5], in_train=False, names=[there("cat", 1.0, 1.0, 1.0)], encode=0.5, click=0.5),
    record("c", [], in_train=False, encode=0.7),
]


@pytest.fixture(scope="module")
def report():
    return summarise(RECORDS, SETTINGS, Oracle())


def test_every_key_of_the_issue_is_there_for_trained_and_unseen_sources(report):
    assert set(report.metrics) >= ISSUE_KEYS
    assert {f"{key}_unseen" for key in ISSUE_KEYS} <= set(report.metrics)


def test_means_are_over_masks_and_beside_them_over_sources(report):
    metrics = report.metrics
    assert metrics["box_miou"] == pytest.approx((0.2 + 0.4 + 0.6 + 0.8 + 1.0 + 0.0) / 6)
    assert metrics["box_miou_source_mean"] == pytest.approx((0.5 + 0.5) / 2)
    assert metrics["box_miou_unseen"] == metrics["box_miou_source_mean_unseen"] == 0.5
    assert (metrics["images"], metrics["masks"], metrics["images_unseen"], metrics["masks_unseen"]) == (3, 6, 2, 1)


def test_intervals_are_over_images(report):
    low, high = bootstrap_interval([np.asarray(v) for v in ([0.2, 0.4, 0.6], [0.8], [1.0, 0.0])], seed=0)
    assert report.metrics["box_miou_ci95_low"] == pytest.approx(low, abs=1e-5)
    assert report.metrics["box_miou_ci95_high"] == pytest.approx(high, abs=1e-5)


def test_text_is_over_names_present_and_absent_apart(report):
    metrics = report.metrics
    assert metrics["text_miou"] == pytest.approx(0.25)
    assert metrics["text_false_positive_rate"] == pytest.approx(1 / 3, abs=1e-5)
    assert metrics["text_precision"] == 0.6  # where nothing is predicted there is no precision
    assert metrics["text_recall"] == pytest.approx(0.35)
    assert metrics["text_presence_auc"] == pytest.approx(4 / 6, abs=1e-5)
    assert (metrics["names_present"], metrics["names_absent"]) == (2, 3)
    assert metrics["text_false_positive_rate_unseen"] is None


def test_times_are_medians_and_an_image_without_masks_has_no_click(report):
    metrics = report.metrics
    assert (metrics["encode_ms"], metrics["click_ms"]) == (20, 20)
    assert (metrics["encode_ms_unseen"], metrics["click_ms_unseen"]) == (600, 500)


def test_what_was_not_measured_is_none_and_never_nan(report):
    assert report.metrics["noc80"] is None and report.metrics["click5_miou_ci95_low"] is None
    assert "grabcut_miou" not in report.metrics
    assert not any(isinstance(value, float) and math.isnan(value) for value in report.metrics.values())


def test_every_source_has_a_row_the_trained_ones_first(report):
    rows = report.tables["sources"]
    assert [(row["source"], row["in_train"], row["images"], row["masks"]) for row in rows] == [
        ("a", True, 2, 4),
        ("b", True, 1, 2),
        ("c", False, 2, 1),
    ]
    assert [row["box_miou"] for row in rows] == [0.5, 0.5, 0.5]
    assert [row["text_false_positive_rate"] for row in rows] == [0.5, 0.0, None]


def test_every_name_has_a_row_the_frequent_ones_first(report):
    rows = report.tables["names"]
    assert [(row["name"], row["present"], row["absent"]) for row in rows] == [
        ("cat", 2, 1),
        ("dog", 1, 1),
        ("cow", 0, 1),
    ]
    assert (rows[0]["text_miou"], rows[0]["text_precision"], rows[0]["text_recall"]) == (0.75, 0.8, 0.85)
    assert rows[1]["text_precision"] is None and rows[2]["text_miou"] is None
    assert [row["text_false_positive_rate"] for row in rows] == [0.0, 1.0, 0.0]


def test_predicted_iou_is_compared_with_the_real_one(report):
    ious = [0.2, 0.4, 0.6, 0.8, 1.0, 0.0]
    assert report.metrics["box_calibration_error"] == pytest.approx(abs(np.mean(ious) - 0.55), abs=1e-5)
    assert report.metrics["box_calibration_error_unseen"] == pytest.approx(0.05, abs=1e-5)
    assert report.metrics["click1_calibration_error"] is None
    assert report.tables["reliability"] == [
        {"prompt": "box", "from": 0.5, "masks": 6, "predicted_iou": 0.55, "real_iou": 0.5}
    ]


def test_presence_is_told_at_every_threshold(report):
    rows = {row["threshold"]: row for row in report.tables["presence_roc"]}
    assert len(rows) == 19
    assert rows[0.05] == {"threshold": 0.05, "true_positive_rate": 1.0, "false_positive_rate": 1.0}
    assert rows[0.5] == {"threshold": 0.5, "true_positive_rate": 0.5, "false_positive_rate": 0.33333}
    assert rows[0.95]["true_positive_rate"] == 0.0


def test_no_record_gives_a_report_of_nothing():
    empty = summarise([], SETTINGS, Oracle())
    assert (empty.metrics["images"], empty.metrics["box_miou"], empty.metrics["encode_ms"]) == (0, None, None)
    assert empty.tables["sources"] == []


def test_a_run_from_files_to_a_report(tmp_path):
    file = write_set(tmp_path)
    settings = PromptableSettings(images=tmp_path, annotations=file, baselines=True, seed=3)
    report = summarise(evaluate_promptable(Oracle(), settings), settings, Oracle())
    assert report.title == "promptable segmentation: oracle on set.json"
    assert (report.metrics["images"], report.metrics["masks"], report.metrics["masks_unseen"]) == (3, 9, 3)
    assert report.metrics["click1_miou"] == report.metrics["box_miou_unseen"] == report.metrics["whole_box_miou"] == 1
    assert report.metrics["text_presence_auc"] == 1 and report.metrics["text_false_positive_rate"] == 0
    assert (report.seed, report.settings["baselines"], report.settings["annotations"]) == (3, True, str(file))
    assert report.metrics["peak_rss_mb"] > 10
    json.dumps(dict(report.metrics), allow_nan=False)
