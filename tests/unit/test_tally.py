"""What is counted of messages in hand reaches the meter in bursts, and all of it."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from incident_messaging.consuming.bell import Bell
from incident_messaging.consuming.tally import Tally


class FakeMeter:
    """Takes down what it is told."""

    def __init__(self) -> None:
        self.calls = 0
        self.consumed_of: Counter[str] = Counter()
        self.times: list[float] = []

    def consumed(self, topic: str, backend: str, count: int) -> None:
        self.calls += 1
        self.consumed_of[topic] += count

    def handled(self, topic: str, backend: str, seconds: list[float]) -> None:
        self.times += seconds


def tally_of(meter: Any) -> Tally:
    return Tally(meter, "nats", lambda name: name.removeprefix("p."))


def test_a_message_after_a_pause_is_told_at_once_and_a_burst_together() -> None:
    meter = FakeMeter()
    tally = tally_of(meter)

    tally.consumed("p.orders", 10.0)
    assert (meter.consumed_of["orders"], bool(tally)) == (1, False)
    for step in range(50):
        tally.consumed("p.orders", 10.0 + step / 1_000_000)
    assert (meter.consumed_of["orders"], bool(tally)) == (1, True)
    tally.consumed("p.orders", 10.1)

    assert (meter.consumed_of["orders"], meter.calls, bool(tally)) == (52, 2, False)


def test_many_are_told_although_no_time_passes() -> None:
    meter = FakeMeter()
    tally = tally_of(meter)
    for _ in range(1_000):
        tally.consumed("p.orders", 0.0)
    assert meter.consumed_of["orders"] >= 700


def test_topics_are_told_apart_and_times_all() -> None:
    meter = FakeMeter()
    tally = tally_of(meter)
    for topic in ("p.a", "p.b", "p.a"):
        tally.consumed(topic, 0.0)
        tally.handled(topic, 0.5)
    tally.tell()
    assert (meter.consumed_of, meter.times) == ({"a": 2, "b": 1}, [0.5] * 3)


def test_threads_that_tell_at_once_tell_each_only_once() -> None:
    meter = FakeMeter()
    lock = threading.Lock()
    tally = tally_of(meter)

    def count() -> None:
        for _ in range(2_000):
            tally._consumed.append("p.orders")
            with lock:  # as the meter's own
                tally.tell()

    threads = [threading.Thread(target=count, name=f"test-tally-{number}") for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert meter.consumed_of["orders"] == 8_000


def test_a_bell_wakes_who_waits_and_is_rung_for_nobody() -> None:
    lock = threading.RLock()
    bell = Bell(lock)
    woken = threading.Event()
    with lock:
        bell.notify()
        bell.notify_all()

    def wait() -> None:
        with lock:
            bell.wait(10.0)
        woken.set()

    thread = threading.Thread(target=wait, name="test-bell")
    thread.start()
    while not woken.is_set():
        with lock:
            assert bell.awaited in (0, 1)
            bell.notify(5)
    thread.join(10.0)
    assert bell.awaited == 0
    with lock:
        assert not bell.wait_for(lambda: False, 0.01)
        assert bell.awaited == 0
