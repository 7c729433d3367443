"""The figure of benchmarks/everything.py: seconds of each contender, and how pocket's time grows."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anymask.types import Report

SHADES = {5: 0.35, 20: 1.0, 100: 0.6}
COLOURS = {"default": "tab:blue", "exact": "tab:orange"}
NAMES = {"segment_anything": "segment-anything", "anymask": "anymask, default", "anymask exact": "anymask, exact"}
GREY = "0.45"


def draw(report: Report, path: Path) -> None:
    """Bars on the left, the two curves on the right."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    bars, points, pixels = figure.subplots(1, 3, width_ratios=(1.7, 1, 1))
    contenders(bars, report)
    growth(points, report, "points", "points of the grid")
    growth(pixels, report, "megapixels", "megapixels of the photo")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def contenders(axes: Axes, report: Report) -> None:
    """A group of bars for each, a bar for each survival."""
    survivals = report.settings["survivals"]
    rows = [*report.tables["peers"], *report.tables["anymask"]]
    for place, row in enumerate(rows):
        for k, survival in enumerate(survivals):
            seconds, y = row[f"seconds_{survival}"], place + 0.27 * (k - 1)
            if seconds is None:
                continue
            colour = "tab:blue" if row in report.tables["anymask"] else GREY
            axes.barh(y, seconds, 0.25, color=colour, alpha=SHADES.get(survival, 0.8))
            axes.text(seconds, y, f" {seconds:.0f} s, {survival} %", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [NAMES.get(row["name"], row["name"]) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.16)
    side = report.settings["points_per_side"]
    axes.set(
        xlabel="seconds an image", title=f"SAM ViT-B, {side} x {side} points, {report.settings['threads']} threads"
    )
    axes.spines[["top", "right"]].set_visible(False)


def growth(axes: Axes, report: Report, axis: str, label: str) -> None:
    """Both modes of pocket, and what a straight line through the last point of the default would be."""
    rows = report.tables[f"curve_{axis}"]
    sizes = [row[axis] for row in rows]
    for mode, colour in COLOURS.items():
        seconds = [row[f"seconds_{mode}"] for row in rows]
        if None not in seconds:
            axes.plot(sizes, seconds, "o-", color=colour, markersize=4, label=f"{mode}")
    axes.set(xlabel=label, ylabel="seconds", title=f"pocket, by {axis}")
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
