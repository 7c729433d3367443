"""Plain figures of concepts: matrices of cosines, and bars of each vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, PAPER = "#202124", "#fafaf8"
SHADES = ("#5c6c8c", "#d08a3e")
LONGEST = 18  # letters of a name


@dataclass(frozen=True)
class Bars:
    """Bars of several kinds for each row, on a scale from 0 to 1; `whole` is what they are compared with, a line."""

    title: str
    rows: Sequence[str]
    kinds: Mapping[str, Sequence[float | None]]
    whole: float


def draw_matrices(names: Sequence[str], matrices: Mapping[str, Float[np.ndarray, "n n"]]) -> Figure:
    """Each matrix with its numbers under its title."""
    side = 1.6 + 0.75 * len(names)
    figure = _figure(len(matrices) * side + 0.6, side + 0.5)
    all_axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (title, values) in zip(all_axes, matrices.items(), strict=True):
        axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=30, ha="right")
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        for (y, x), value in np.ndenumerate(values):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=PAPER if abs(value) > 0.7 else INK)
        axes.set_title(title, loc="left")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def draw_bars(charts: Sequence[Bars], measure: str) -> Figure:
    """A chart above the other; `measure` is what the bars are."""
    heights = [1.0 + 0.45 * len(chart.rows) for chart in charts]
    figure = _figure(8.0, sum(heights) + 0.6)
    all_axes = figure.subplots(len(charts), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, chart in zip(all_axes, charts, strict=True):
        _draw_bars(axes, chart)
    all_axes[-1].set_xlabel(measure)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False)
    return figure


def _draw_bars(axes: Axes, chart: Bars) -> None:
    thick = 0.8 / len(chart.kinds)
    places = np.arange(len(chart.rows))
    for i, ((kind, values), shade) in enumerate(zip(chart.kinds.items(), SHADES, strict=False)):
        lengths = [value or 0.0 for value in values]
        bars = axes.barh(places + (i + 0.5) * thick - 0.4, lengths, 0.9 * thick, color=shade, label=kind)
        numbers = ["none" if value is None else f"{value:.2f}" for value in values]
        axes.bar_label(bars, numbers, padding=4, color=INK, fontsize=8)
    axes.axvline(chart.whole, color=INK, linewidth=1.2, linestyle="--", label="all vectors")
    axes.set_title(chart.title, loc="left", color=INK, fontsize=11)
    axes.set_facecolor(PAPER)
    axes.set_yticks(places, [_short(row) for row in chart.rows])
    axes.invert_yaxis()
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlim(0, 1.08)  # with room for a number
    axes.grid(axis="x", color="#dededa")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=INK)


def _figure(width: float, height: float) -> Figure:
    """In inches."""
    return Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
