"""The calibration figure of the model card, from the report of an evaluation.

    anymask evaluate promptable --images val --annotations val.json --model pocket -o docs/pocket_val.json
    python benchmarks/pocket_figures.py --report docs/pocket_val.json --output docs/images/pocket_calibration.png

Left: predicted IoU against real IoU, for boxes and for one click. Right: names present that are kept against names
absent that are claimed, for every threshold of presence. Needs matplotlib.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anymask.models.pocket import THRESHOLDS

COLOURS = {"box": "tab:blue", "click1": "tab:orange"}
TITLES = {"box": "box", "click1": "1 click"}


def main() -> None:
    """Reads the report, draws both panels, saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    report = json.loads(args.report.read_text())
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    reliability(left, report)
    presence(right, report)
    figure.savefig(args.output, dpi=110)


def reliability(axes: Axes, report: dict[str, Any]) -> None:
    """A point per bin of predicted IoU, as large as the bin is full."""
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for prompt, colour in COLOURS.items():
        rows = [row for row in report["reliability"] if row["prompt"] == prompt]
        most = max(row["masks"] for row in rows)
        said, came = [row["predicted_iou"] for row in rows], [row["real_iou"] for row in rows]
        label = f"{TITLES[prompt]}, calibration error {report[f'{prompt}_calibration_error']:.3f}"
        axes.plot(said, came, color=colour, linewidth=1.2, label=label)
        axes.scatter(said, came, [8 + 120 * row["masks"] / most for row in rows], color=colour, alpha=0.6)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted IoU", ylabel="real IoU", title="How far predicted IoU is true")
    axes.legend(loc="upper left", frameon=False)


def presence(axes: Axes, report: dict[str, Any]) -> None:
    """The ROC curve of the presence score, with a few thresholds written beside it."""
    rows = report["presence_roc"]
    false, true = [row["false_positive_rate"] for row in rows], [row["true_positive_rate"] for row in rows]
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(false, true, color="tab:green", linewidth=1.5, label=f"area {report['text_presence_auc']:.3f}")
    thresholds = [row["threshold"] for row in rows]
    for threshold in (0.1, 0.3, 0.5, THRESHOLDS.presence, 0.7, 0.9):
        where = (float(np.interp(threshold, thresholds, false)), float(np.interp(threshold, thresholds, true)))
        chosen = threshold == THRESHOLDS.presence
        axes.plot(*where, "o", color="tab:red" if chosen else "tab:green", markersize=6 if chosen else 4)
        axes.annotate(f"{threshold:.2f}", where, xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="absent names claimed", ylabel="present names kept", title="Presence of a name"
    )
    axes.legend(loc="lower right", frameon=False)


if __name__ == "__main__":
    main()
