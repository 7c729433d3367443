"""What was judged in a case study to a Report: tables of classes, controls, confusion and presence, row by row.

Means are over images and runs; deviation, least and most are over images, of the mean of the runs. `_ci95_low` and
`_ci95_high` are the 95 % bootstrap interval over images; an image brings all its runs. Of a margin, which is the IoU of
the embedding less that of a control, the interval is of the differences image by image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from anymask.adapting.controls import BEST_PHRASE, INITIALISER, SEED_PHRASE, Judged
from anymask.evaluation import reports
from anymask.ops.metrics import bootstrap_interval, roc_auc
from anymask.types import Report

Row = dict[str, Any]
# How the lower ends of ranges are called, how the upper ones, and how both together.
_RANGES = {"_ci95_low": ("_ci95_high", "95%"), "_least": ("_most", "range")}


@dataclass(frozen=True, eq=False)
class ClassResult:
    """All that was judged of one class.

    `phrases` have their mean IoU on the images learned from; `embeddings` and `seed_phrases` are those of every class,
    by class, on the held-out images of this one.
    """

    name: str
    seed_phrase: str
    best_phrase: str
    phrases: Mapping[str, float]
    train: Judged
    controls: Mapping[str, Judged]
    embeddings: Mapping[str, Judged]
    seed_phrases: Mapping[str, Judged]

    @property
    def end(self) -> Judged:
        """Its own embedding on the held-out images."""
        return self.embeddings[self.name]


def summarise(results: Sequence[ClassResult], title: str, settings: Mapping[str, Any], seed: int) -> Report:
    """The Report of a study, its tables in the order in which one reads them."""
    controls = [row for one in results for row in _control_rows(one, seed)]
    return Report(
        title=title,
        metrics={key: value for one in results for key, value in _metrics(one, controls, seed).items()},
        settings=settings,
        tables={
            "classes": [_class_row(one, seed) for one in results],
            "controls": controls,
            "confusion": _confusion_rows(results),
            "presence": [row for one in results for row in _presence_rows(one.name, results)],
            "phrases": [
                {"class": one.name, "phrase": phrase, "train_iou": _number(iou), "chosen": phrase == one.best_phrase}
                for one in results
                for phrase, iou in sorted(one.phrases.items(), key=lambda pair: -pair[1])
            ],
            "images": [row for one in results for row in _image_rows(one)],
        },
        seed=seed,
        versions=reports.versions(),
        machine=reports.machine(),
    )


def readable(report: Report) -> Report:
    """The same with tables for people: intervals in one column, and the confusion as a matrix of IoU and score."""
    folded = {name: [_folded(row) for row in rows] for name, rows in report.tables.items()}
    matrix: dict[str, Row] = {}
    for row in report.tables["confusion"]:
        cell = f"{row['iou']:.3f} ({row['score']:.3f})"
        matrix.setdefault(row["embedding"], {"embedding": row["embedding"]})[f"IoU (score) on {row['class']}"] = cell
    return replace(report, tables=folded | {"confusion": list(matrix.values())})


def _folded(row: Mapping[str, Any]) -> Row:
    """Both ends of a range as one column, in the place of the lower."""
    found = Row()
    for key, value in row.items():
        low = next((end for end in _RANGES if key.endswith(end)), None)
        if low is not None:
            base, (high, name) = key.removesuffix(low), _RANGES[low]
            found[f"{base} {name}"] = f"{value:.3f} to {row[base + high]:.3f}"
        elif not key.endswith(tuple(high for high, _ in _RANGES.values())):
            found[key] = value
    return found


def _metrics(one: ClassResult, controls: Sequence[Row], seed: int) -> dict[str, float | None]:
    """The few numbers of a class that a reader asks for first."""
    margins = [row["margin"] for row in controls if row["class"] == one.name]
    found: dict[str, float | None] = {}
    for part, judged in (("start", one.controls[INITIALISER]), ("end", one.end)):
        found |= {f"{one.name}_{part}_{key}": value for key, value in _mean_with_interval(judged.ious, seed).items()}
    return found | {f"{one.name}_gap": _gap(one), f"{one.name}_least_margin": min(margins)}


def _class_row(one: ClassResult, seed: int) -> Row:
    row: Row = {"class": one.name, "train_images": len(one.train.names), "images": len(one.end.names)}
    row["runs"] = len(one.end.ious)
    for part, judged in (("start", one.controls[INITIALISER]), ("end", one.end)):
        per_image = judged.ious.mean(axis=0)
        row |= {f"{part}_{key}": value for key, value in _mean_with_interval(judged.ious, seed).items()}
        row |= {f"{part}_deviation": _number(per_image.std())}
        row |= {f"{part}_least": _number(per_image.min()), f"{part}_most": _number(per_image.max())}
    row["end_deviation_of_runs"] = _number(one.end.ious.mean(axis=1).std()) if row["runs"] > 1 else None
    return row | {"train_iou": _number(one.train.ious.mean()), "gap": _gap(one)}


def _gap(one: ClassResult) -> float:
    """How much worse the embedding does on held-out images than on those it learned from."""
    return _number(one.train.ious.mean() - one.end.ious.mean())


def _control_rows(one: ClassResult, seed: int) -> list[Row]:
    texts = {SEED_PHRASE: one.seed_phrase, BEST_PHRASE: one.best_phrase}
    end, rows = one.end.ious.mean(axis=0), []
    for name, judged in one.controls.items():
        margins = end - judged.ious.mean(axis=0)
        low, high = bootstrap_interval(list(margins[:, None]), seed=seed)
        row: Row = {"class": one.name, "control": name, "text": texts.get(name, "")}
        row |= _mean_with_interval(judged.ious, seed) | {"margin": _number(margins.mean())}
        rows.append(row | {"margin_ci95_low": _number(low), "margin_ci95_high": _number(high)})
    return rows


def _confusion_rows(results: Sequence[ClassResult]) -> list[Row]:
    return [
        {
            "embedding": embedding,
            "class": one.name,
            "iou": _number(one.embeddings[embedding].ious.mean()),
            "score": _number(one.embeddings[embedding].scores.mean()),
        }
        for embedding in (result.name for result in results)
        for one in results
    ]


def _presence_rows(name: str, results: Sequence[ClassResult]) -> list[Row]:
    """How sure the model is of a class on its own images and on those of the others; nothing of a single class."""
    rows = []
    for prompt in ("embedding", SEED_PHRASE):
        tables = {one.name: one.embeddings if prompt == "embedding" else one.seed_phrases for one in results}
        there = tables.pop(name)[name]
        if tables:
            absent = [table[name] for table in tables.values()]
            rows.append({"class": name, "prompt": prompt} | _presence(there, absent))
    return rows


def _presence(there: Judged, absent: Sequence[Judged]) -> Row:
    """Mean scores, the share of images in which the class is said to be, and the chance that the two are told apart."""
    own, others = there.scores.mean(axis=0), np.concatenate([one.scores.mean(axis=0) for one in absent])
    present = np.arange(len(own) + len(others)) < len(own)
    return {
        "score": _number(own.mean()),
        "score_without": _number(others.mean()),
        "found": _number(there.found.mean()),
        "found_without": _number(np.concatenate([one.found.mean(axis=0) for one in absent]).mean()),
        "auc": _number(roc_auc(np.concatenate([own, others]), present)),
    }


def _image_rows(one: ClassResult) -> list[Row]:
    columns = {
        "start_iou": one.controls[INITIALISER].ious,
        "seed_phrase_iou": one.controls[SEED_PHRASE].ious,
        "end_iou": one.end.ious,
        "score": one.end.scores,
    }
    return [
        {"class": one.name, "image": name} | {key: _number(values[:, i].mean()) for key, values in columns.items()}
        for i, name in enumerate(one.end.names)
    ]


def _mean_with_interval(ious: Float[np.ndarray, "r n"], seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(list(ious.T), seed=seed)
    return {"iou": _number(ious.mean()), "iou_ci95_low": _number(low), "iou_ci95_high": _number(high)}


def _number(value: Any) -> float:
    return round(float(value), 5)
