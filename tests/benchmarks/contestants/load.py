"""The SDK alone under loads of other shapes; each call is bounded by seconds, not by messages."""

from __future__ import annotations

import base64
import gc
import itertools
import random
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import psutil

from incident_messaging import IncidentCreated, IncidentEvent

from .child import PATIENCE, Stopwatch, answer, serve
from .sdk import Sdk, events, key_of, taken, together

#: Bytes of a payload with an empty title, as JSON.
EMPTY = 92
#: Characters of different titles, at the least two of them.
_TEXT = 2_000_000


class Load(Sdk):
    def blocking(self, topic: str, workers: int, seconds: float) -> float:
        """Messages a second of threads that publish one by one."""
        counts: list[int] = []
        [event] = events(1)
        ends = time.perf_counter() + seconds

        def publish(_part: int) -> None:
            count = 0
            while not count or time.perf_counter() < ends:
                self.service.publish(topic, event, key=event.incident_id)
                count += 1
            counts.append(count)

        took = together(publish, [0] * workers)
        return sum(counts) / took

    def batch(self, topics: list[str], size: int, seconds: float, most: int) -> dict[str, float]:
        """Messages a second of one batch over all the topics in turn, after a first round that does not count."""
        given = itertools.cycle(sized(size))
        begun = time.perf_counter()
        self._in_turn(topics, itertools.islice(given, len(topics)))
        first = time.perf_counter() - begun
        begun = time.perf_counter()
        sent = self._in_turn(topics, _until(begun + seconds, itertools.islice(given, most)))
        return {"first": first, "sent": sent, "rate": sent / (time.perf_counter() - begun)}

    def _in_turn(self, topics: list[str], given: Iterable[IncidentCreated]) -> int:
        names = itertools.cycle(topics)
        return len(self.service.publish_batch(lambda _event: next(names), given, key=key_of, timeout=300.0))

    def drain(self, topic: str, count: int, seconds: float) -> float:
        """Messages a second of an iterator over what is stored, from the first in hand."""
        options: dict[str, Any] = {"group": uuid.uuid4().hex, "timeout": PATIENCE, "prefetch": 1000, "limit": count}
        got, begun, now = 0, 0.0, 0.0
        for _ in self.service.consume(topic, IncidentEvent, **options):
            now = time.perf_counter()
            begun = begun or now
            got += 1
            if now - begun >= seconds:
                break
        if got < 2:
            raise RuntimeError(f"only {got} of {count} messages came")
        return (got - 1) / (now - begun)

    def subscriptions(self, topics: list[str], count: int) -> dict[str, float]:
        """Subscriptions with a callback each, one a topic; messages come from elsewhere once all are ready."""
        watch, done, lock = Stopwatch(count), threading.Event(), threading.Lock()

        def callback(_delivery: object) -> None:
            with lock:
                if watch.one():
                    done.set()

        before, begun = _held(), time.perf_counter()
        for topic in topics:
            self.service.subscribe(topic, IncidentEvent, group="many", callback=callback, timeout=60.0)
        ready, held = time.perf_counter() - begun, _held()
        answer(progress=0)
        done.wait(PATIENCE * 3)
        more = {name: (held[name] - before[name]) / len(topics) for name in held}
        return {"rate": count / taken(watch, count), "ready": ready, **more}

    def spread(self, topics: list[str], count: int) -> None:
        """Publish so many over the topics in turn."""
        self._in_turn(topics, itertools.islice(itertools.cycle(sized(100)), count))

    def warm(self, topic: str) -> None:
        """Whatever the first publish makes is there."""
        self.service.publish_batch(topic, events(100), key=key_of)

    def in_flight(self, topic: str, count: int) -> int:
        """Bytes more that the process holds when so many are on their way; the broker has to be frozen."""
        gc.collect()
        before = psutil.Process().memory_info().rss
        for number in range(count):
            event = IncidentCreated(f"INC-{number % 997}", "high", "disk", "full")
            self.service.publish_nowait(topic, event, key=event.incident_id)
        on_their_way = sum(self.service.health().in_flight.values())
        if on_their_way != count:
            raise RuntimeError(f"{on_their_way} of {count} are on their way: the broker is not frozen")
        time.sleep(1.0)  # the loop's thread may still be writing
        gc.collect()
        return int(psutil.Process().memory_info().rss - before)


def sized(size: int) -> list[IncidentCreated]:
    """Events whose payloads have so many bytes as JSON, and so much in them that nothing compresses a batch."""
    title = size - EMPTY
    many = min(2_000, max(2, _TEXT // size))
    text = base64.b64encode(random.Random(size).randbytes(many * title)).decode()
    return [
        IncidentCreated(f"INC-{number % 9}", "high", "disk", text[number * title : (number + 1) * title])
        for number in range(many)
    ]


def _until(ends: float, given: Iterable[IncidentCreated]) -> Iterator[IncidentCreated]:
    for event in given:
        yield event
        if time.perf_counter() > ends:
            return


def _held() -> dict[str, float]:
    process = psutil.Process()
    gc.collect()
    return {
        "threads": process.num_threads(), "descriptors": process.num_fds(), "rss": process.memory_info().rss,
    }  # fmt: skip


if __name__ == "__main__":
    serve(Load, "psutil")
