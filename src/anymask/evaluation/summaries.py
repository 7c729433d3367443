"""Records of a promptable evaluation to a Report.

A mean is over masks (over asked names for text); `_ci95_low` and `_ci95_high` are its 95 % bootstrap interval over
images, `_source_mean` is the mean of the means of the sources. Keys without `_unseen` are over the sources that the
model was trained on, keys with it over the others. What was not measured is None.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anymask.evaluation import reports
from anymask.evaluation.baselines import BASELINES
from anymask.evaluation.naming import NameRecord
from anymask.evaluation.promptable import CLICK_COUNTS, NOC_THRESHOLDS, ImageRecord, PromptableSettings
from anymask.models.protocol import Model
from anymask.ops.metrics import bootstrap_interval, calibration_error, reliability, roc_auc
from anymask.types import Report

Value = float | int | None

NAME_MEASURES: dict[str, Callable[[NameRecord], float]] = {
    "text_miou": lambda name: name.iou,
    "text_false_positive_rate": lambda name: float("nan") if name.present else float(name.found),
    "text_precision": lambda name: name.precision,
    "text_recall": lambda name: name.recall,
}
MASK_MEASURES = (
    *(f"click{count}_miou" for count in CLICK_COUNTS),
    "click1_best_miou",
    *NOC_THRESHOLDS,
    "box_miou",
    "box_boundary_iou",
)
CALIBRATED = ("click1", "box")  # prompts of which the predicted IoU is compared with the real one
ROC_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
BASELINE_MEASURES = tuple(f"{name}_{measure}" for name in BASELINES for measure in ("miou", "boundary_iou"))


def summarise(records: Iterable[ImageRecord], settings: PromptableSettings, model: Model) -> Report:
    """All numbers of a run, or of the part of it that there is.

    Tables: `sources` and `names` with a row each; of the sources trained on `reliability`, the predicted IoU against
    the real one, and `presence_roc`, the names kept and the names wrongly found at each threshold of presence.
    """
    rows = list(records)
    trained, unseen = [row for row in rows if row.in_train], [row for row in rows if not row.in_train]
    metrics = _metrics(trained, settings)
    metrics |= {f"{key}_unseen": value for key, value in _metrics(unseen, settings).items()}
    return Report(
        title=f"promptable segmentation: {model.name} on {settings.annotations.name}",
        metrics=metrics,
        settings=reports.plain(settings),
        tables={
            "sources": _source_rows(rows, settings),
            "names": _name_rows(rows),
            "reliability": _reliability_rows(trained),
            "presence_roc": _roc_rows(trained),
        },
        seed=settings.seed,
        versions=reports.versions(),
        machine=reports.machine(),
    )


def _metrics(rows: Sequence[ImageRecord], settings: PromptableSettings) -> dict[str, Value]:
    """Means with their intervals and source means, then the numbers that have none."""
    by_source = _by_source(rows)
    found: dict[str, Value] = {}
    for measure in _measures(settings):
        low, high = bootstrap_interval([_column(row, measure) for row in rows], seed=settings.seed)
        found[measure] = _mean(rows, measure)
        found[f"{measure}_ci95_low"], found[f"{measure}_ci95_high"] = _number(low), _number(high)
        means = [mean for members in by_source.values() if (mean := _mean(members, measure)) is not None]
        found[f"{measure}_source_mean"] = _number(np.mean(means)) if means else None
    return found | _plain_numbers(rows) | {"peak_rss_mb": reports.peak_rss_mb()}


def _plain_numbers(rows: Sequence[ImageRecord]) -> dict[str, Value]:
    names = [name for row in rows for name in row.names]
    present = np.asarray([name.present for name in names], bool)
    return {
        **{f"{prompt}_calibration_error": _number(calibration_error(*_pair(rows, prompt))) for prompt in CALIBRATED},
        "text_presence_auc": _number(roc_auc(np.asarray([name.presence for name in names], np.float64), present)),
        "encode_ms": _median_ms([row.encode_seconds for row in rows]),
        "click_ms": _median_ms([row.click_seconds for row in rows]),
        "images": len(rows),
        "masks": sum(row.masks for row in rows),
        "names_present": int(present.sum()),
        "names_absent": int((~present).sum()),
    }


def _source_rows(rows: Sequence[ImageRecord], settings: PromptableSettings) -> list[dict[str, Any]]:
    return [
        {"source": source, "in_train": members[0].in_train}
        | {measure: _mean(members, measure) for measure in _measures(settings)}
        | _plain_numbers(members)
        for source, members in _by_source(rows).items()
    ]


def _name_rows(rows: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """Each name over the images that it was asked in, the most frequent first."""
    by_name: dict[str, list[NameRecord]] = {}
    for asked in (name for row in rows for name in row.names):
        by_name.setdefault(asked.name, []).append(asked)
    table = [
        {"name": name, "present": sum(one.present for one in asked), "absent": sum(not one.present for one in asked)}
        | {measure: _nan_mean([value(one) for one in asked]) for measure, value in NAME_MEASURES.items()}
        for name, asked in by_name.items()
    ]
    return sorted(table, key=lambda row: (-row["present"], row["name"]))


def _pair(rows: Sequence[ImageRecord], prompt: str) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The predicted IoU of every answer to a kind of prompt, and the real one."""
    names = (f"{prompt}_predicted_iou", f"{prompt}_miou")
    predicted, real = (np.concatenate([np.zeros(0), *(_column(row, name) for row in rows)]) for name in names)
    return predicted, real


def _reliability_rows(rows: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "from": edge, "masks": count, "predicted_iou": _number(said), "real_iou": _number(came)}
        for prompt in CALIBRATED
        for edge, count, said, came in reliability(*_pair(rows, prompt))
    ]


def _roc_rows(rows: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """Of the names asked, at each threshold: the share of those present and of those absent that reach it."""
    names = [name for row in rows for name in row.names]
    presence = np.asarray([name.presence for name in names], np.float64)
    present = np.asarray([name.present for name in names], bool)
    if not present.any() or present.all():
        return []
    return [
        {
            "threshold": threshold,
            "true_positive_rate": _number((presence[present] >= threshold).mean()),
            "false_positive_rate": _number((presence[~present] >= threshold).mean()),
        }
        for threshold in ROC_THRESHOLDS
    ]


def _measures(settings: PromptableSettings) -> tuple[str, ...]:
    return (*MASK_MEASURES, *(BASELINE_MEASURES if settings.baselines else ()), *NAME_MEASURES)


def _column(row: ImageRecord, measure: str) -> Float[np.ndarray, "_"]:
    """The values of one measure in one image: one per mask or per name, none if it was not measured."""
    if measure in NAME_MEASURES:
        return np.asarray([NAME_MEASURES[measure](name) for name in row.names], np.float64)
    return row.values.get(measure, np.zeros(0))


def _by_source(rows: Sequence[ImageRecord]) -> dict[str, list[ImageRecord]]:
    """Sources by name, the trained ones first."""
    order = sorted({(not row.in_train, row.source) for row in rows})
    return {source: [row for row in rows if row.source == source] for _, source in order}


def _mean(rows: Sequence[ImageRecord], measure: str) -> Value:
    return _nan_mean(np.concatenate([np.zeros(0), *(_column(row, measure) for row in rows)]))


def _nan_mean(values: Sequence[float] | Float[np.ndarray, "_"]) -> Value:
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return _number(known.mean()) if len(known) else None


def _median_ms(seconds: Sequence[float]) -> Value:
    known = [one for one in seconds if not np.isnan(one)]
    return _number(1000 * np.median(known), digits=2) if known else None


def _number(value: Any, digits: int = 5) -> Value:
    return None if np.isnan(value) else round(float(value), digits)
