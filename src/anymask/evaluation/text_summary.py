"""Records of a text evaluation to a Report.

- Of pixels, means over the names that are in an image: `miou`, `boundary_iou`, `precision`, `recall`; `ciou` is all
  shared pixels over all pixels of either (the cumulative IoU of referring segmentation).
- Of presence, over all names asked, where a name is found when it has a mask: `presence_precision`, `presence_recall`,
  their `presence_f1`, and `il_mcc`, the correlation of found and present (Matthews 1975). Without a name that is not
  there nothing can be invented: all but `presence_recall` are None then.
- Of objects, where a source has true instances: `ap50` and `ap` (COCO); `pm_f1`, the F1 of the masks of all names that
  are there taken together, mean over IoU 0.5 to 0.95; and `cgf1` = `pm_f1` times `il_mcc` (SAM 3, Carion et al. 2025;
  its code `sam3/eval/cgf1_eval.py`, from 0 to 1). Each mask takes its object in order of score, as for AP.

`_ci95_low` and `_ci95_high` are 95 % bootstrap intervals over images, `_source_mean` is the mean over sources. Numbers
are those of the first way of finding; the table `ablation` has all. What was not measured is None.

Memory: `peak_rss_mb` is the most of the whole run; `rss_mb` is the most that the process held after an image of one way
of finding. Stages of a way share it, as what a stage frees is not told.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from anymask.evaluation import reports
from anymask.evaluation.text import Answer, NameAnswer, TextRecord, TextSettings
from anymask.ops.average_precision import IOU_THRESHOLDS, average_precision
from anymask.ops.metrics import bootstrap_weights, percentile_interval
from anymask.types import Report

Value = float | int | None
Totals = Mapping[str, np.ndarray]

DRAWS = 500
ABLATED: tuple[str, ...] = (
    "ap50",
    "ap",
    "miou",
    "ciou",
    "boundary_iou",
    "presence_precision",
    "presence_recall",
    "cgf1",
    "seconds_per_image",
)

_NOT_FOUND = NameAnswer("", present=False, found=0)


def summarise(records: Sequence[TextRecord], settings: TextSettings, name: str) -> Report:
    """All numbers of a run, or of the part of it that there is.

    Tables: `ablation` with a row for each way of finding, `sources` and `names` of the first, `stages` in seconds, and
    `notes`, a `note` in each row.
    """
    rows = [record for record in records if record.answers]
    labels = list(rows[0].answers) if rows else []
    answers = {label: [row.answers[label] for row in rows] for label in labels}
    first = answers[labels[0]] if labels else []
    return Report(
        title=f"text to masks: {name} on {settings.annotations.name}",
        metrics=_metrics(rows, first, settings.seed) | {"images_without_names": len(records) - len(rows)},
        settings=reports.plain(settings),
        tables={
            "ablation": _ablation_rows(answers, settings.seed) if len(labels) > 1 else [],
            "sources": _source_rows(rows, first),
            "names": _name_rows(first),
            "stages": [row for label in labels for row in _stage_rows(label, answers[label])],
            "notes": [{"note": note} for note in _notes(records, first)],
        },
        seed=settings.seed,
        versions=reports.versions(),
        machine=reports.machine(),
    )


def _metrics(rows: Sequence[TextRecord], answers: Sequence[Answer], seed: int) -> dict[str, Value]:
    """Every measure with its interval and source mean, then counts, time and memory."""
    drawn = _measures(answers, bootstrap_weights(len(answers), seed=seed, draws=DRAWS)) if answers else {}
    by_source = [_numbers(members) for members in _by_source(rows, answers).values()]
    found: dict[str, Value] = {}
    for measure, value in _numbers(answers).items():
        found[measure] = value
        if measure in drawn:
            low, high = percentile_interval(drawn[measure])
            found[f"{measure}_ci95_low"], found[f"{measure}_ci95_high"] = _number(low), _number(high)
            means = [one for row in by_source if (one := row[measure]) is not None]
            found[f"{measure}_source_mean"] = _number(np.mean(means)) if means else None
    return found | _counts(answers) | {"peak_rss_mb": reports.peak_rss_mb()}


def _numbers(answers: Sequence[Answer]) -> dict[str, Value]:
    """Every measure over these images, and the seconds that one took."""
    seconds = [answer.seconds for answer in answers]
    values = {measure: _number(value[0]) for measure, value in _measures(answers, np.ones((1, len(answers)))).items()}
    return {**values, "seconds_per_image": _number(np.mean(seconds)) if seconds else None}


def _measures(answers: Sequence[Answer], weights: Float[np.ndarray, "b n"]) -> dict[str, Float[np.ndarray, "b"]]:
    """Each measure of each row of weights, which say how often an image counts."""
    total = {key: weights @ _per_image(answers, count) for key, count in _COUNTS.items()}
    ap = _ap(answers, weights)
    found = {"ap50": ap[:, 0], "ap": ap.mean(axis=1)}
    return found | {measure: of(total)[:, 0] for measure, of in _MEASURES.items()}


def _ap(answers: Sequence[Answer], weights: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b t"]:
    matched = [{one.name: one.matched for one in answer.names if one.matched is not None} for answer in answers]
    return average_precision(matched, weights)


def _per_image(answers: Sequence[Answer], count: Callable[[NameAnswer], Any]) -> Float[np.ndarray, "n k"]:
    """The sum over the names of each image, in one column or in one per IoU threshold."""
    sums = np.zeros((len(answers), np.atleast_1d(count(_NOT_FOUND)).size))
    for row, answer in zip(sums, answers, strict=True):
        for one in answer.names:
            row += count(one)
    return sums


def _known(value: float) -> Float[np.ndarray, "2"]:
    """What to add to a sum and to the number of its terms."""
    return np.asarray([0.0, 0.0] if np.isnan(value) else [value, 1.0])


def _objects(one: NameAnswer) -> Float[np.ndarray, "k"]:
    """Of the masks of a name that is there: at each threshold right ones, then all masks and objects."""
    if one.matched is None or not one.present:
        return np.zeros(2 * len(IOU_THRESHOLDS))
    right, wrong = one.matched.right.sum(axis=1), one.matched.wrong.sum(axis=1)
    return np.concatenate([right, right + wrong + one.matched.objects]).astype(np.float64)


_COUNTS: Mapping[str, Callable[[NameAnswer], Any]] = {
    "iou": lambda one: _known(one.iou),
    "boundary_iou": lambda one: _known(one.boundary_iou),
    "precision": lambda one: _known(one.precision),
    "recall": lambda one: _known(one.recall),
    "pixels": lambda one: np.asarray([one.overlap, one.union]),
    "found": lambda one: float(one.present and one.found > 0),
    "missed": lambda one: float(one.present and one.found == 0),
    "invented": lambda one: float(not one.present and one.found > 0),
    "refused": lambda one: float(not one.present and one.found == 0),
    "objects": _objects,
}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to have a share of."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _mean(key: str) -> Callable[[Totals], np.ndarray]:
    return lambda total: _share(total[key][:, :1], total[key][:, 1:])


def _mcc(total: Totals) -> np.ndarray:
    """Of found and present; 0 where all or nothing was found, NaN unless names there and names absent were asked."""
    tp, fn, fp, tn = (total[key] for key in ("found", "missed", "invented", "refused"))
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    defined = (tp + fn > 0) & (fp + tn > 0)
    return np.where(defined, (tp * tn - fp * fn) / np.where(spread > 0, spread, 1), np.nan)


def _if_absent(total: Totals, values: np.ndarray) -> np.ndarray:
    """NaN unless names that are absent were asked."""
    return np.where(total["invented"] + total["refused"] > 0, values, np.nan)


def _presence_f1(total: Totals) -> np.ndarray:
    found, wrong = 2 * total["found"], total["invented"] + total["missed"]
    return _if_absent(total, _share(found, found + wrong))


def _positive_f1(total: Totals) -> np.ndarray:
    """The F1 over all masks of names that are there, mean over IoU thresholds."""
    right, all_of_both = np.split(total["objects"], 2, axis=1)
    return np.asarray(_share(2 * right, all_of_both).mean(axis=1, keepdims=True))


_MEASURES: Mapping[str, Callable[[Totals], np.ndarray]] = {
    "miou": _mean("iou"),
    "ciou": _mean("pixels"),
    "boundary_iou": _mean("boundary_iou"),
    "precision": _mean("precision"),
    "recall": _mean("recall"),
    "presence_precision": lambda total: _if_absent(total, _share(total["found"], total["found"] + total["invented"])),
    "presence_recall": lambda total: _share(total["found"], total["found"] + total["missed"]),
    "presence_f1": _presence_f1,
    "il_mcc": _mcc,
    "pm_f1": _positive_f1,
    "cgf1": lambda total: _positive_f1(total) * _mcc(total),
}


def _ablation_rows(answers: Mapping[str, Sequence[Answer]], seed: int) -> list[dict[str, Any]]:
    """Each way of finding, and by how much its AP at 0.5 is above that of the first, over the same draws of images."""
    first, *_ = answers.values()
    weights = bootstrap_weights(len(first), seed=seed, draws=DRAWS)
    ap50 = {
        label: (_ap(some, np.ones((1, len(some))))[0, 0], _ap(some, weights)[:, 0]) for label, some in answers.items()
    }
    (value, drawn), *_ = ap50.values()
    table = []
    for label, some in answers.items():
        numbers = _numbers(some)
        low, high = percentile_interval(ap50[label][1] - drawn)
        gain = {"ap50_gain": ap50[label][0] - value, "ap50_gain_ci95_low": low, "ap50_gain_ci95_high": high}
        shown = {measure: numbers[measure] for measure in ABLATED}
        rest = {key: _number(one) for key, one in gain.items()}
        table.append({"way": label} | shown | rest | {"rss_mb": _rss_mb(some)})
    return table


def _source_rows(rows: Sequence[TextRecord], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    in_train = {row.source: row.in_train for row in rows}
    return [
        {"source": source, "in_train": in_train[source]} | _counts(members) | _numbers(members)
        for source, members in _by_source(rows, answers).items()
    ]


def _name_rows(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Each name over the images that it was asked in, the most frequent first."""
    by_name: dict[str, list[Answer]] = {}
    for answer in answers:
        for one in answer.names:
            by_name.setdefault(one.name, []).append(replace(answer, names=(one,)))
    table = [
        {"name": name, "present": sum(one.names[0].present for one in asked), "asked": len(asked)}
        | {measure: value for measure, value in _numbers(asked).items() if measure != "seconds_per_image"}
        for name, asked in by_name.items()
    ]
    return sorted(table, key=lambda row: (-row["present"], row["name"]))


def _by_source(rows: Sequence[TextRecord], answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Sources by name, those trained on first."""
    order = sorted({(not row.in_train, row.source) for row in rows})
    pairs = list(zip(rows, answers, strict=True))
    return {source: [answer for row, answer in pairs if row.source == source] for _, source in order}


def _counts(answers: Sequence[Answer]) -> dict[str, Value]:
    names = [one for answer in answers for one in answer.names]
    present = sum(one.present for one in names)
    return {"images": len(answers), "names_present": present, "names_absent": len(names) - present}


def _stage_rows(label: str, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Mean seconds an image of each stage that was told of, and the memory of the way that they are of."""
    stages = dict.fromkeys(stage for answer in answers for stage in answer.stages)
    seconds = {stage: np.mean([answer.stages.get(stage, 0) for answer in answers]) for stage in stages}
    return [
        {"way": label, "stage": stage, "seconds": _number(mean), "rss_mb": _rss_mb(answers)}
        for stage, mean in seconds.items()
    ]


def _rss_mb(answers: Sequence[Answer]) -> float:
    return max(answer.rss_mb for answer in answers)


def _notes(records: Sequence[TextRecord], answers: Sequence[Answer]) -> list[str]:
    """What a reader of the numbers must know."""
    notes, nameless = [], sum(not record.answers for record in records)
    if records and len(records) < records[0].total:
        notes.append(f"stopped before the end: these are {len(records)} of {records[0].total} images")
    if nameless:
        notes.append(f"{nameless} of {len(records)} images have no name to ask for and are left out")
    if answers and all(one.present for answer in answers for one in answer.names):
        notes.append(
            "no name was asked that is not there, so what is invented is not measured (presence_precision, presence_f1,"
            " il_mcc, cgf1); if the file names everything that is there, say so with --exhaustive"
        )
    return notes


def _number(value: Any, digits: int = 5) -> Value:
    return None if np.isnan(value) else round(float(value), digits)
