"""Plots of raw results, readable on light and on dark pages."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import ratio
from .tables import WAYS, points
from .tasks import ROWS

_GREY = "#808080"
_COLOURS = {
    "jetstream": "#2a9d8f", "kafka": "#e07a3f", "publish": "#2a9d8f", "callback": "#e07a3f",
    "nats-py": "#2a9d8f", "nats-py+uvloop": "#6cc5b9", "confluent-kafka": "#e07a3f", "mq-bridge": "#c0487b",
    "faststream": "#4f7fd9", "faststream, pull": "#8fb0ec", "faststream, auto-commit": "#8fb0ec",
    "nats-py-sync": "#9a7fd1",
}  # fmt: skip
_STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": _GREY, "axes.labelcolor": _GREY, "axes.edgecolor": _GREY, "xtick.color": _GREY,
    "ytick.color": _GREY, "legend.frameon": False, "axes.grid": True, "grid.alpha": 0.25, "grid.color": _GREY,
    "axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10,
    # Text stays text, and the same results make the same file.
    "svg.fonttype": "none", "svg.hashsalt": "incident-messaging",
}  # fmt: skip
Results = dict[str, Any]


def draw(results: Results, into: Path) -> None:
    """A file for each plot; one of which nothing was measured says so."""
    with plt.rc_context(_STYLE):
        for name, make in _PLOTS.items():
            figure = make(results) or _nothing()
            figure.savefig(into / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)


def _nothing() -> Figure:
    figure = plt.figure(figsize=(4, 0.5))
    figure.text(0.5, 0.5, "not measured", ha="center")
    return figure


def ratios(results: Results) -> Figure | None:
    """How many times as fast the SDK is, by task and contestant."""
    names = [name for name in ROWS if name in results["parts"]]
    if not names:
        return None
    figure, axes = plt.subplots(figsize=(7.5, 0.55 * len(names) + 1.2))
    shown = set()
    for place, name in enumerate(reversed(names)):
        row, task = results["parts"][name][ROWS[name].way], ROWS[name]
        for number, other in enumerate(task.contestants):
            found = ratio(row, other)
            if found is None:
                continue
            height = place + 0.12 * (len(task.contestants) / 2 - number)
            axes.plot([found.low, found.high], [height] * 2, color=_COLOURS[other], linewidth=1.5)
            label = None if other in shown else other
            axes.plot(found.middle, height, "o", color=_COLOURS[other], markersize=5, label=label)
            shown.add(other)
            if other in task.goals:
                axes.plot(task.goals[other], height, "|", color=_COLOURS[other], markersize=9)
    axes.axvline(1.0, color=_GREY, linewidth=1)
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), [ROWS[name].title for name in reversed(names)])
    axes.set_xlabel("the SDK is so many times as fast as (line: the rounds; bar: the goal)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.12), ncols=4)
    return figure


def latency(results: Results) -> Figure | None:
    """The latencies' shares, the SDK's in full lines and the client's alone in broken ones."""
    measured = results["parts"].get("latency")
    if not measured:
        return None
    figure, panels = plt.subplots(1, len(measured), figsize=(9, 3), sharey=True, squeeze=False)
    for axes, (way, found) in zip(panels[0], measured.items(), strict=True):
        for number, (who, values) in enumerate(found.items()):
            for what in ("publish", "callback"):
                if what in values:
                    label = f"{who}: {'blocking publish' if what == 'publish' else 'publish to callback'}"
                    _shares(
                        axes, values[what], color=_COLOURS[what], linestyle="-" if number == 0 else "--", label=label
                    )
        axes.set_title(WAYS[way])
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    panels[0][0].set_ylabel("milliseconds")
    panels[0][0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure


def _shares(axes: Axes, quantiles: list[int], **style: Any) -> None:
    steps = [step for step in range(1000) if step >= 900 or step % 10 == 0]
    axes.plot([1 - step / 1000 for step in steps], [quantiles[step] / 1000 for step in steps], **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, 0.001)
    axes.set_xticks([0.5, 0.1, 0.01, 0.001], ["50 %", "90 %", "99 %", "99.9 %"])
    axes.minorticks_off()


def _growth(name: str, title: str, panels: dict[str, str]) -> Callable[[Results], Figure | None]:
    """Lines over a logarithmic axis, a panel for each of the turns' figures: medians, and all turns between."""

    def make(results: Results) -> Figure | None:
        if name not in results["parts"]:
            return None
        figure, row = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.8), squeeze=False)
        for axes, (key, label) in zip(row[0], panels.items(), strict=True):
            for broker, of in points(results, name, key).items():
                known = {point: values for point, values in of.items() if values}
                axes.fill_between(
                    list(known), [min(v) for v in known.values()], [max(v) for v in known.values()],
                    color=_COLOURS[broker], alpha=0.2, linewidth=0,
                )  # fmt: skip
                middles = [statistics.median(values) for values in known.values()]
                axes.plot(list(known), middles, "o-", markersize=4, color=_COLOURS[broker], label=WAYS[broker])
            axes.set_xscale("log")
            axes.set_yscale("log" if name == "sizes" else "linear")
            axes.set_ylim(None if name == "sizes" else 0)
            axes.set_xlabel(title)
            axes.set_ylabel(label)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.legend()
        ticks = sorted({point for of in points(results, name).values() for point in of})
        for axes in row[0]:
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
        figure.tight_layout()
        return figure

    return make


_PLOTS: dict[str, Callable[[Results], Figure | None]] = {
    "ratios": ratios,
    "latency": latency,
    "threads": _growth("threads", "threads that publish one by one", {"": "messages a second"}),
    "sizes": _growth("sizes", "bytes of payload", {"publish": "published a second", "consume": "consumed a second"}),
    "topics": _growth("topics", "topics", {"publish": "messages a second"}),
    "subscriptions": _growth("subscriptions", "subscriptions", {"rate": "messages a second"}),
}
