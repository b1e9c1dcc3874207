"""What comes in between: Ctrl-C, a second look, somebody who only waits. Nothing is left standing by it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest
from waiting import takes, until

from incident_messaging import (
    MESSAGING_METRICS,
    ConfigurationError,
    Delivery,
    MessagingBackend,
    MessagingConfig,
    MessagingService,
    PublishFailed,
)
from incident_messaging.backends import memory
from incident_messaging.callbacks import CallbackThread
from incident_messaging.deadline import Deadline
from incident_messaging.eventloop import EventLoop
from incident_messaging.publishing.future import OutcomeFuture
from incident_messaging.publishing.outlet import Window
from incident_messaging.testing import reset

Later = Callable[[Callable[[], object]], threading.Thread]


@pytest.fixture
def service() -> Iterator[MessagingService]:
    reset()
    with MessagingService(MessagingConfig(backend="memory")) as service:
        yield service


def test_a_thread_in_join_keeps_no_message_from_a_worker(service: MessagingService, later: Later) -> None:
    handled = []

    def handle(delivery: Delivery[dict[str, Any]]) -> None:
        delivery.ack()
        handled.append(delivery.payload["n"])

    subscription = service.subscribe("orders", group="g", callback=handle, auto_ack=False)
    joining = later(subscription.join)
    for number in range(50):
        service.publish("orders", {"n": number})
        assert until(lambda number=number: len(handled) > number), f"{number} waits for the next one"  # type: ignore[misc]
    subscription.close()
    joining.join(20.0)
    assert not joining.is_alive()


def test_a_place_whose_publish_was_broken_off_holds_nobody_for_ever() -> None:
    window, now = Window(1, 1_000), Deadline.after(0.0)
    assert window.acquire(10, now, Deadline.after(1.0))
    with takes(at_least=2.0, at_most=20.0):
        assert not window.wait_empty(Deadline.after(0.5)), "it may still have an outcome"
        assert window.wait_empty(Deadline.after(None))
    window.release(1, 10)
    assert len(window) == 0, "also where it has one after all"
    assert window.acquire(10, now, now)
    assert window.acquire(10, Deadline.after(20.0), now), "who waits for a place gets it"


def test_a_flush_waits_for_what_is_on_its_way_as_long_as_that_may_take() -> None:
    window = Window(10, 1_000)
    assert window.acquire(10, Deadline.after(0.0), Deadline.after(4.0))
    assert window.acquire(10, Deadline.after(0.0), Deadline.after(0.1))
    outcome = threading.Timer(3.5, window.release, (2, 20))
    outcome.start()
    with takes(at_least=3.0, at_most=20.0):
        assert window.wait_empty(Deadline.after(None))
    outcome.join()


def test_a_topic_of_a_callable_is_checked_for_every_message(service: MessagingService) -> None:
    with pytest.raises(PublishFailed) as caught:
        service.publish_batch(lambda _: "", [{"n": 1}, {"n": 2}])
    assert [type(error) for error in caught.value.result.failures.values()] == [ConfigurationError] * 2


def test_a_hand_over_that_is_broken_off_keeps_no_place_in_the_window(
    service: MessagingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = memory.World.append
    taken = []

    def interrupted(world: Any, record: Any) -> Any:
        taken.append(record)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return append(world, record)

    monkeypatch.setattr(memory.World, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        service.publish_batch("orders", [{"n": number} for number in range(20)])
    window = service._connections.outlet(MessagingBackend.MEMORY).window
    assert len(taken) == 5
    assert len(window) == 1, "of the one that it was broken off at nothing is known"


def test_a_window_that_is_smaller_than_a_run_gives_each_message_its_own_time() -> None:
    window = Window(2, 1_000)
    assert window.acquire_some([10, 10, 10], Deadline.after(0.0)) == 2
    assert window.acquire_some([10], Deadline.after(0.0)) == 0
    window.release(2, 20)
    assert window.acquire_some([2_000, 10], Deadline.after(0.0)) == 1, "one is always let in"


def test_a_mailbox_that_was_interrupted_is_woken_by_the_next_item(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = EventLoop("incident-messaging-test-loop")
    seen: list[int] = []
    mailbox = loop.mailbox(seen.extend, lambda _: None)
    call = loop.call

    def interrupted(_: Callable[[], None]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mailbox.put(1)
    monkeypatch.setattr(loop, "call", call)
    mailbox.put(2)
    assert until(lambda: seen == [1, 2])
    assert loop.stop(Deadline.after(20.0))


def test_a_future_that_says_done_has_its_result(service: MessagingService) -> None:
    futures = [service.publish_nowait("orders", {"n": 1}) for _ in range(2)]
    assert futures[0].running() is False  # looked at, so that it is a whole one
    for future in futures:
        assert future.done()
        assert future.result(0).topic == "orders"
        assert future.cancel() is False
    waiting = OutcomeFuture("orders", CallbackThread("incident-messaging-callbacks"))
    assert (waiting.running(), waiting.done(), waiting.cancel()) == (True, False, False)


def test_a_batch_in_hand_is_counted_whole(service: MessagingService) -> None:
    for number in range(10):
        service.publish("counted", {"n": number})
    before = MESSAGING_METRICS.value("messages_consumed", topic="counted", backend="memory")
    with service.subscribe("counted", group="g") as subscription:
        assert len(subscription.next_batch(10, timeout=20.0)) == 10
        assert MESSAGING_METRICS.value("messages_consumed", topic="counted", backend="memory") - before == 10


def test_a_text_enum_is_the_topic_that_it_equals(service: MessagingService) -> None:
    class Topic(str, Enum):  # noqa: UP042  # what applications have
        ORDERS = "orders"

    subscription = service.subscribe("orders", group="g")
    service.publish(Topic.ORDERS, {"n": 1})
    service.publish("orders", {"n": 2})
    assert [delivery.payload["n"] for delivery in subscription.next_batch(2, timeout=20.0)] == [1, 2]
    subscription.close()


def test_without_metrics_prometheus_client_is_never_loaded() -> None:
    code = (
        "import sys; from incident_messaging import *\n"
        "service = MessagingService(MessagingConfig(backend='memory', enable_metrics=False))\n"
        "try: service.publish('not a topic', 1)\n"
        "except ConfigurationError: print('prometheus_client' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "False\n"
