"""Draws the dashboard: each panel in its place of Grafana's grid, with the series that a Prometheus has for it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from queries import panels

#: Inches of a cell of the grid, which is 24 cells wide; and dots in an inch.
WIDE, HIGH, DPI = 0.58, 0.29, 100

#: Of a panel's height, what is above and below its plot.
HEAD, LEGEND = 0.14, 0.26

#: Few enough for a small file.
COLOURS = 96

_STYLE = {
    "figure.facecolor": "#111217", "axes.facecolor": "#181b1f", "text.color": "#ccccdc", "axes.edgecolor": "#2c3235",
    "axes.labelcolor": "#ccccdc", "xtick.color": "#9fa7b3", "ytick.color": "#9fa7b3", "axes.grid": True,
    "grid.color": "#2c3235", "font.size": 7, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip

#: Names of series fill what a panel has room for; Grafana lets one scroll through the others.
MOST_NAMES = 6

Series = Sequence[dict[str, Any]]


def draw(board: dict[str, Any], series_of: Callable[[dict[str, Any]], Series], note: str, target: Path) -> None:
    """The whole dashboard as a PNG; ``series_of`` a target gives its series over the time shown."""
    rows = max(place["y"] + place["h"] for place in (panel["gridPos"] for panel in board["panels"])) + 2
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(24 * WIDE, rows * HIGH), dpi=DPI)
        figure.text(0.008, 1 - 1 / rows, board["title"], fontsize=13, weight="bold", va="center")
        figure.text(0.992, 1 - 1 / rows, note, ha="right", va="center", color="#9fa7b3")
        for panel in board["panels"]:
            if panel["type"] == "row":
                figure.text(0.008, 1 - (panel["gridPos"]["y"] + 2.6) / rows, panel["title"], fontsize=10, va="center")
        for panel in panels(board):
            axes = _place(figure, panel["gridPos"], rows)
            named = [(target["legendFormat"], each) for target in panel["targets"] for each in series_of(target)]
            (_stat if panel["type"] == "stat" else _lines)(axes, panel, named)
            axes.set_title(panel["title"], loc="left", fontsize=8, weight="bold")
        dots = io.BytesIO()
        figure.savefig(dots)
        plt.close(figure)
    Image.open(dots).quantize(COLOURS).save(target, optimize=True)


def _place(figure: Figure, place: dict[str, int], rows: int) -> Axes:
    left, width = place["x"] / 24, place["w"] / 24
    bottom, height = 1 - (place["y"] + place["h"] + 2) / rows, place["h"] / rows
    return figure.add_axes((
        left + 0.035, bottom + height * LEGEND, width - 0.045, height * (1 - HEAD - LEGEND)
    ))  # fmt: skip


def _lines(axes: Axes, panel: dict[str, Any], named: Sequence[tuple[str, dict[str, Any]]]) -> None:
    begin = min(float(each["values"][0][0]) for _, each in named)
    for legend, each in named:
        times = [float(time) - begin for time, _ in each["values"]]
        values = [float(value) for _, value in each["values"]]
        (line,) = axes.plot(times, values, linewidth=0.9, label=_name(legend, each["metric"]))
        axes.fill_between(times, values, alpha=0.06, color=line.get_color(), linewidth=0)
    if panel["fieldConfig"]["defaults"].get("min") == 0:
        axes.set_ylim(bottom=0)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    lines, names = axes.get_legend_handles_labels()
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    axes.legend(
        [*lines[:MOST_NAMES], *([plt.Line2D([], [], alpha=0)] if more else [])], [*names[:MOST_NAMES], *more],
        loc="upper left", bbox_to_anchor=(-0.02, -0.16), ncols=3, fontsize=6, borderaxespad=0, handlelength=1,
        columnspacing=1.0,
    )  # fmt: skip


def _stat(axes: Axes, panel: dict[str, Any], named: Sequence[tuple[str, dict[str, Any]]]) -> None:
    axes.set(xticks=[], yticks=[])
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for number, (legend, each) in enumerate(named):
        place = (number + 0.5) / len(named)
        axes.text(place, 0.55, shown(round(float(each["values"][-1][1])), unit), fontsize=26, ha="center", va="center",
                  color="#73bf69", transform=axes.transAxes)  # fmt: skip
        axes.text(place, 0.15, _name(legend, each["metric"]), ha="center", transform=axes.transAxes)


def _name(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels[found[1]], legend)


def shown(value: float, unit: str) -> str:
    """A value with its unit, as Grafana has it."""
    if unit == "s":
        small = 0 < abs(value) < 1
        return f"{value * 1000:.3g} ms" if small else f"{value:.3g} s"
    if unit in ("bytes", "Bps"):
        power = min(3, int(math.log(abs(value), 1024))) if abs(value) >= 1 else 0
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}{'/s' if unit == 'Bps' else ''}"
    return f"{value:.3g}{' /s' if unit == 'ops' else ''}"
