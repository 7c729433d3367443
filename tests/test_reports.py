import json

import pytest

from anymask.evaluation import reports
from anymask.types import Report

REPORT = Report(
    title="a test",
    metrics={
        "box_miou": 0.71234,
        "box_miou_ci95_low": 0.7,
        "box_miou_ci95_high": 0.725,
        "box_miou_source_mean": 0.6,
        "images": 12,
        "encode_ms": 81.3,
        "box_miou_unseen": None,
        "box_miou_ci95_low_unseen": None,
        "box_miou_ci95_high_unseen": None,
        "box_miou_source_mean_unseen": None,
        "images_unseen": 0,
        "encode_ms_unseen": None,
    },
    settings={"model": "pocket", "limit": None, "unseen_source": ["a"]},
    tables={
        "sources": [
            {"source": "a|b", "in_train": True, "box_miou": 0.5, "images": 3},
            {"source": "longer name", "in_train": False, "box_miou": None, "images": 12},
        ],
        "names": [{"name": "cat", "text_miou": 0.25}],
    },
    seed=4,
    versions={"python": "3.11.7", "torch": "2.15.0"},
    machine={"processor": "A Fast One", "cores": 2, "gpu": None},
)


def test_the_file_is_flat_and_gives_the_report_back(tmp_path):
    path = tmp_path / "runs" / "report.json"
    reports.write_report(path, REPORT)
    content = json.loads(path.read_text())
    assert content["box_miou"] == 0.71234
    assert content["sources"][0]["images"] == 3
    assert content["settings"]["model"] == "pocket"
    assert reports.read_report(path) == REPORT


def test_a_report_of_no_table_comes_back(tmp_path):
    reports.write_report(tmp_path / "r.json", Report("nothing", {}, {}))
    assert reports.read_report(tmp_path / "r.json") == Report("nothing", {}, {})


@pytest.mark.parametrize("content", ["[]", "{}", '{"title": "t", "settings": {}}'])
def test_a_file_that_holds_no_report_is_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=r"r\.json must be a report of anymask evaluate, but it has no '(title|seed)'"):
        reports.read_report(tmp_path / "r.json")


@pytest.mark.parametrize(
    "clashing",
    [Report("t", {"seed": 1}, {}), Report("t", {"a": 1}, {}, tables={"a": []}), Report("t", {}, {}, {"title": []})],
)
def test_names_that_would_overwrite_one_another_are_refused(clashing):
    with pytest.raises(ValueError, match="must not be called like another part of the report, got '(seed|a|title)'"):
        reports.to_json(clashing)


def test_the_text_is_aligned_and_leaves_empty_columns_out():
    assert reports.to_text(REPORT).splitlines()[:7] == [
        "a test",
        "",
        "                                  source",
        "measure    value             95%    mean  unseen",
        "box_miou   0.712  0.700 to 0.725   0.600       -",
        "images        12               -       -       0",
        "encode_ms   81.3               -       -       -",
    ]
    text = reports.to_text(REPORT)
    assert "names" not in text
    assert text.endswith("Seed 4; A Fast One, 2 cores; python 3.11.7, torch 2.15.0.")


def test_a_table_of_sources_has_long_heads_over_several_lines():
    lines = reports.to_text(REPORT).splitlines()
    start = next(i for i, line in enumerate(lines) if line.split() == ["in", "box"])
    assert lines[start : start + 4] == [
        "                in    box",
        "source       train   miou  images",
        "a|b            yes  0.500       3",
        "longer name     no      -      12",
    ]


def test_markdown_has_the_same_cells():
    lines = reports.to_markdown(REPORT, tables=("sources", "names", "nowhere")).splitlines()
    assert lines[0] == "| measure | value | 95% | source mean | unseen |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| box_miou | 0.712 | 0.700 to 0.725 | 0.600 | - |"
    assert "| a\\|b | yes | 0.500 | 3 |" in lines
    assert "| cat | 0.250 |" in lines


def test_a_report_of_nothing_can_be_read():
    assert reports.to_text(Report("nothing", {}, {})).startswith("nothing\n")
    assert reports.to_markdown(Report("nothing", {}, {}))


def test_versions_and_machine_say_what_numbers_depend_on():
    assert {"python", "torch", "numpy"} <= set(reports.versions())
    machine = reports.machine()
    assert machine["cores"] >= 1 and machine["memory_gb"] > 0.1 and machine["processor"]
    json.dumps(machine)


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(reports, "PACKAGES", ("numpy", "no-such-package-at-all"))
    assert set(reports.versions()) == {"python", "numpy"}


def test_peak_memory_grows_with_what_was_held():
    before = reports.peak_rss_mb()
    held = bytearray(int(before + 64) * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    assert before + 64 <= reports.peak_rss_mb() < 4 * before + 400
