"""How long a blocking publish takes, and how long until another process has the message, at a low rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .figures import quantiles
from .processes import Failed, Process
from .stages import Stage

#: Messages a second.
RATE = 200
#: Beside whom, by broker.
_BESIDE = {"nats": "nats-py", "kafka": "confluent-kafka"}


def measure(on: Stage, rounds: int, seconds: float) -> dict[str, Any]:
    """Per mille of the microseconds of each, pooled over the rounds; or why there are none."""
    found: dict[str, Any] = {}
    pools: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for who in ("sdk", _BESIDE[on.settings["broker"]])[:: 1 if number % 2 == 0 else -1]:
            pool = pools.setdefault(who, {"publish": [], "callback": []})
            try:
                for name, values in _turn(on, who, f"latency.n{number}{who}", seconds).items():
                    pool[name] += values
            except Failed as error:
                found[who] = {"failure": error.told(who)}
    for who, pool in pools.items():
        if who not in found:
            found[who] = {"messages": len(pool["publish"])} | {name: quantiles(pool[name]) for name in pool}
    return found


def _turn(on: Stage, who: str, topic: str, seconds: float) -> dict[str, list[float]]:
    """Microseconds of one round: of publishes, and until the callback of another process."""
    on.prepare([topic, f"{topic}-warm"])
    count, publishes = int(RATE * seconds), []
    with Process(who, on.settings, Path()) as publisher, Process(who, on.settings, Path()) as subscriber:
        publisher.ask("paced", topic=f"{topic}-warm", count=20, rate=RATE)

        def publish(_ready: int) -> None:
            publishes.extend(publisher.ask("paced", timeout=seconds + 30, topic=topic, count=count, rate=RATE))

        arrivals = subscriber.ask("arrivals", timeout=seconds + 60, progress=publish, topic=topic, count=count)
    return {"publish": publishes, "callback": arrivals}
