"""Futures of publishes that somebody looks at while they end, and what they keep alive."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from incident_messaging import MessagingConfig, MessagingService, PublishFailed
from incident_messaging.callbacks import CallbackThread
from incident_messaging.publishing.future import PublishFuture
from incident_messaging.publishing.publication import PublishReceipt
from incident_messaging.testing import reset


@attrs.define
class Order:
    number: int


class Ending(PublishFuture):
    """A future that ends as a test wants it."""

    def __init__(self, error: PublishFailed | None) -> None:
        self.label = "orders"
        self._callback_thread = CallbackThread("incident-messaging-callbacks")
        self._error = error

    def failure(self) -> PublishFailed | None:
        assert self._ended
        return self._error

    def receipt(self) -> PublishReceipt:
        assert self._ended
        return PublishReceipt(message_id="1", topic="orders", results={})


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


@pytest.mark.parametrize("error", [None, PublishFailed("no")], ids=["acknowledged", "failed"])
def test_who_looks_while_it_ends_sees_the_end(hasty: None, error: PublishFailed | None) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(100):
            future = Ending(error)
            lookers = [pool.submit(future.exception, 5.0) for _ in range(2)]
            future._end()
            assert [looker.result() for looker in lookers] == [error, error]
            assert future.done()


def test_the_result_is_made_once(service: MessagingService) -> None:
    future = service.publish_nowait("orders", {"n": 1})
    assert future.result(5.0) is future.result(5.0)


def test_a_future_that_is_kept_keeps_no_message(service: MessagingService) -> None:
    order = Order(1)
    future, message = service.publish_nowait("orders", order), weakref.ref(order)
    service.flush(5.0)
    del order
    assert message() is None
    receipt = future.result(5.0)
    assert (receipt.topic, receipt.message_id in repr(receipt)) == ("orders", True)


def test_a_future_looks_like_one(service: MessagingService) -> None:
    future = service.publish_nowait("orders", {"n": 1})
    service.flush(5.0)
    assert "state=finished returned PublishReceipt" in repr(future)
