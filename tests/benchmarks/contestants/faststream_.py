"""FastStream at its fastest: no validation of types, many publishes at a time, handlers that take plain JSON.

On JetStream a push consumer is its fastest; a pull consumer (``pull``) is what it recommends where a subscription
is durable. On Kafka it commits each message (its ``AckPolicy.ACK``), or in the background before it was handled
(``auto``: its default, at most once).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

from faststream import AckPolicy

from .child import (
    PATIENCE,
    STREAM,
    Stopwatch,
    answer,
    envelopes,
    full,
    key_of,
    read,
    ready,
    serve,
    shares,
    side_by_side,
)

#: Publishes that wait for their acknowledgement at a time.
AT_ONCE = 256


class FastStream:
    def __init__(self, broker: str, address: str, delivery: str = "jetstream", **ways: bool) -> None:
        self._ways = ways
        self._core = delivery == "core"
        self._runner = asyncio.Runner()
        self._runner.run(self._start(_nats if broker == "nats" else _kafka, address))
        self._place = self._kafka_place if broker == "kafka" else self._nats_place
        self._options = {"stream": STREAM, "timeout": PATIENCE} if broker == "nats" and not self._core else {}

    async def _start(self, make: Callable[[str], Any], address: str) -> None:
        self._broker = make(address)
        await self._broker.start()

    def publish_batch(self, topic: str, count: int) -> float:
        return self.publish_each(topic, count, AT_ONCE) if self._options else self._kafka_batch(topic, count)

    def _kafka_batch(self, topic: str, count: int) -> float:
        async def run() -> float:
            name, given = full(topic), ready(envelopes(count))
            begun = time.perf_counter()
            await asyncio.gather(
                *[
                    await self._broker.publish(event, name, key=key_of(event).encode(), no_confirm=True)
                    for event in given
                ]
            )
            return time.perf_counter() - begun

        return self._runner.run(run())

    def publish_nowait(self, topic: str, count: int) -> float:
        async def run() -> float:
            subject, given = full(topic), ready(envelopes(count))
            begun = time.perf_counter()
            for event in given:
                await self._broker.publish(event, subject)
            await read(self._broker.config.connection_state.connection)
            return time.perf_counter() - begun

        return self._runner.run(run())

    def publish_each(self, topic: str, count: int, workers: int) -> float:
        async def run() -> float:
            name, given = full(topic), ready(envelopes(count // workers + 1))

            async def publish(share: int) -> None:
                for event in given[:share]:
                    own = self._options or {"key": key_of(event).encode()}
                    await self._broker.publish(event, name, **own)

            return await side_by_side(publish, shares(count, workers))

        return self._runner.run(run())

    def consume(self, topic: str, count: int) -> float:
        return self.handle(topic, count)

    def handle(self, topic: str, count: int, fed: bool = False) -> float:
        async def run() -> float:
            watch, done = Stopwatch(count, tell=fed), asyncio.Event()
            place = self._place(full(topic), uuid.uuid4().hex)

            async def handler(_body: Any) -> None:
                if watch.one():
                    done.set()

            place(handler)
            await place.start()
            if fed:
                await read(self._broker.config.connection_state.connection)
                answer(progress=0)
            await asyncio.wait_for(done.wait(), PATIENCE * 3)
            await place.stop()
            return watch.seconds

        return self._runner.run(run())

    def _nats_place(self, subject: str, name: str) -> Any:
        if self._core:
            return self._broker.subscriber(subject, persistent=False)
        from faststream.nats import JStream, PullSub

        stream, pull = JStream(STREAM, declare=False), {"pull_sub": PullSub(500)} if self._ways.get("pull") else {}
        return self._broker.subscriber(
            subject, stream=stream, durable=name, persistent=False, ack_policy=AckPolicy.ACK, **pull
        )

    def _kafka_place(self, topic: str, name: str) -> Any:
        policy = AckPolicy.ACK_FIRST if self._ways.get("auto") else AckPolicy.ACK
        return self._broker.subscriber(
            topic, group_id=name, auto_offset_reset="earliest", persistent=False, ack_policy=policy
        )


def _nats(address: str) -> Any:
    from faststream.nats import NatsBroker

    return NatsBroker(address, apply_types=False, logger=None)


def _kafka(address: str) -> Any:
    from faststream.confluent import KafkaBroker

    return KafkaBroker(
        address, acks="all", enable_idempotence=True, compression_type="snappy", apply_types=False, logger=None
    )


if __name__ == "__main__":
    serve(FastStream, "faststream", "nats-py", "confluent-kafka")
