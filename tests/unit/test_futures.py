"""Futures of publishes that somebody looks at while they end, and what they keep alive."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from incident_messaging import MessagingBackend, MessagingConfig, MessagingService, PublishFailed
from incident_messaging.callbacks import CallbackThread
from incident_messaging.publishing.future import OutcomeFuture
from incident_messaging.publishing.outlet import Ledger
from incident_messaging.publishing.publication import PublishReceipt
from incident_messaging.testing import reset


@attrs.define
class Order:
    number: int


@pytest.fixture
def service() -> Iterator[MessagingService]:
    reset()
    with MessagingService(MessagingConfig(backend="memory")) as service:
        yield service


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def callbacks() -> CallbackThread:
    return CallbackThread("incident-messaging-callbacks")


def receipt() -> PublishReceipt:
    return PublishReceipt(message_id="1", topic="orders", results={})


@pytest.mark.parametrize("outcome", [receipt, PublishFailed("no")], ids=["acknowledged", "failed"])
def test_who_looks_while_it_ends_sees_the_end(hasty: None, callbacks: CallbackThread, outcome: Any) -> None:
    error = outcome if isinstance(outcome, PublishFailed) else None
    with ThreadPoolExecutor(2) as pool:
        for _ in range(100):
            future = OutcomeFuture("orders", callbacks)
            lookers = [pool.submit(future.exception, 5.0) for _ in range(2)]
            future._end(outcome)
            assert [looker.result() for looker in lookers] == [error, error]
            assert future.done()


def test_it_is_running_for_whoever_looks_first(hasty: None, callbacks: CallbackThread) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(300):
            future = OutcomeFuture("orders", callbacks)
            looks = [pool.submit(look) for look in (future.cancel, future.running)]
            assert [look.result() for look in looks] == [False, True]


def test_the_result_is_made_once(service: MessagingService) -> None:
    future = service.publish_nowait("orders", {"n": 1})
    assert future.result(5.0) is future.result(5.0)


def test_a_future_that_is_kept_keeps_neither_the_message_nor_the_broker() -> None:
    service, order = MessagingService(MessagingConfig(backend="memory")), Order(1)
    future, message = service.publish_nowait("orders", order), weakref.ref(order)
    broker = weakref.ref(service._connections.outlet(MessagingBackend.MEMORY).broker)
    service.close()
    del order, service
    gc.collect()
    assert (message(), broker()) == (None, None)
    assert future.result(0).topic == "orders"


def test_an_error_that_was_raised_makes_no_circle(callbacks: CallbackThread) -> None:
    future = OutcomeFuture("orders", callbacks)
    future._end(PublishFailed("no"))
    with pytest.raises(PublishFailed):
        future.result(0)
    gone = weakref.ref(future)
    gc.disable()
    try:
        del future
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_future_cannot_be_copied(service: MessagingService, copied: Callable[[Any], Any]) -> None:
    future = service.publish_nowait("orders", {"n": 1})
    with pytest.raises(TypeError, match="cannot be copied or pickled; its receipt can"):
        copied(future)
    assert copied(future.result(5.0)) is not None


def test_what_was_flushed_is_told(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the outcomes come on a thread of the broker's."""
    ended = threading.Event()

    def later(self: Ledger, run: Callable[[], None] = Ledger.settle) -> None:
        def settle() -> None:
            ended.wait(20.0)
            run(self)

        threading.Thread(target=settle).start()

    monkeypatch.setattr(Ledger, "settle", later)
    with MessagingService(MessagingConfig(backend="memory")) as service:
        for _ in range(20):
            ended.clear()
            futures = [service.publish_nowait("orders", {"n": number}) for number in range(50)]
            ended.set()
            service.flush(20.0)
            assert all(future.done() for future in futures)


def test_a_future_looks_like_one(service: MessagingService) -> None:
    future = service.publish_nowait("orders", {"n": 1})
    service.flush(5.0)
    assert "state=finished returned PublishReceipt" in repr(future)
