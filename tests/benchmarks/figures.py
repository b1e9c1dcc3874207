"""The arithmetic: messages a second, ratios of rounds, and whether a goal is reached. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from .tasks import SDK


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as another the SDK was.

    Attributes:
        middle: The ratio of the medians.
        low: The least of the rounds'.
        high: The greatest of the rounds'.
    """

    middle: float
    low: float
    high: float


def speeds(row: dict[str, Any], name: str) -> list[float]:
    """A contestant's messages a second, of each round in which it took part."""
    count = row["messages"].get(name, 0)
    return [count / seconds[name] for seconds in row["rounds"] if name in seconds]


def median(row: dict[str, Any], name: str) -> float | None:
    """A contestant's median; ``None`` if it was not measured."""
    found = speeds(row, name)
    return statistics.median(found) if found else None


def ratio(row: dict[str, Any], other: str) -> Ratio | None:
    """The SDK beside another, of the rounds in which both took part; ``None`` if there is none."""
    ours, theirs = row["messages"].get(SDK, 0), row["messages"].get(other, 0)
    both = [
        (ours / seconds[SDK], theirs / seconds[other])
        for seconds in row["rounds"]
        if SDK in seconds and other in seconds
    ]
    if not both:
        return None
    middle = statistics.median(mine for mine, _ in both) / statistics.median(its for _, its in both)
    each = [mine / its for mine, its in both]
    return Ratio(middle, min(each), max(each))


def verdict(found: Ratio | None, goal: float | None) -> str:
    """Whether a goal is reached, by the ratio of the medians."""
    if goal is None:
        return ""
    if found is None:
        return "not measured"
    return "reached" if found.middle >= goal else "missed"


def quantiles(values: list[float]) -> list[int]:
    """The per mille of the values, from the least to the greatest: 1,001 whole numbers."""
    ordered = sorted(values)
    return [round(ordered[round(step / 1000 * (len(ordered) - 1))]) for step in range(1001)]
