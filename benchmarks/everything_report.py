"""What benchmarks/everything.py makes of its measurements: thresholds, matched masks, the Report and its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from anymask.evaluation.reports import machine, to_markdown, to_text, versions
from anymask.ops import rle
from anymask.ops.rle import Rle
from anymask.types import Report

PEERS = ("segment_anything", "transformers", "ultralytics")
OURS = ("anymask", "anymask exact")
SURVIVALS = (5, 20, 100)  # percent of the prompts
TARGET_SURVIVAL = 20
STABILITY = 0.95  # SAM's threshold
REFERENCE = "segment_anything"
RECALLED = 0.75  # IoU from which a mask counts as found again
TARGETS = (
    ("speedup_default", "at least", 4.0),
    ("speedup_exact", "at least", 2.0),
    ("memory_ratio", "at most", 0.25),
    ("memory_mb", "at most", 1500.0),
    ("exact_matched_iou", "at least", 0.99),
    ("recall_default", "at least", 0.95),
    ("encode_speedup_fp32", "at least", 1.6),
    ("encode_speedup_int8", "at least", 3.0),
    ("pocket_480_seconds", "at most", 4.0),
    ("points_exponent", "at most", 1.0),
    ("megapixels_exponent", "at most", 1.0),
)

Results = Mapping[str, Mapping[str, Any]]


def iou_threshold(
    predicted_iou: np.ndarray, stability_score: np.ndarray, stability_score_thresh: float, share: float
) -> float:
    """The `pred_iou_thresh` above which `share` of the prompts keep at least one of their candidates (n c).

    It lies in the middle of two scores, so that the last digits of a float decide nothing.
    """
    best = np.where(stability_score >= stability_score_thresh, predicted_iou, -np.inf).max(axis=1)
    ranked = np.sort(best)[::-1]
    kept = round(share * len(ranked))
    if not 0 < kept < len(ranked) or not np.isfinite(ranked[kept - 1]):
        raise ValueError(
            f"share must leave some prompts of {len(ranked)}, of which {np.isfinite(best).sum()} are stable"
        )
    below = ranked[kept] if np.isfinite(ranked[kept]) else ranked[kept - 1] - 0.01
    return float(ranked[kept - 1] + below) / 2


def thresholds(scores: Mapping[str, Any], survivals: Sequence[int]) -> dict[int, dict[str, float]]:
    """Both of SamAutomaticMaskGenerator for each survival, from the scores of all candidates."""
    ious, stabilities = np.asarray(scores["predicted_iou"]), np.asarray(scores["stability_score"])
    found = {}
    for survival in survivals:
        all_pass = survival == 100
        chosen = 0.0 if all_pass else iou_threshold(ious, stabilities, STABILITY, survival / 100)
        found[survival] = {"pred_iou_thresh": chosen, "stability_score_thresh": 0.0 if all_pass else STABILITY}
    return found


def matched_ious(first: Sequence[Rle], second: Sequence[Rle]) -> np.ndarray:
    """IoU of the pairs of a one-to-one matching whose sum of IoU is highest; as many as the shorter side has."""
    overlaps = rle.iou(first, second)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return overlaps[rows, columns]


def recalled(found: Sequence[Rle], wanted: Sequence[Rle], least: float = RECALLED) -> int:
    """How many of `wanted` have a mask in `found` with that IoU or more."""
    overlaps = rle.iou(wanted, found)
    return int((overlaps.max(axis=1) >= least).sum()) if overlaps.size else 0


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size with which the time grows: the slope of the line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def assemble(results: Results, settings: Mapping[str, Any]) -> Report:
    """Every number of the issue from what was measured; None where something is missing."""
    rows = {name: contender_row(results, name, settings) for name in (*PEERS, *OURS)}
    parity = [parity_row(results, survival) for survival in settings["survivals"]]
    tables = {
        "peers": [rows[name] for name in PEERS],
        "anymask": [rows[name] for name in OURS],
        "thresholds": threshold_rows(results, settings["survivals"]),
        "parity": [row for row in parity if row["masks"] is not None],
        "encoders": encoder_rows(results),
        **curve_tables(results, settings),
        "recall": results.get("recall", {}).get("images", []),
    }
    metrics = {**contests(rows), **of_parity(parity), **of_encoders(tables["encoders"]), **of_pocket(results, tables)}
    targets = [target_row(metrics, *target) for target in TARGETS]
    used = {f"peer {row['name']}": row["version"] for row in tables["peers"] if row["version"]}
    place = {**machine(), "threads": settings["threads"]}
    title = "Everything in a photo, beside the peers"
    about = {"seed": settings["seed"], "versions": {**versions(), **used}, "machine": place}
    return Report(title, metrics, settings, {"targets": targets, **tables}, **about)


def threshold_rows(results: Results, survivals: Sequence[int]) -> list[dict[str, Any]]:
    """What each threshold lets pass, before duplicates are removed."""
    scores = results.get("scores")
    if scores is None:
        return []
    rows = []
    for survival, limits in thresholds(scores, survivals).items():
        sure = np.asarray(scores["predicted_iou"]) > limits["pred_iou_thresh"]
        kept = sure & (np.asarray(scores["stability_score"]) >= limits["stability_score_thresh"])
        counts = {"prompts": len(kept), "prompts_kept": int(kept.any(1).sum())}
        counts |= {"masks_sure": int(sure.sum()), "masks_kept": int(kept.sum())}
        rows.append({"survival": survival, **limits, **counts})
    return rows


def contender_row(results: Results, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds (median), peak memory (highest) and masks at each survival, and the same on the large photo."""
    large = results.get(f"memory/{name}", {})
    row: dict[str, Any] = {"name": name, "version": large.get("version"), "error": large.get("error")}
    for survival in settings["survivals"]:
        rounds = [result for key, result in results.items() if key.startswith(f"everything/{name}/{survival}/")]
        good = [result for result in rounds if "error" not in result]
        row["version"] = good[0]["version"] if good else row["version"]
        row["error"] = row["error"] or next((result["error"] for result in rounds if "error" in result), None)
        row[f"seconds_{survival}"] = median(result["seconds"] for result in good) if good else None
        row[f"masks_{survival}"] = good[0]["masks"] if good else None
        row[f"peak_mb_{survival}"] = max(result["peak_mb"] for result in good) if good else None
    return row | {f"{key}_large": large.get(key) for key in ("seconds", "masks", "peak_mb")}


def contests(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Ours against the fastest and against the most modest of the peers."""
    seconds, peak = f"seconds_{TARGET_SURVIVAL}", "peak_mb_large"
    fastest, smallest = (least(rows[name].get(key) for name in PEERS) for key in (seconds, peak))
    return {
        "speedup_default": ratio(fastest, rows["anymask"].get(seconds)),
        "speedup_exact": ratio(fastest, rows["anymask exact"].get(seconds)),
        "memory_ratio": ratio(rows["anymask"][peak], smallest),
        "memory_ratio_exact": ratio(rows["anymask exact"][peak], smallest),
        "memory_mb": rows["anymask"][peak],
        "memory_mb_exact": rows["anymask exact"][peak],
    }


def parity_row(results: Results, survival: int) -> dict[str, Any]:
    """The masks of `exact=True` matched with those of the authors' code; those of the default beside it.

    Without empty masks, which the authors' code gives where the stability threshold is 0.
    """
    wanted, exact, default = (
        not_empty(results.get(f"everything/{name}/{survival}/0", {}).get("rles"))
        for name in (REFERENCE, "anymask exact", "anymask")
    )
    row: dict[str, Any] = {"survival": survival, "reference": None if wanted is None else len(wanted)}
    row |= {"masks": None, "lowest_iou": None, "mean_iou": None, "recall_default": None}
    if wanted is not None and exact is not None:
        ious = matched_ious(exact, wanted)
        row |= {"masks": len(exact), "lowest_iou": float(ious.min(initial=1)), "mean_iou": float(ious.mean())}
        if default is not None:
            row["recall_default"] = recalled(default, wanted) / len(wanted)
    return row


def not_empty(masks: Sequence[Rle] | None) -> list[Rle] | None:
    """Those with a pixel; None if there is no result."""
    return None if masks is None else [one for one, area in zip(masks, rle.areas(masks), strict=True) if area]


def of_parity(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """The worst pair of all survivals, and by how many masks the counts differ."""
    known = [row for row in rows if row["masks"] is not None]
    return {
        "exact_matched_iou": least(row["lowest_iou"] for row in known),
        "exact_count_difference": max((abs(row["masks"] - row["reference"]) for row in known), default=None),
    }


def encoder_rows(results: Results) -> list[dict[str, Any]]:
    """Seconds of each encoder that was measured."""
    named = {key.removeprefix("encode/"): one for key, one in results.items() if key.startswith("encode/")}
    return [{"encoder": name, "seconds": one.get("seconds"), "error": one.get("error")} for name, one in named.items()]


def of_encoders(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How many times as fast as transformers' default."""
    seconds = {row["encoder"]: row["seconds"] for row in rows}
    peer = seconds.get("transformers")
    return {f"encode_speedup_{dtype}": ratio(peer, seconds.get(f"anymask {dtype}")) for dtype in ("fp32", "int8")}


def curve_tables(results: Results, settings: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Seconds of pocket, default and exact, for each grid and for each photo size."""
    sizes = {"points": [side**2 for side in settings["points_curve"]], "megapixels": settings["megapixels_curve"]}
    tables = {}
    for axis, values in sizes.items():
        default, exact = (results.get(f"curve/{axis}/{name}", {}).get("seconds") for name in OURS)
        blank = [None] * len(values)
        rows = zip(values, default or blank, exact or blank, strict=True)
        tables[f"curve_{axis}"] = [{axis: size, "seconds_default": a, "seconds_exact": b} for size, a, b in rows]
    return tables


def of_pocket(results: Results, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float | None]:
    """Quality, time on a small photo, growth of time."""
    images = tables["recall"]
    exact = sum(row["exact"] for row in images)
    found: dict[str, float | None] = {
        "recall_default": sum(row["recalled"] for row in images) / exact if exact else None,
        "pocket_480_seconds": first(results.get("pocket/anymask", {}).get("seconds")),
        "pocket_480_seconds_exact": first(results.get("pocket/anymask exact", {}).get("seconds")),
    }
    for axis in ("points", "megapixels"):
        rows = tables[f"curve_{axis}"]
        known = all(row["seconds_default"] is not None for row in rows)
        steep = exponent([row[axis] for row in rows], [row["seconds_default"] for row in rows]) if known else None
        found[f"{axis}_exponent"] = steep
    return found


def target_row(metrics: Mapping[str, Any], name: str, side: str, bound: float) -> dict[str, Any]:
    """A number beside what it should be."""
    value = metrics[name]
    met = None if value is None else value >= bound if side == "at least" else value <= bound
    return {"target": name, "value": value, "bound": f"{side} {bound:g}", "met": met}


def as_text(report: Report) -> str:
    """For a terminal."""
    return to_text(shown(report), tuple(shown(report).tables))


def as_markdown(report: Report) -> str:
    """For docs/everything.md."""
    return to_markdown(shown(report), tuple(shown(report).tables))


def shown(report: Report) -> Report:
    """The same in tables that are narrow enough to read."""
    tables, survivals = report.tables, report.settings["survivals"]
    contenders = [*tables["peers"], *tables["anymask"]]
    times = [
        {"contender": row["name"]}
        | {f"seconds, {n} %": row[f"seconds_{n}"] for n in survivals}
        | {f"masks, {n} %": row[f"masks_{n}"] for n in survivals}
        | {"peak MB": whole(row.get(f"peak_mb_{TARGET_SURVIVAL}"))}
        for row in contenders
    ]
    large = [
        {"contender": row["name"], "12 MP: peak MB": whole(row["peak_mb_large"]), "seconds": row["seconds_large"]}
        | {"masks": row["masks_large"]}
        for row in contenders
    ]
    errors = [{"contender": row["name"], "why not": row["error"]} for row in contenders if row["error"]]
    named = ("targets", "thresholds", "parity", "encoders", "curve_points", "curve_megapixels")
    chosen = {"times": times, "large": large, "errors": errors, **{name: tables[name] for name in named}}
    return replace(report, metrics={}, tables={name: rows for name, rows in chosen.items() if rows})


def least(values: Any) -> float | None:
    """The smallest of those that are known."""
    return min((value for value in values if value is not None), default=None)


def ratio(over: float | None, under: float | None) -> float | None:
    """Of two numbers that are known."""
    return None if over is None or under is None else over / under


def first(values: Sequence[float] | None) -> float | None:
    """Of those, if any were measured."""
    return None if values is None else values[0]


def whole(value: float | None) -> int | None:
    """Megabytes as they are read."""
    return None if value is None else round(value)
