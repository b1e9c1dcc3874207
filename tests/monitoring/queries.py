"""The queries of the dashboard and of the alerts, and the names in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import Counter, Gauge, Histogram

from incident_messaging import MESSAGING_METRICS
from incident_messaging.contrib import outbox

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
DASHBOARD = MONITORING / "dashboard.json"
ALERTS = MONITORING / "alerts.yml"

#: What Prometheus itself puts on every series.
BY_PROMETHEUS = frozenset({"instance", "job"})

_STRING = re.compile(r'"[^"]*"')
_SELECTOR = re.compile(r"\b(messaging_\w+)|\{__name__=~\"([^\"]+)\"")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")


class Query(NamedTuple):
    """An expression, where it stands, and the labels that its legend or text shows."""

    where: str
    expr: str
    shown: frozenset[str]


def instruments() -> list[Counter | Gauge | Histogram]:
    """Every instrument of the SDK."""
    MESSAGING_METRICS.make()
    return [*vars(MESSAGING_METRICS).values(), outbox.RELAYED, outbox.PARKED, outbox.AGE]


def series() -> dict[str, frozenset[str]]:
    """Every name that Prometheus reads from a process, with its labels."""
    found = {}
    for instrument in instruments():
        labels = frozenset(instrument._labelnames) | BY_PROMETHEUS
        name = instrument._name
        if isinstance(instrument, Histogram):
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[f"{name}_total" if isinstance(instrument, Counter) else name] = labels
    return found


def names(expr: str) -> set[str]:
    """The series that an expression reads; a name matched by a pattern is every one that matches."""
    outside = _STRING.sub('""', expr)
    found = {each for each, _ in _SELECTOR.findall(outside) if each}
    for _, pattern in _SELECTOR.findall(expr):
        if pattern:
            found |= {name for name in series() if re.fullmatch(pattern, name)} or {pattern}
    return found


def labels(expr: str) -> set[str]:
    """The labels that an expression selects or groups by."""
    found = set()
    for matchers in _MATCHERS.findall(expr):
        found |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", _STRING.sub('""', matchers)))
    return (found | kept(expr)) - {"__name__"}


def kept(expr: str) -> set[str]:
    """The labels that aggregations keep."""
    return {label.strip() for group in _GROUPING.findall(expr) for label in group.split(",") if label.strip()}


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return board


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that show something, in their order."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def of_dashboard(board: dict[str, Any]) -> list[Query]:
    """The queries of the panels."""
    return [
        Query(panel["title"], target["expr"], frozenset(_LEGEND.findall(target["legendFormat"])))
        for panel in panels(board)
        for target in panel["targets"]
    ]


def of_rules(rules: Iterable[dict[str, Any]]) -> list[Query]:
    """The expressions of the alerts."""
    shown = re.compile(r"\$labels\.(\w+)")
    return [
        Query(rule["alert"], rule["expr"], frozenset(shown.findall(" ".join(rule["annotations"].values()))))
        for rule in rules
    ]
