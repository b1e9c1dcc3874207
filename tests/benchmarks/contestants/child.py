"""A contestant's own process: it does what it is asked, a line of JSON each way.

Orders come on standard input as ``{"call": NAME, ...}``, answers go out as ``{"result": ...}`` or
``{"error": TEXT}``; ``{"progress": N}`` may come before. What a library prints goes to standard error.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any, TypeVar

T = TypeVar("T")

#: What stands before every topic on the brokers.
PREFIX = "llm-im"
STREAM = PREFIX.upper()
#: Messages that are told together to whoever feeds a contestant.
STEP = 500
#: Seconds that a contestant waits for a message before it says that none comes.
PATIENCE = 20.0

_answers = -1


def serve(contestant: Callable[..., object], *libraries: str) -> None:
    """Make a contestant of the settings in the first argument, and do what the runner asks until it hangs up."""
    global _answers
    _answers = os.dup(1)
    os.dup2(2, 1)
    hand = contestant(**json.loads(sys.argv[1]))
    answer(ready={name: version(name) for name in libraries})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer(result=getattr(hand, order.pop("call"))(**order))
        except Exception:
            answer(error=traceback.format_exc())
    os._exit(0)  # how it would end is not measured, and must not hold up the next one


def answer(**words: Any) -> None:
    """Tell the runner."""
    os.write(_answers, json.dumps(words).encode() + b"\n")


def full(topic: str) -> str:
    """The topic's name on the broker."""
    return f"{PREFIX}.{topic}"


def envelopes(count: int, **fields: Any) -> list[dict[str, Any]]:
    """What the SDK makes of an incident event, as the other clients are given it: complete, ids and all."""
    now = int(time.time())
    return [
        {
            "metadata": {
                "message_id": uuid.uuid4().hex, "correlation_id": None, "timestamp": now, "source": "bench",
                "version": "1.0", "headers": {},
            },
            "payload": {"type": "Created", "incident_id": f"INC-{number % 997}", "severity": "high",
                        "incident_type": "disk", "title": "full", **fields},
        }
        for number in range(count)
    ]  # fmt: skip


def ready(things: T) -> T:
    """What is to be published, made before the clock starts; no collection of garbage has to walk through it."""
    gc.collect()
    gc.freeze()
    return things


def key_of(envelope: dict[str, Any]) -> str:
    """The key that keeps an incident's events in order."""
    key: str = envelope["payload"]["incident_id"]
    return key


def waits(count: int, rate: float) -> Iterator[float]:
    """Seconds to wait before each of so many, for so many a second."""
    begun = time.monotonic()
    for number in range(count):
        yield max(0.0, begun + number / rate - time.monotonic())


def since(sent_ns: str | int) -> float:
    """Microseconds since a time of `time.monotonic_ns`, which is one clock for all processes of a machine."""
    return (time.monotonic_ns() - int(sent_ns)) / 1000


def together(work: Callable[[int], None], parts: list[int]) -> float:
    """Seconds until each part is done by a thread of its own."""
    failed: list[BaseException] = []

    def run(part: int) -> None:
        try:
            work(part)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in parts]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failed:
        raise failed[0]
    return seconds


async def side_by_side(work: Callable[[int], Awaitable[object]], parts: Iterable[int]) -> float:
    """Seconds until each part is done by a task of its own."""
    begun = time.perf_counter()
    await asyncio.gather(*(work(part) for part in parts))
    return time.perf_counter() - begun


async def read(client: Any) -> None:
    """The server has read all that a client of nats-py was given to send.

    Its ``flush`` alone does not say so: it writes its PING before what still waits to be written.
    """
    while client.pending_data_size:
        await asyncio.sleep(0)
    await client.flush()


class Stopwatch:
    """From the first message in hand to the last; what joining a group takes does not count."""

    def __init__(self, count: int, *, tell: bool = False) -> None:
        self._count = count
        self._tell = tell
        self._begun = 0.0
        self.got = 0
        self.seconds = 0.0

    def one(self, *_: object) -> bool:
        """Count a message, and say whether it was the last."""
        if not self.got:
            self._begun = time.perf_counter()
        self.got += 1
        if self._tell and self.got % STEP == 0:
            answer(progress=self.got)
        if self.got == self._count:
            self.seconds = time.perf_counter() - self._begun
            return True
        return False


def shares(count: int, workers: int) -> list[int]:
    """How many messages each worker has."""
    return [count // workers + (number < count % workers) for number in range(workers)]


def all_true(results: Iterable[bool], what: str) -> None:
    """Every publish of a contestant was acknowledged; else its figure is none."""
    if not all(results):
        raise RuntimeError(f"not every {what} was acknowledged")
