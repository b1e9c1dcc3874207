"""Tables of raw results: for the terminal and for the documentation. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .figures import median, ratio, verdict
from .tasks import ROWS, SDK

#: What ``import incident_messaging`` may take.
IMPORT_GOAL = 0.150
#: What is shown of the per mille of a latency.
_SHARES = {"median": 500, "90 %": 900, "99 %": 990, "99.9 %": 999, "most": 1000}
WAYS = {"jetstream": "JetStream", "core": "core NATS", "kafka": "Kafka", "nats": "NATS"}
Results = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as text, the head first."""

    head: list[str]
    rows: list[list[str]]


def all_of(results: Results) -> dict[str, Table]:
    """Every table of the documentation, by name; what was not measured says so."""
    return {
        "machine": machine(results),
        "goals": goals(results),
        "speeds": speeds(results, list(ROWS)),
        **{name: make(results) for name, make in _MORE.items()},
    }


def of_part(name: str, results: Results) -> Table:
    """What a part has to say on the terminal."""
    if name in results["failures"]:
        return Table([name, "FAILED"], [["", results["failures"][name]]])
    return speeds(results, [name]) if name in ROWS else _MORE[name](results)


def as_text(table: Table) -> str:
    """A table for the terminal."""
    widths = [max(len(row[column]) for row in [table.head, *table.rows]) for column in range(len(table.head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [table.head, *table.rows]
    ]
    return "\n".join([*lines, ""])


def machine(results: Results) -> Table:
    """Where it was measured, of what, and how."""
    about = results["machine"]
    rows = [
        ["processor", f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB of memory"],
        ["system", about["system"]],
        ["Python", about["python"]],
        ["commit", about["commit"]],
        ["date", about["date"]],
        ["command", " ".join(["``python -m tests.benchmarks", *results["arguments"]]) + "``"],
        ["took", f"{results['seconds'] / 60:.0f} minutes"],
        *([WAYS[broker], version] for broker, version in sorted(results["brokers"].items())),
    ]
    versions = {
        library: version
        for row in _rows(results).values()
        for libraries in row["versions"].values()
        for library, version in libraries.items()
    }
    return Table(["", "measured with"], rows + [[library, versions[library]] for library in sorted(versions)])


def goals(results: Results) -> Table:
    """Each goal, and whether it is reached."""
    rows = []
    for name, task in ROWS.items():
        row = _rows(results).get(name)
        for other, goal in task.goals.items():
            found = ratio(row, other) if row else None
            measured = f"{found.middle:.2f} ×" if found else ""
            between = f"{found.low:.2f} to {found.high:.2f}" if found else ""
            rows.append([task.title, other, f"{goal:g} ×", measured, between, verdict(found, goal)])
    took = _import_took(results)
    measured = f"{took * 1000:.0f} ms" if took is not None else ""
    said = "not measured" if took is None else "reached" if took <= IMPORT_GOAL else "missed"
    rows.append(["import incident_messaging", "", f"{IMPORT_GOAL * 1000:.0f} ms", measured, "", said])
    return Table(["task", "against", "at least", "measured", "rounds", "goal"], rows)


def speeds(results: Results, names: list[str]) -> Table:
    """Everybody's messages a second, and how many times as fast the SDK is."""
    rows = [line for name in names for line in _speeds(name, _rows(results).get(name))]
    return Table(["task", "who", "messages a second", "the SDK is", "rounds", "goal"], rows)


def _speeds(name: str, row: dict[str, Any] | None) -> Iterator[list[str]]:
    task = ROWS[name]
    if row is None:
        yield [task.title, "", "not measured", "", "", ""]
        return
    for who in (SDK, *task.contestants):
        title = task.title if who == SDK else ""
        speed, beside = median(row, who), ratio(row, who) if who != SDK else None
        shown = [f"{speed:,.0f}" if speed else "not measured", "", "", ""]
        if beside is not None:
            shown[1:3] = [f"{beside.middle:.2f} ×", f"{beside.low:.2f} to {beside.high:.2f}"]
        goal = task.goals.get(who)
        if goal is not None:
            shown[3] = f"{goal:g} ×: {verdict(beside, goal)}"
        if who in row["failures"]:
            shown[3] = f"FAILED: {row['failures'][who][:160]}"
        yield [title, who, *shown]


def latencies(results: Results) -> Table:
    """Milliseconds of a blocking publish, and until another process has the message in hand."""
    rows = []
    for way, found in results["parts"].get("latency", {}).items():
        for who, values in found.items():
            if "failure" in values:
                rows.append([WAYS[way], who, "FAILED", *[""] * len(_SHARES)])
                continue
            for what, title in (("publish", "blocking publish"), ("callback", "publish to callback")):
                shown = [f"{values[what][share] / 1000:.2f}" for share in _SHARES.values()]
                rows.append([WAYS[way], who, title, *shown])
    return Table(["", "who", "milliseconds", *_SHARES], rows or [_none(3 + len(_SHARES))])


def memories(results: Results) -> Table:
    """What messages on their way hold."""
    rows = []
    for broker, found in results["parts"].get("memory", {}).items():
        if found["bytes"]:
            held = statistics.median(found["bytes"])
            each = f"{held / found['messages']:,.0f}"
            rows.append([WAYS[broker], f"{found['messages']:,}", f"{held / 2**20:.0f}", each])
        else:
            rows.append([WAYS[broker], "FAILED", "", ""])
    return Table(["", "messages on their way", "MiB", "bytes a message"], rows or [_none(4)])


def imported(results: Results) -> Table:
    """What an import takes."""
    found = results["parts"].get("imports")
    head = ["a new interpreter", "milliseconds", "least", "most"]
    if found is None:
        return Table(head, [_none(4)])
    rows = [
        [title, *(f"{of(found[key]) * 1000:.0f}" for of in (statistics.median, min, max))]
        for title, key in (("that does nothing", "nothing"), ("that imports incident_messaging", "import"))
    ]
    rows.append(["the difference", f"{(_import_took(results) or 0.0) * 1000:.0f}", "", ""])
    rows.append(["loads of asyncio, nats, confluent_kafka", ", ".join(found["loaded"]) or "none", "", ""])
    return Table(head, rows)


def _import_took(results: Results) -> float | None:
    found = results["parts"].get("imports")
    return statistics.median(found["import"]) - statistics.median(found["nothing"]) if found else None


def points(results: Results, name: str, series: str = "") -> dict[str, dict[int, list[float]]]:
    """What grows, by broker and point: each turn's figure."""
    found: dict[str, dict[int, list[float]]] = {}
    for broker, of in results["parts"].get(name, {}).items():
        found[broker] = {
            int(point): [turn[series] if series else turn for turn in values["turns"] if not series or series in turn]
            for point, values in of.items()
        }
    return found


def _growth(name: str, title: str, columns: dict[str, str]) -> Any:
    """A table of what grows: a line for each broker and point, a column for each of the turn's figures."""

    def make(results: Results) -> Table:
        rows = []
        for broker, of in results["parts"].get(name, {}).items():
            for point in of:
                cells = [_cell(points(results, name, key)[broker][int(point)], key) for key in columns]
                if "failure" in of[point]:
                    cells[-1] = f"FAILED: {of[point]['failure'][:100]}"
                rows.append([WAYS[broker], f"{int(point):,}", *cells])
        return Table(["", title, *columns.values()], rows or [_none(2 + len(columns))])

    return make


def _cell(values: list[float], key: str) -> str:
    if not values:
        return ""
    middle = statistics.median(values)
    if key == "rss":
        return f"{middle / 2**10:,.0f}"
    return f"{middle:,.0f}" if key in ("", "publish", "consume", "rate") else f"{middle:,.2f}"


def _none(columns: int) -> list[str]:
    return ["not measured", *[""] * (columns - 1)]


def _rows(results: Results) -> dict[str, Any]:
    return {name: part[ROWS[name].way] for name, part in results["parts"].items() if name in ROWS}


_RATE = "messages a second"
_MORE = {
    "latency": latencies,
    "memory": memories,
    "imports": imported,
    "threads": _growth("threads", "threads", {"": _RATE}),
    "sizes": _growth("sizes", "bytes of payload", {"publish": "published a second", "consume": "consumed a second"}),
    "topics": _growth(
        "topics", "topics",
        {"publish": _RATE, "first": "seconds for a first message to each", "making": "seconds to make them"},
    ),
    "subscriptions": _growth(
        "subscriptions", "subscriptions",
        {"rate": _RATE, "ready": "seconds until all are ready", "threads": "threads each",
         "descriptors": "descriptors each", "rss": "KiB each"},
    ),
}  # fmt: skip
