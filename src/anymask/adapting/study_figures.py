"""The pictures of a case study: bars with intervals, the confusion matrix, and masks on held-out images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from anymask.adapting.records import grid, panel
from anymask.types import Image, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GREY, _BAR, _LEARNED = "#202124", "#76787e", "#b4bccb", "#3c6bb4"
_SHORTEN = 34  # letters of a label


@dataclass(frozen=True, eq=False)
class Example:
    """A held-out image of a class, its mask, and what seed phrase and embedding find."""

    image: Image
    truth: Bool[np.ndarray, "h w"]
    seed_phrase: Bool[np.ndarray, "h w"]
    embedding: Bool[np.ndarray, "h w"]
    seed_phrase_iou: float
    embedding_iou: float


def draw_study(report: Report) -> "Figure":
    """A panel of bars for each class, the embedding above its controls, and beside them the confusion matrix."""
    from matplotlib.figure import Figure

    classes, controls = report.tables["classes"], report.tables["controls"]
    panels = [[_learned(row), *(one for one in controls if one["class"] == row["class"])] for row in classes]
    heights = [0.3 * len(rows) + 0.7 for rows in panels]
    figure = Figure(figsize=(11, max(3.6, sum(heights))), layout="constrained")
    bars, confusion = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.7, 1))[0]
    figure.suptitle(report.title, fontsize=12, color=_INK)
    grids = bars.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, row, rows in zip(grids[:, 0], classes, panels, strict=True):
        _draw_bars(axes, str(row["class"]), rows)
    _draw_confusion(confusion.subplots(), [str(row["class"]) for row in classes], report.tables["confusion"])
    return figure


def draw_examples(classes: Mapping[str, Sequence[Example]]) -> "Figure":
    """A block for each class, a column for each example: image, truth, seed phrase and embedding below each other."""
    columns = max(map(len, classes.values()))
    blank = ("", np.full((1, 1, 3), 255, np.uint8))
    rows = [row for name, examples in classes.items() for row in _block(name, examples)]
    return grid([row + [blank] * (columns - len(row)) for row in rows])


def _block(name: str, examples: Sequence[Example]) -> list[list[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]]:
    return [
        [(f"{name}: {one.image.name}", panel(one.image, None)) for one in examples],
        [("truth", panel(one.image, one.truth)) for one in examples],
        [(f"seed phrase, IoU {one.seed_phrase_iou:.2f}", panel(one.image, one.seed_phrase)) for one in examples],
        [(f"embedding, IoU {one.embedding_iou:.2f}", panel(one.image, one.embedding)) for one in examples],
    ]


def _learned(row: Mapping[str, Any]) -> dict[str, Any]:
    """The embedding as a row like those of its controls."""
    return {key: row[f"end_{key}"] for key in ("iou", "iou_ci95_low", "iou_ci95_high")} | {"control": "embedding"}


def _draw_bars(axes: "Axes", name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The first row is the embedding."""
    means = np.asarray([row["iou"] for row in rows])
    reach = [np.abs(means - [row[f"iou_ci95_{end}"] for row in rows]) for end in ("low", "high")]
    colours = [_LEARNED, *[_BAR] * (len(rows) - 1)]
    axes.barh(np.arange(len(rows)), means, xerr=reach, color=colours, ecolor=_INK, capsize=3, height=0.7)
    axes.set_yticks(np.arange(len(rows)), [_label(row) for row in rows], fontsize=9)
    for place, mean in enumerate(means):
        axes.text(1.02, place, f"{mean:.2f}", transform=axes.get_yaxis_transform(), fontsize=9, va="center")
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.tick_params(axis="x", labelbottom=True, labelsize=8, colors=_GREY)
    axes.set_title(f"{name}: mean IoU on held-out images, 95 % interval", fontsize=10, color=_INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: Mapping[str, Any]) -> str:
    words = f'{row["control"]} "{row["text"]}"' if row.get("text") else str(row["control"])
    return words if len(words) <= _SHORTEN else f"{words[: _SHORTEN - 3]}..."


def _draw_confusion(axes: "Axes", names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    ious, scores = (
        np.asarray([row[measure] for row in rows]).reshape(len(names), len(names)) for measure in ("iou", "score")
    )
    axes.imshow(ious, cmap="Blues", vmin=0, vmax=0.8)
    for (down, across), iou in np.ndenumerate(ious):
        words = f"{iou:.2f}\n({scores[down, across]:.2f})"
        axes.text(across, down, words, ha="center", va="center", fontsize=10, color="white" if iou > 0.45 else _INK)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9, rotation=90, va="center")
    axes.set_xlabel("held-out images of", fontsize=9, color=_GREY)
    axes.set_ylabel("embedding of", fontsize=9, color=_GREY)
    axes.set_title("IoU (score)", fontsize=10, color=_INK)
