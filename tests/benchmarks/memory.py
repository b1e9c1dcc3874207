"""What 100,000 messages on their way hold in memory: the broker is frozen, so that none of them is acknowledged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .processes import Failed, Process
from .stages import KafkaStage, NatsStage, Stage

MESSAGES = 100_000
_ROOM = {"max_in_flight": MESSAGES, "max_in_flight_bytes": 2**30, "publish_timeout_ms": 600_000}


def measure(on: Stage, rounds: int) -> dict[str, Any]:
    """Bytes of the process, of each round, in a new process each."""
    found: dict[str, Any] = {"messages": MESSAGES, "bytes": []}
    on.prepare(["memory"])
    for _ in range(rounds):
        try:
            found["bytes"].append(_once(on))
        except Failed as error:
            found["failure"] = error.told("load")
    return found


def _once(on: Stage) -> int:
    broker = on.server if isinstance(on, NatsStage) else on.broker
    assert isinstance(on, NatsStage | KafkaStage)
    with Process("load", on.settings | _ROOM, Path()) as load:
        load.ask("warm", topic="memory")
        broker.freeze()
        try:
            return int(load.ask("in_flight", topic="memory", count=MESSAGES))
        finally:
            broker.thaw()
