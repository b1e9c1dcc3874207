"""confluent-kafka by hand, with the guarantees that the SDK asks of it."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer

from .child import (
    PATIENCE,
    Stopwatch,
    all_true,
    answer,
    envelopes,
    full,
    key_of,
    ready,
    serve,
    shares,
    since,
    together,
    waits,
)

#: What is promised, not how fast: acknowledged by all, without duplicates, compressed as the SDK does.
SAFE = {"acks": "all", "enable.idempotence": True, "compression.type": "snappy"}


class Confluent:
    def __init__(self, address: str, **_: Any) -> None:
        self._servers = {"bootstrap.servers": address}
        self._batches = Producer(self._servers | SAFE)
        self._singles = Producer(self._servers | SAFE | {"linger.ms": 0})

    def publish_batch(self, topic: str, count: int) -> float:
        name, given, told = full(topic), ready(envelopes(count)), []

        def report(error: object, _message: object) -> None:
            told.append(error is None)

        begun = time.perf_counter()
        for event in given:
            self._batches.produce(name, json.dumps(event).encode(), key=key_of(event), on_delivery=report)
            self._batches.poll(0)
        self._batches.flush(PATIENCE)
        seconds = time.perf_counter() - begun
        all_true([*told, len(told) == count], "publish")
        return seconds

    def publish_each(self, topic: str, count: int, workers: int) -> float:
        name, given = full(topic), ready(envelopes(count // workers + 1))

        def publish(share: int) -> None:
            for event in given[:share]:
                self._publish(name, event)

        with self._polled():
            return together(publish, shares(count, workers))

    def _publish(self, name: str, event: dict[str, Any]) -> None:
        """One, and return when it is acknowledged."""
        told: list[object] = []
        done = threading.Event()

        def report(error: object, _message: object) -> None:
            told.append(error)
            done.set()

        self._singles.produce(name, json.dumps(event).encode(), key=key_of(event), on_delivery=report)
        if not done.wait(PATIENCE) or told != [None]:
            raise RuntimeError("a publish was not acknowledged")

    @contextmanager
    def _polled(self) -> Iterator[None]:
        """A thread brings the reports."""
        over = threading.Event()

        def poll() -> None:
            while not over.is_set():
                self._singles.poll(0.1)

        poller = threading.Thread(target=poll)
        poller.start()
        try:
            yield
        finally:
            over.set()
            poller.join()

    def consume(self, topic: str, count: int) -> float:
        watch = Stopwatch(count)
        ends = time.monotonic() + PATIENCE * 3
        with self._consumer(topic) as consumer:
            while watch.got < count:
                messages = consumer.consume(min(500, count - watch.got), 0.2)
                for message in messages:
                    json.loads(_value(message))
                    watch.one()
                if messages:
                    consumer.commit(asynchronous=True)
                elif time.monotonic() > ends:
                    raise RuntimeError(f"only {watch.got} of {count} messages came")
        return watch.seconds

    @contextmanager
    def _consumer(self, topic: str) -> Iterator[Consumer]:
        consumer = Consumer(
            self._servers | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        )
        consumer.subscribe([full(topic)])
        try:
            yield consumer
        finally:
            consumer.close()

    def paced(self, topic: str, count: int, rate: float) -> list[float]:
        took = []
        [event] = envelopes(1)
        with self._polled():
            for wait in waits(count, rate):
                time.sleep(wait)
                now = time.monotonic_ns()
                event["payload"]["title"] = str(now)
                self._publish(full(topic), event)
                took.append(since(now))
        return took

    def arrivals(self, topic: str, count: int) -> list[float]:
        took: list[float] = []
        ends = time.monotonic() + PATIENCE * 3
        with self._consumer(topic) as consumer:
            while not consumer.assignment() and time.monotonic() < ends:
                consumer.poll(0.01)  # the topic is empty until then
            answer(progress=0)
            while len(took) < count:
                message = consumer.poll(1.0)
                if message is not None:
                    took.append(since(json.loads(_value(message))["payload"]["title"]))
                    consumer.commit(message=message, asynchronous=True)
                elif time.monotonic() > ends:
                    raise RuntimeError(f"only {len(took)} of {count} messages came")
        return took


def _value(message: Message) -> bytes:
    if message.error() is not None:
        raise KafkaException(message.error())
    return message.value() or b""


if __name__ == "__main__":
    serve(Confluent, "confluent-kafka")
