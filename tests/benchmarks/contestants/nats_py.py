"""nats-py as its documentation shows it, on asyncio's loop or on uvloop's."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import nats
from nats.aio.msg import Msg

from .child import (
    PATIENCE,
    Stopwatch,
    all_true,
    answer,
    envelopes,
    full,
    read,
    ready,
    serve,
    shares,
    side_by_side,
    since,
    waits,
)


class NatsPy:
    def __init__(self, address: str, delivery: str = "jetstream", uvloop: bool = False, **_: Any) -> None:
        self._core = delivery == "core"
        self._runner = asyncio.Runner(loop_factory=_uvloop() if uvloop else None)
        self._runner.run(self._connect(address))

    async def _connect(self, address: str) -> None:
        self._client = await nats.connect(address)
        self._stream = self._client.jetstream(publish_async_max_pending=4000)

    def publish_batch(self, topic: str, count: int) -> float:
        async def run() -> float:
            subject, given, futures = full(topic), ready(envelopes(count)), []
            begun = time.perf_counter()
            for event in given:
                futures.append(await self._stream.publish_async(subject, json.dumps(event).encode()))
            await self._stream.publish_async_completed()
            seconds = time.perf_counter() - begun
            all_true((future.exception() is None for future in futures), "publish")
            return seconds

        return self._runner.run(run())

    def publish_nowait(self, topic: str, count: int) -> float:
        async def run() -> float:
            subject, given = full(topic), ready(envelopes(count))
            begun = time.perf_counter()
            for event in given:
                await self._client.publish(subject, json.dumps(event).encode())
            await read(self._client)
            return time.perf_counter() - begun

        return self._runner.run(run())

    def publish_each(self, topic: str, count: int, workers: int) -> float:
        async def run() -> float:
            subject, given = full(topic), ready(envelopes(count // workers + 1))

            async def publish(share: int) -> None:
                for event in given[:share]:
                    await self._stream.publish(subject, json.dumps(event).encode())

            return await side_by_side(publish, shares(count, workers))

        return self._runner.run(run())

    def consume(self, topic: str, count: int) -> float:
        async def run() -> float:
            watch, name = Stopwatch(count), uuid.uuid4().hex
            place = await self._stream.pull_subscribe(full(topic), durable=name)
            while watch.got < count:
                for message in await place.fetch(min(500, count - watch.got), timeout=PATIENCE):
                    json.loads(message.data)
                    await message.ack()
                    watch.one()
            await place.unsubscribe()
            return watch.seconds

        return self._runner.run(run())

    def handle(self, topic: str, count: int, fed: bool = True) -> float:
        async def run() -> float:
            watch, done = Stopwatch(count, tell=fed), asyncio.Event()

            async def callback(message: Msg) -> None:
                json.loads(message.data)
                if watch.one():
                    done.set()

            place = await self._client.subscribe(full(topic), cb=callback)
            await read(self._client)
            answer(progress=0)
            await asyncio.wait_for(done.wait(), PATIENCE * 3)
            await place.unsubscribe()
            return watch.seconds

        return self._runner.run(run())

    def paced(self, topic: str, count: int, rate: float) -> list[float]:
        async def run() -> list[float]:
            subject, took = full(topic), []
            [event] = envelopes(1)
            for wait in waits(count, rate):
                await asyncio.sleep(wait)
                now = time.monotonic_ns()
                event["payload"]["title"] = str(now)
                if self._core:
                    await self._client.publish(subject, json.dumps(event).encode())
                    await read(self._client)
                else:
                    await self._stream.publish(subject, json.dumps(event).encode())
                took.append(since(now))
            return took

        return self._runner.run(run())

    def arrivals(self, topic: str, count: int) -> list[float]:
        async def run() -> list[float]:
            took: list[float] = []
            done = asyncio.Event()

            async def callback(message: Msg) -> None:
                took.append(since(json.loads(message.data)["payload"]["title"]))
                if not self._core:
                    await message.ack()
                if len(took) == count:
                    done.set()

            if self._core:
                await self._client.subscribe(full(topic), cb=callback)
                await read(self._client)
            else:
                await self._stream.subscribe(full(topic), durable=uuid.uuid4().hex, cb=callback, manual_ack=True)
            answer(progress=0)
            await asyncio.wait_for(done.wait(), PATIENCE * 3)
            return took

        return self._runner.run(run())


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


if __name__ == "__main__":
    serve(NatsPy, "nats-py", "uvloop")
