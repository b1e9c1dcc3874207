"""What a publish is counted with at its broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from waiting import until

from incident_messaging import MessagingBackend, MessagingConfig
from incident_messaging.backends.memory import MemoryBroker
from incident_messaging.deadline import Deadline, jump, now
from incident_messaging.metrics import Meter
from incident_messaging.publishing.outlet import Ledger, Outlet, Window
from incident_messaging.publishing.publication import Single
from incident_messaging.record import Record
from incident_messaging.testing import reset

SIZE = 10


class Told:
    def __init__(self) -> None:
        self.legs: list[Any] = []

    def finished(self, legs: Sequence[Any]) -> None:
        self.legs += legs


def test_the_latency_of_a_publish_does_not_count_its_wait_for_the_window(
    later: Callable[[Callable[[], object]], threading.Thread],
) -> None:
    reset()
    window = Window(1, 1_000)
    broker = MemoryBroker(MessagingConfig(backend="memory"))
    ledger = Ledger(broker.name, window, Meter(enabled=False, topic_limit=1))
    broker.told = ledger.settle
    told = Told()
    record = Record(topic="t", body=b"{}", dedup_id="1")
    single = Single(Outlet(MessagingBackend.MEMORY, broker, window, ledger), {}, "t", told)
    single.take(record)
    single.taken = SIZE

    assert window.acquire(SIZE, Deadline(None), Deadline(None))
    waiting = later(lambda: single.start(Deadline(None), Deadline.after(10_000)))
    assert until(lambda: window._waiting)
    jump(1_000)
    window.release(1, SIZE)
    waiting.join(10.0)

    assert told.legs == [single]
    assert now() - single.begun < 500
    reset()
