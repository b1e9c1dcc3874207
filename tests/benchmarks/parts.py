"""What there is to measure, by name: the rows of the table, and the SDK alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import imports, latency, memory, rows, scaling
from .stages import Stage, stage
from .tasks import ROWS


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        peers: The Python of the peers' environment.
        messages: Of a turn of a row.
        rounds: Turns of each contestant of a row.
        quick: Whether the rest is a look instead of a measurement.
    """

    peers: Path
    messages: int
    rounds: int
    quick: bool


NAMES = [*ROWS, "imports", "latency", "memory", "threads", "sizes", "topics", "subscriptions"]

_SCALING = {
    "threads": scaling.threads,
    "sizes": scaling.sizes,
    "topics": scaling.topics,
    "subscriptions": scaling.subscriptions,
}


def measure(name: str, effort: Effort, versions: dict[str, str]) -> dict[str, Any]:
    """The raw figures of a part; what brokers it met is noted in ``versions``."""
    if name == "imports":
        return imports.measure(5 if effort.quick else 25)
    found: dict[str, Any] = {}
    for way, work in _works(name, effort):
        with stage(way) as on:
            versions[on.settings["broker"]] = on.version
            found[way] = work(on)
    return found


def _works(name: str, effort: Effort) -> Iterator[tuple[str, Callable[[Stage], Any]]]:
    """What a part does, on a broker of its own each."""
    few, seconds = (1, 0.5) if effort.quick else (3, 1.0)
    if name in ROWS:
        work = partial(rows.measure, name, peers=effort.peers, messages=effort.messages, rounds=effort.rounds)
        yield ROWS[name].way, work
    elif name == "latency":
        rounds, length = (2, 1.0) if effort.quick else (4, 5.0)
        for way in ("jetstream", "core", "kafka"):
            yield way, partial(latency.measure, rounds=rounds, seconds=length)
    elif name == "memory":
        for way in ("jetstream", "kafka"):
            yield way, partial(memory.measure, rounds=few)
    else:
        for way, points in scaling.POINTS[name].items():
            some = points[:-1] if effort.quick else points
            yield way, partial(_SCALING[name], points=some, rounds=few, seconds=seconds)
