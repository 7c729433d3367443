"""The parts of benchmarks/everything.py that need no model: thresholds, matching, the cache, the report."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

import everything
from anymask.data.files import read_json
from anymask.evaluation.reports import read_report, write_report
from anymask.ops import rle
from everything_report import as_markdown, as_text, assemble, exponent, iou_threshold, matched_ious, recalled

SETTINGS = {
    "survivals": [5, 20, 100],
    "points_per_side": 32,
    "threads": 2,
    "seed": 0,
    "points_curve": [8, 16],
    "megapixels_curve": [1.0, 4.0],
}
ARGS = Namespace(peers=["transformers"], points_per_side=32, large_points_per_side=16, repeats=2, images=None, limit=3)


def squares(*sides: int) -> list[rle.Rle]:
    masks = np.zeros((len(sides), 20, 20), bool)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = True
    return list(rle.encode(masks))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.99])
def test_threshold_leaves_that_share_of_prompts(share: float) -> None:
    rng = np.random.default_rng(0)
    iou, stability = rng.uniform(0.7, 1, (200, 3)), rng.uniform(0.8, 1, (200, 3))
    found = iou_threshold(iou, stability, 0.8, share)
    survives = ((iou > found) & (stability >= 0.8)).any(axis=1)
    assert survives.sum() == round(200 * share)


def test_threshold_heeds_stability() -> None:
    iou, stability = np.array([[0.9, 0.99], [0.8, 0.7], [0.6, 0.5]]), np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert iou_threshold(iou, stability, 0.95, 1 / 3) == pytest.approx(0.85)
    stability[1:] = 0  # only the first prompt is stable, and a share of one third still leaves it
    assert iou_threshold(iou, stability, 0.95, 1 / 3) == pytest.approx(0.895)
    with pytest.raises(ValueError, match=r"share must leave some prompts of 3, of which 1 are stable"):
        iou_threshold(iou, stability, 0.95, 2 / 3)


def test_matching_is_one_to_one() -> None:
    ious = matched_ious(squares(10, 10, 5), squares(5, 10))
    assert sorted(ious) == [1.0, 1.0]
    assert matched_ious(squares(10, 10), squares(10, 5)).min() == pytest.approx(0.25)
    assert len(matched_ious([], squares(3))) == 0


def test_recall_counts_wanted_masks() -> None:
    assert recalled(squares(10), squares(10, 9, 4)) == 2  # 81 of 100 pixels are enough, 16 are not
    assert recalled([], squares(3)) == 0
    assert recalled(squares(3), []) == 0


def test_exponent() -> None:
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert exponent([1, 2, 4], [3.0, 3.0, 3.0]) == pytest.approx(0)


def results() -> dict[str, dict]:
    def one(seconds: float, peak: float, *sides: int) -> dict:
        return {"version": "1", "seconds": seconds, "peak_mb": peak, "masks": len(sides), "rles": squares(*sides)}

    found: dict[str, dict] = {}
    for survival in (5, 20, 100):
        found[f"everything/segment_anything/{survival}/0"] = one(80.0, 4000, 10, 5, 0)  # an empty one
        found[f"everything/transformers/{survival}/0"] = one(100.0, 3000, 10)
        found[f"everything/transformers/{survival}/1"] = one(60.0, 3500, 10)
        found[f"everything/anymask/{survival}/0"] = one(16, 500, 10)
        found[f"everything/anymask exact/{survival}/0"] = one(20, 600, 5, 10)
    found["memory/segment_anything"] = one(50, 9000)
    found["memory/transformers"] = {"error": "out of memory (24 GB)"}
    found["memory/anymask"] = one(5, 900)
    found |= {"encode/transformers": {"seconds": 8.0}, "encode/anymask fp32": {"seconds": 4.0}}
    found |= {"encode/anymask int8": {"error": "ValueError: no int8"}}
    found["curve/points/anymask"] = {"seconds": [1.0, 4.0]}
    found["recall"] = {"images": [{"image": "a", "exact": 3, "default": 3, "recalled": 3}] * 2}
    rng = np.random.default_rng(0)
    found["scores"] = {
        "predicted_iou": rng.uniform(0.7, 1, (100, 3)).tolist(),
        "stability_score": rng.uniform(0.9, 1, (100, 3)).tolist(),
    }
    return found


def test_report_holds_the_ratios(tmp_path: Path) -> None:
    report = assemble(results(), SETTINGS)
    metrics = report.metrics
    assert (metrics["speedup_default"], metrics["speedup_exact"]) == (5, 4)  # both of the peers take 80 s
    assert metrics["memory_ratio"] == pytest.approx(0.1)
    assert (metrics["exact_matched_iou"], metrics["exact_count_difference"]) == (1, 0)
    assert (metrics["encode_speedup_fp32"], metrics["encode_speedup_int8"]) == (2, None)
    assert (metrics["recall_default"], metrics["megapixels_exponent"]) == (1, None)
    assert metrics["points_exponent"] == pytest.approx(1)
    assert [row["name"] for row in report.tables["peers"]] == ["segment_anything", "transformers", "ultralytics"]
    assert report.tables["peers"][1]["error"] == "out of memory (24 GB)"
    assert report.tables["parity"][1]["recall_default"] == 0.5
    assert [row["prompts_kept"] for row in report.tables["thresholds"]] == [5, 20, 100]
    assert report.tables["thresholds"][1]["masks_sure"] > report.tables["thresholds"][1]["masks_kept"] >= 20
    met = {row["target"]: row["met"] for row in report.tables["targets"]}
    assert met["speedup_default"] is True
    assert met["pocket_480_seconds"] is None
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json").metrics == metrics
    assert "out of memory" in as_text(report)
    assert "| segment_anything | 80.0 |" in as_markdown(report)


def test_report_of_nothing() -> None:
    report = assemble({}, SETTINGS)
    assert set(report.metrics.values()) == {None}
    assert "speedup_default" in as_text(report)


def test_plan_turns_the_order() -> None:
    jobs = everything.plan(ARGS, {5: {}, 20: {}, 100: {}})
    names = [name for name in jobs if name.startswith("everything/") and "/20/" in name]
    assert names == [
        "everything/transformers/20/0",
        "everything/anymask/20/0",
        "everything/anymask exact/20/0",
        "everything/anymask exact/20/1",
        "everything/anymask/20/1",
        "everything/transformers/20/1",
    ]
    assert len(jobs["recall"]["images"]) == 3


def test_cache_goes_on_and_measures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(job: everything.Job) -> dict:
        ran.append(job["kind"])
        return {"error": "no"} if job["kind"] == "bad" else {"seconds": 1.0}

    monkeypatch.setattr(everything, "run", run)
    path = tmp_path / "results.json"
    for _ in range(2):
        cache = everything.Cache(path, None, 2)
        assert cache.get("first", {"kind": "good"}) == {"seconds": 1.0}
        assert cache.get("second", {"kind": "bad"}) == {"error": "no"}
    assert ran == ["good", "bad", "bad"]  # what failed is tried again, what is known is not
    assert everything.Cache(path, None, 1).get("first", {"kind": "good"}) is not None
    assert ran[3:] == ["good"]  # other threads, another measurement
    chosen = everything.Cache(path, ["first"], 1)
    assert chosen.get("first", {"kind": "good"}) is not None
    assert ran[4:] == ["good"]
    assert chosen.get("third", {"kind": "good"}) is None
    assert chosen.get("weights", {"kind": "weights"}, needed=True) is not None
    assert sorted(read_json(path)) == ["first", "second", "weights"]


def test_photos_of_a_folder(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").touch()
    assert [Path(name).stem for name in everything.photos(tmp_path, 3)] == ["0", "2", "4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="must hold photos"):
        everything.photos(tmp_path / "empty", None)


def test_document_is_filled_again_and_again(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"above\n{everything.BEGIN}\nold\n{everything.END}\nbelow\n")
    for tables in ("| a |", "| b |"):
        everything.fill(document, tables)
    assert document.read_text() == f"above\n{everything.BEGIN}\n\n| b |\n{everything.END}\nbelow\n"
    document.write_text("nothing")
    with pytest.raises(SystemExit, match="where the tables go"):
        everything.fill(document, "")


def test_figure_is_drawn(tmp_path: Path) -> None:
    from everything_figure import draw

    draw(assemble(results(), SETTINGS), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
