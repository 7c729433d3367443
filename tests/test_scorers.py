"""scorer.json: what was written comes back, and a file that is none is named with what it lacks."""

import json
from dataclasses import replace

import pytest

from anymask.data.scorers import FittedScorer, read_scorer, write_scorer
from anymask.grounding.clip_members import Member, parse_member

FITTED = FittedScorer(
    quality={"text": 0.7, "compactness": 0.1, "size": 0.1, "smoothness": 0.1},
    best_size=(0.01, 0.4),
    members={"ViT-L-14:openai": 1.0},
    thresholds={"pocket": {"cat": 0.4, "été/🐈": 0.6}, "windows of pocket": {}},
    of_all={"pocket": 0.5},
    report={"choices": 3},
)


def test_it_comes_back(tmp_path):
    for fitted in (FITTED, FittedScorer(None, None, {}, {})):
        write_scorer(tmp_path / "scorer.json", fitted)
        assert read_scorer(tmp_path / "scorer.json") == fitted


def test_its_members_are_asked_for_as_a_command_asks():
    fitted = replace(FITTED, members={"ViT-B-32:laion2b": 0.25, "ViT-L-14:openai": 0.75})
    assert fitted.scorer == ("ViT-B-32:laion2b=0.25", "ViT-L-14:openai=0.75")
    assert parse_member(fitted.scorer[0]) == Member("ViT-B-32", "laion2b", 0.25)
    assert FittedScorer(None, None, {}, {}).scorer == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "anymask scorer 9"}, "its format must be 'anymask scorer 1', got 'anymask scorer 9'"),
        ({"members": None}, "'NoneType' object has no attribute 'items'"),
        ({"best_size": [1]}, "not enough values to unpack"),
        ({"quality": {"text": "much"}}, "could not convert string to float: 'much'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, reason):
    file = tmp_path / "scorer.json"
    write_scorer(file, FITTED)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"scorer.json must be a scorer.json of anymask train scorer: {reason}"):
        read_scorer(file)


def test_a_part_that_is_missing_is_named(tmp_path):
    (tmp_path / "report.json").write_text('{"format": "anymask scorer 1"}')
    with pytest.raises(ValueError, match="report.json must be a scorer.json .*: it has no 'quality'"):
        read_scorer(tmp_path / "report.json")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_scorer(tmp_path / "none.json")
