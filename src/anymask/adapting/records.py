"""What a run of textual inversion leaves behind: the concept, its history, the words nearest to it, and two figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from anymask.adapting.inversion import Inversion
from anymask.adapting.judging import Judgement, iou_of
from anymask.data.concepts import save_concept
from anymask.data.drawing import draw
from anymask.data.files import write_json, write_whole
from anymask.data.images import read_image
from anymask.data.reducing import fitted, resized_image, resized_masks
from anymask.types import Image, Masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 4  # images of a comparison
_SIDE = 480  # the longer side of a panel
_INK, _GREY = "#202124", "#76787e"
_CURVES = ("#3c6bb4", "#c2553a", "#3f8f5f", "#8a6bb0")


def write_run(run: Inversion, found: Sequence[Judgement]) -> list[Path]:
    """All files of a run, each whole or not at all; `found` is what its best vectors find.

    The concept, whose path is the first, is written last: where it is, all is there.
    """
    folder = run.settings.output
    paths = [folder / name for name in ("history.json", "nearest_tokens.txt", "concept.safetensors")]
    figures = {"final_comparison.png": compare(run, found), "curves.png": draw_curves(run.standing.history)}
    drawn = [save_figure(folder / name, figure) for name, figure in figures.items()]
    write_json(paths[0], {"columns": _meanings(), "steps": run.standing.history})
    with write_whole(paths[1]) as temporary:
        temporary.write_text("\n".join([*run.standing.nearest, ""]), encoding="utf-8")
    save_concept(run.concept, paths[2])
    return [*reversed(paths), *drawn]


def save_figure(path: Path, figure: "Figure") -> Path:
    """As PNG, whole or not at all."""
    with write_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path


def compare(run: Inversion, found: Sequence[Judgement]) -> "Figure":
    """Images that were judged, evenly from the best to the worst IoU: target, mask before, mask after."""
    rows = evenly_ranked(np.asarray([one.iou for one in found]), MOST_ROWS)
    pictures = []
    for row in rows:
        pair = run.judged.pairs[row]
        image, truth = read_image(pair.image), run.judged.truth(row)
        masks = [run.judged.mask(row, vectors) for vectors in (run.beginning, run.best)]
        titles = [
            image.name,
            "target",
            *(f"{w}, IoU {iou_of(m, truth):.2f}" for w, m in zip(("before", "after"), masks, strict=True)),
        ]
        pictures.append(
            [(title, panel(image, mask)) for title, mask in zip(titles, [None, truth, *masks], strict=True)]
        )
    return grid(pictures)


def evenly_ranked(values: Float[np.ndarray, "n"], count: int) -> list[int]:
    """Rows from the highest value to the lowest, `count` of them (or all) evenly spaced in rank."""
    order = np.argsort(-values, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(row) for row in order[places]]


def panel(image: Image, mask: Bool[np.ndarray, "h w"] | None) -> UInt8[np.ndarray, "ph pw 3"]:
    """A picture of at most `_SIDE` pixels, with a mask drawn on it."""
    size = fitted(image.size, _SIDE)
    small = resized_image(image, size)
    if mask is None or not mask.any():
        return small.pixels
    return draw(small, resized_masks(Masks.from_dense(mask[None]), size), labels=False).pixels


def grid(rows: Sequence[Sequence[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]]) -> "Figure":
    """Titled pictures in rows and columns; a row is as high as its first picture asks for."""
    from matplotlib.figure import Figure

    across, down = len(rows[0]), len(rows)
    heights = [3.2 * row[0][1].shape[0] / row[0][1].shape[1] + 0.35 for row in rows]
    figure = Figure(figsize=(3.2 * across, sum(heights)), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, height_ratios=heights)
    for row, pictures in enumerate(rows):
        for column, (title, pixels) in enumerate(pictures):
            axes[row][column].imshow(pixels)
            axes[row][column].set_title(title, fontsize=9, color=_INK)
            axes[row][column].set_axis_off()
    return figure


def draw_curves(history: Sequence[dict[str, Any]]) -> "Figure":
    """IoU and score, and the loss and its parts, over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = {"iou": "IoU of the step's images", "judged_iou": "IoU judged at full size", "score": "score"}
    shown |= {"absent_score": "score without the thing"}
    losses = {"loss": "loss", "mask_loss": "BCE + Dice", "box_loss": "L1 + GIoU", "score_loss": "BCE of the score"}
    for axes, names in ((left, shown), (right, losses)):
        for colour, (name, label) in zip(_CURVES, names.items(), strict=True):
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                judged = name == "judged_iou"  # now and then: points, between which nothing is known
                style: dict[str, Any] = {"linestyle": "", "marker": "o", "ms": 4} if judged else {"lw": 1.4}
                axes.plot(*zip(*points, strict=True), color=colour, label=label, **style)
        axes.set_xlabel("step", color=_GREY)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(0, 1)
    right.set_ylim(bottom=0)
    return figure


def _meanings() -> dict[str, str]:
    """What the columns of the history are."""
    return {
        "loss": "weighted sum, mean over the step's images",
        "mask_loss": "BCE + Dice",
        "box_loss": "L1 + GIoU, in shares of the input",
        "score_loss": "BCE of the score",
        "iou": "IoU of the best query with each object, in the model's frame",
        "score": "how sure the model is, 0 to 1; absent_score: on images without the thing",
        "query": "of each image of the step the query that stands for the first object; null without one",
        "judged_iou": "mean IoU of the model's own answer at full size, on held-out images or those learned from",
    }
