"""How the SDK's throughput grows with threads, message size, topics and subscriptions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .processes import Failed, Process
from .stages import Stage

#: Rates of each point, in order; or why there is none.
Points = dict[str, dict[str, Any]]

#: What is varied, by where.
POINTS: dict[str, dict[str, tuple[int, ...]]] = {
    "threads": dict.fromkeys(("jetstream", "kafka"), (1, 2, 4, 8, 16, 32, 64)),
    "sizes": dict.fromkeys(("jetstream", "kafka"), (100, 1_000, 10_000, 100_000, 1_000_000)),
    "topics": dict.fromkeys(("jetstream", "kafka"), (1, 10, 100, 1_000, 10_000)),
    "subscriptions": {"jetstream": (1, 10, 100, 1_000), "kafka": (1, 10, 100)},
}
#: Bytes that one turn may put onto the disk.
_MOST_BYTES = 150_000_000
#: Messages that go through subscriptions in a turn.
_THROUGH = 20_000
_TIMEOUT = 240.0
#: The first message to each of many topics waits for those before it.
_PATIENT = {"publish_timeout_ms": 240_000}
#: Seconds; a point whose turn takes longer has one turn.
_LONG = 30.0


def threads(on: Stage, points: tuple[int, ...], rounds: int, seconds: float) -> Points:
    """Blocking publishers."""
    on.prepare(["grow.threads"])
    with Process("load", on.settings, Path()) as load:
        load.ask("blocking", topic="grow.threads", workers=4, seconds=seconds / 2)  # warm

        def turn(workers: int) -> float:
            rate: float = load.ask("blocking", topic="grow.threads", workers=workers, seconds=seconds)
            return rate

        return _up_and_down(points, rounds, turn)


def sizes(on: Stage, points: tuple[int, ...], rounds: int, seconds: float) -> Points:
    """A batch published, and an iterator over what it stored, by bytes of the payload."""
    numbers = itertools.count()
    with Process("load", on.settings, Path()) as load:

        def turn(size: int) -> dict[str, float]:
            topic = f"grow.size{size}n{next(numbers)}"
            on.prepare([topic])
            most = max(20, _MOST_BYTES // size)
            done = load.ask("batch", timeout=_TIMEOUT, topics=[topic], size=size, seconds=seconds, most=most)
            stored = int(done["sent"]) + 1
            rate = load.ask("drain", timeout=_TIMEOUT, topic=topic, count=stored, seconds=seconds)
            return {"publish": done["rate"], "consume": rate}

        return _up_and_down(points, rounds, turn)


def topics(on: Stage, points: tuple[int, ...], rounds: int, seconds: float) -> Points:
    """A batch over many topics in turn; on Kafka they are made before, many by one request."""
    made = 0

    def turn(count: int) -> dict[str, float]:
        nonlocal made
        names = [f"grow.topic{number}" for number in range(count)]
        begun = time.perf_counter()
        on.prepare(names[made:])
        making = {"making": time.perf_counter() - begun} if made < count else {}
        made = max(made, count)
        with Process("load", on.settings | _PATIENT, Path()) as load:
            done = load.ask("batch", timeout=_TIMEOUT, topics=names, size=100, seconds=seconds, most=10**9)
        return {"publish": done["rate"], "first": done["first"], **making}

    return _up_and_down(points, rounds, turn)


def subscriptions(on: Stage, points: tuple[int, ...], rounds: int, **_: float) -> Points:
    """Callbacks, one subscription a topic, while another process publishes over the topics in turn."""

    numbers = itertools.count()

    def turn(count: int) -> dict[str, float]:
        turns = next(numbers)
        names = [f"grow.sub{turns}n{number}" for number in range(count)]
        on.renew()
        on.prepare(names)
        with Process("load", on.settings, Path()) as publisher, Process("load", on.settings, Path()) as load:

            def publish(_ready: int) -> None:
                publisher.ask("spread", timeout=_TIMEOUT, topics=names, count=_THROUGH)

            found: dict[str, float] = load.ask(
                "subscriptions", timeout=_TIMEOUT, progress=publish, topics=names, count=_THROUGH
            )
            return found

    return _up_and_down(points, rounds, turn)


def _up_and_down(points: tuple[int, ...], rounds: int, turn: Callable[[int], Any]) -> Points:
    """Turns of every point in order, in the next round in reverse; a point that fails or is long is left out then."""
    found: Points = {str(point): {"turns": []} for point in points}
    long = set()
    for number in range(rounds):
        for point in points if number % 2 == 0 else points[::-1]:
            of = found[str(point)]
            if "failure" in of or point in long:
                continue
            begun = time.monotonic()
            try:
                of["turns"].append(turn(point))
            except Failed as error:
                of["failure"] = error.told(f"load at {point}")
            if time.monotonic() - begun > _LONG:
                long.add(point)
    return found
