"""What a tracer is shown of publishes and callbacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from incident_messaging import (
    MESSAGING_METRICS,
    BackendUnavailable,
    Delivery,
    MessagingConfig,
    MessagingService,
    PublishFailed,
    tracing,
)
from incident_messaging.testing import run_until_idle


class Recorder:
    """Notes what it is shown."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []

    def publishing(self, message: tracing.Outgoing) -> Recorded:
        self.notes.append(("publishing", message.topic, message.backends, message.correlation_id, message.key))
        return Recorded(self.notes)

    @contextmanager
    def handling(self, delivery: Delivery[Any]) -> Iterator[None]:
        self.notes.append(("handling", delivery.headers.get("traceparent")))
        try:
            yield
        except RuntimeError as error:
            self.notes.append(("failed", str(error)))
            raise


class Recorded:
    headers: Mapping[str, str] = {"traceparent": "00-1-2-01"}

    def __init__(self, notes: list[tuple[Any, ...]]) -> None:
        self._notes = notes

    def ended(self, results: Mapping[Any, Any], error: BaseException | None) -> None:
        self._notes.append(("ended", [result.state for result in results.values()], error and type(error)))


@pytest.fixture
def notes() -> Iterator[list[tuple[Any, ...]]]:
    recorder = Recorder()
    tracing.install(recorder)
    yield recorder.notes
    tracing.install(None)


def test_a_publish_is_followed_to_its_outcome_and_its_callback(messaging: MessagingService, notes: list[Any]) -> None:
    messaging.subscribe("orders", callback=lambda _: None)
    messaging.publish("orders", {}, key="k", correlation_id="c")
    run_until_idle(messaging)
    assert notes == [
        ("publishing", "orders", ["memory"], "c", "k"),
        ("ended", ["ok"], None),
        ("handling", "00-1-2-01"),
    ]


def test_what_a_callback_raises_is_seen(messaging: MessagingService, notes: list[Any]) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("out of luck")

    messaging.subscribe("orders", callback=fail)
    messaging.publish("orders", {})
    with pytest.raises(RuntimeError):
        run_until_idle(messaging)
    assert notes[-1] == ("failed", "out of luck")


def test_a_publish_that_is_never_handed_over_ends_too(notes: list[Any], nats_server_factory: Any) -> None:
    server = nats_server_factory()
    config = MessagingConfig.from_mapping({"nats": {"servers": [server.url]}, "max_in_flight": 1})
    with MessagingService(config) as service:
        service.publish("orders", {})
        server.freeze()
        try:
            service.publish_nowait("orders", {})
            with pytest.raises(BackendUnavailable, match="full"):
                service.publish_nowait("orders", {})
            assert notes[-1] == ("ended", [], BackendUnavailable)
        finally:
            server.thaw()
        service.flush(20.0)
    assert [note[0] for note in notes].count("publishing") == [note[0] for note in notes].count("ended") == 3


def test_what_is_too_large_with_its_trace_is_refused(
    messaging: MessagingService, notes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x" * (messaging.config.max_message_size - 600)
    messaging.publish("orders", text)
    monkeypatch.setattr(Recorded, "headers", {"baggage": "b" * 600})
    counted = partial(
        MESSAGING_METRICS.value, "publish_failures", topic="orders", backend="memory", error="PublishFailed"
    )
    before = counted()
    with pytest.raises(PublishFailed, match="exceeds max_message_size") as caught:
        messaging.publish("orders", text)
    assert notes[-1] == ("ended", [], PublishFailed)
    assert (counted() - before, caught.value.topic) == (1, "orders")


def test_the_users_own_headers_stay(
    messaging: MessagingService, notes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorded, "headers", {"traceparent": "00-1-2-01", "baggage": "the tracer's"})
    messaging.publish("orders", {}, headers={"baggage": "mine"})
    delivery = messaging.consume_one("orders", timeout=0)
    assert delivery is not None
    assert (delivery.headers["baggage"], delivery.headers["traceparent"]) == ("mine", "00-1-2-01")


def test_nobody_looks_on_after_the_tracer_was_taken_away(messaging: MessagingService, notes: list[Any]) -> None:
    tracing.install(None)
    messaging.subscribe("orders", callback=lambda _: None)
    messaging.publish("orders", {})
    run_until_idle(messaging)
    assert notes == []
