"""The SDK, as a user would call it, metrics on."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

from incident_messaging import Delivery, IncidentCreated, IncidentEvent, MessagingConfig, MessagingService

from .child import PATIENCE, Stopwatch, answer, ready, serve, shares, since, together, waits


class Sdk:
    def __init__(self, broker: str, address: str, delivery: str = "jetstream", **settings: Any) -> None:
        self.service = MessagingService(
            MessagingConfig.from_mapping(
                {
                    "backend": broker,
                    "source": "bench",
                    "nats": {"servers": [address], "delivery": delivery} if broker == "nats" else {},
                    "kafka": {"bootstrap_servers": address} if broker == "kafka" else {},
                    **settings,
                }
            )
        )
        self.service.connect()

    def publish_batch(self, topic: str, count: int) -> float:
        given = ready(events(count))
        begun = time.perf_counter()
        self.service.publish_batch(topic, given, key=key_of)
        return time.perf_counter() - begun

    def publish_nowait(self, topic: str, count: int) -> float:
        given = ready(events(count))
        begun = time.perf_counter()
        for event in given:
            self.service.publish_nowait(topic, event, key=event.incident_id, block=PATIENCE)
        self.service.flush(PATIENCE)
        return time.perf_counter() - begun

    def publish_each(self, topic: str, count: int, workers: int) -> float:
        given = ready(events(count // workers + 1))

        def publish(share: int) -> None:
            for event in given[:share]:
                self.service.publish(topic, event, key=event.incident_id)

        return together(publish, shares(count, workers))

    def consume(self, topic: str, count: int) -> float:
        watch = Stopwatch(count)
        options: dict[str, Any] = {"group": uuid.uuid4().hex, "timeout": PATIENCE, "prefetch": 1000, "limit": count}
        for _ in self.service.consume(topic, IncidentEvent, **options):
            watch.one()
        return taken(watch, count)

    def handle(self, topic: str, count: int, fed: bool = False) -> float:
        watch, done = Stopwatch(count, tell=fed), threading.Event()

        def callback(_delivery: object) -> None:
            if watch.one():
                done.set()

        group = uuid.uuid4().hex
        with self.service.subscribe(topic, IncidentEvent, group=group, callback=callback, prefetch=1000):
            if fed:
                answer(progress=0)
            done.wait(PATIENCE * 3)
        return taken(watch, count)

    def paced(self, topic: str, count: int, rate: float) -> list[float]:
        """Microseconds of each publish."""
        took = []
        for wait in waits(count, rate):
            time.sleep(wait)
            now = time.monotonic_ns()
            self.service.publish(topic, IncidentCreated("INC-1", "high", "disk", str(now)), key="INC-1")
            took.append(since(now))
        return took

    def arrivals(self, topic: str, count: int) -> list[float]:
        """Microseconds from before each publish until its callback."""
        took: list[float] = []
        done = threading.Event()

        def callback(delivery: Delivery[IncidentCreated]) -> None:
            took.append(since(delivery.payload.title))
            if len(took) == count:
                done.set()

        with self.service.subscribe(topic, IncidentCreated, group=uuid.uuid4().hex, callback=callback):
            answer(progress=0)
            if not done.wait(PATIENCE * 3):
                raise RuntimeError(f"only {len(took)} of {count} messages came")
        return took


def events(count: int) -> list[IncidentCreated]:
    return [IncidentCreated(f"INC-{number % 997}", "high", "disk", "full") for number in range(count)]


def key_of(event: IncidentEvent) -> str:
    return event.incident_id


def taken(watch: Stopwatch, count: int) -> float:
    if watch.got < count:
        raise RuntimeError(f"only {watch.got} of {count} messages came")
    return watch.seconds


if __name__ == "__main__":
    serve(Sdk, "confluent-kafka", "nats-py", "attrs", "cattrs", "orjson", "prometheus-client", "uvloop")
