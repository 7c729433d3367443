"""Tables and figure of a case study: each number is what its name says, on judgements that are easy to reckon."""

from dataclasses import replace

import numpy as np
import pytest

from anymask.adapting.controls import Judged
from anymask.adapting.study import to_markdown
from anymask.adapting.study_figures import draw_study
from anymask.adapting.study_summary import ClassResult, readable, summarise


def found(ious, scores=0.5):
    ious = np.atleast_2d(np.asarray(ious, np.float64))
    given = np.broadcast_to(scores, ious.shape).copy()
    return Judged(tuple(f"i{i}" for i in range(ious.shape[1])), ious, given, given >= 0.5)


@pytest.fixture
def results():
    one = ClassResult(
        name="one",
        seed_phrase="uno",
        best_phrase="eins",
        phrases={"uno": 0.1, "eins": 0.3},
        train=found([[0.9, 0.7], [0.8, 0.8]]),
        controls={"seed phrase": found([0.1, 0.2, 0.3]), "initialiser": found([[0.0, 0.2, 0.1], [0.2, 0.4, 0.3]])},
        embeddings={
            "one": found([[0.5, 0.7, 0.3], [0.7, 0.9, 0.5]], 0.9),
            "two": found([0.0, 0.1, 0.2], [0.6, 0.2, 0.1]),
        },
        seed_phrases={"one": found([0.1, 0.2, 0.3], 0.3), "two": found([0.0, 0.0, 0.0], 0.4)},
    )
    two = replace(
        one,
        name="two",
        controls={"seed phrase": found([0.1, 0.2]), "initialiser": found([0.2, 0.2])},
        embeddings={"one": found([0.0, 0.2], [0.95, 0.1]), "two": found([0.4, 0.6], 0.8)},
        seed_phrases={"one": found([0.0, 0.2], 0.1), "two": found([0.1, 0.2], 0.2)},
    )
    return [one, two]


@pytest.fixture
def report(results):
    return summarise(results, "a study", {"spare": False}, seed=3)


def test_a_class_is_told_from_start_to_end(report):
    row = report.tables["classes"][0]
    assert (row["start_iou"], row["end_iou"], row["train_iou"], row["gap"]) == (0.2, 0.6, 0.8, 0.2)
    assert (row["end_least"], row["end_most"], row["end_deviation"]) == (0.4, 0.8, round(np.std([0.6, 0.8, 0.4]), 5))
    assert row["end_deviation_of_runs"] == 0.1
    assert 0.4 <= row["end_iou_ci95_low"] < 0.6 < row["end_iou_ci95_high"] <= 0.8
    assert report.tables["classes"][1]["end_deviation_of_runs"] is None
    assert report.metrics["one_end_iou"] == 0.6
    assert report.metrics["one_least_margin"] == 0.4


def test_margins_are_taken_image_by_image(report):
    seed, start = report.tables["controls"][:2]
    assert (seed["control"], seed["text"], seed["iou"], seed["margin"]) == ("seed phrase", "uno", 0.2, 0.4)
    assert (seed["margin_ci95_low"], seed["margin_ci95_high"]) == (0.1, 0.6)  # 0.5, 0.6 and 0.1
    assert (start["margin"], start["margin_ci95_low"], start["margin_ci95_high"]) == (0.4, 0.2, 0.5)


def test_the_confusion_has_a_row_for_each_embedding_on_each_class(report):
    rows = [(row["embedding"], row["class"], row["iou"], row["score"]) for row in report.tables["confusion"]]
    assert rows == [
        ("one", "one", 0.6, 0.9),
        ("one", "two", 0.1, 0.525),
        ("two", "one", 0.1, 0.3),
        ("two", "two", 0.5, 0.8),
    ]
    matrix = readable(report).tables["confusion"]
    assert matrix[1] == {
        "embedding": "two",
        "IoU (score) on one": "0.100 (0.300)",
        "IoU (score) on two": "0.500 (0.800)",
    }


def test_presence_is_told_on_images_without_the_class(report):
    embedding, seed = report.tables["presence"][:2]
    assert embedding == {
        "class": "one",
        "prompt": "embedding",
        "score": 0.9,
        "score_without": 0.525,
        "found": 1.0,
        "found_without": 0.5,
        "auc": 0.5,  # three of 0.9 against 0.95 and 0.1
    }
    assert (seed["score"], seed["score_without"], seed["found"], seed["auc"]) == (0.3, 0.1, 0.0, 1.0)


def test_tables_for_people_have_ranges_in_one_column(report):
    tables = readable(report).tables
    assert tables["classes"][0]["end_iou"] == 0.6
    assert tables["classes"][0]["end range"] == "0.400 to 0.800"
    assert tables["controls"][0]["margin 95%"] == "0.100 to 0.600"
    assert not [key for row in tables["classes"] for key in row if key.endswith(("_low", "_high", "_least", "_most"))]
    words = to_markdown(report)
    assert "## Controls" in words
    assert "| one | seed phrase | uno | 0.200 |" in words


def test_the_figure_has_a_bar_for_everything(report):
    figure = draw_study(report)
    bars, confusion = figure.subfigs
    assert [[round(bar.get_width(), 3) for bar in axes.patches] for axes in bars.axes] == [
        [0.6, 0.2, 0.2],
        [0.5, 0.15, 0.2],
    ]
    labels = [text.get_text() for text in bars.axes[0].get_yticklabels()]
    assert labels == ["embedding", 'seed phrase "uno"', "initialiser"]
    assert [text.get_text() for text in confusion.axes[0].texts][1] == "0.10\n(0.53)"
