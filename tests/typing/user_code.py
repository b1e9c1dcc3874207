"""What a user writes, checked with ``mypy --strict`` by `test_typing.py`: never run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict, assert_type

import attrs

from incident_messaging import (
    AnyIncidentEvent,
    BatchResult,
    Delivery,
    Health,
    IncidentCreated,
    IncidentEvent,
    IncidentResolved,
    MessageEnvelope,
    MessagingBackend,
    MessagingConfig,
    MessagingError,
    MessagingService,
    Position,
    PublishReceipt,
    RetryPolicy,
    Subscription,
    from_json,
    to_json,
)


@attrs.frozen
class Order:
    number: int


@dataclass
class Invoice:
    number: int


class Note(TypedDict):
    text: str


service = MessagingService(MessagingConfig(backend=MessagingBackend.MEMORY, retry=RetryPolicy(max_attempts=3)))


def publishing() -> None:
    assert_type(service.publish("orders", Order(1), key="k", headers={"a": "b"}, timeout=1.0), PublishReceipt)
    assert_type(service.publish_nowait("orders", Order(1)), Future[PublishReceipt])
    batch = service.publish_batch("orders", [Order(1), Order(2)], key=lambda order: str(order.number))
    assert_type(batch, BatchResult)
    assert_type(len(batch), int)
    assert_type(service.publish_batch(lambda order: f"orders.{order.number}", iter([Order(1)])), BatchResult)
    assert_type(service.publish_incident_created("INC-1", "high", "db", "down", timeout=1.0), PublishReceipt)
    try:
        service.publish("orders", MessageEnvelope.new(Order(1), correlation_id="c"), backend="nats")
    except MessagingError as error:
        assert_type(error.code, str)
        assert_type(error.retryable, bool)


def subscribing() -> None:
    assert_type(service.subscribe("orders", Order), Subscription[Order])
    assert_type(service.subscribe("invoices", Invoice, group="g", start="latest"), Subscription[Invoice])
    assert_type(service.subscribe("notes", Note, start=datetime.now(UTC)), Subscription[Note])
    assert_type(service.subscribe("orders", MessageEnvelope[Order]), Subscription[Order])
    assert_type(service.subscribe("orders"), Subscription[dict[str, Any]])
    assert_type(service.subscribe("orders", bytes, start=Position(topic="orders", partition=0)), Subscription[bytes])
    assert_type(service.subscribe("orders", str), Subscription[str])
    assert_type(service.subscribe("incidents.*", IncidentEvent, broadcast=True), Subscription[IncidentEvent])
    assert_type(service.subscribe("incidents.created", IncidentCreated), Subscription[IncidentCreated])
    assert_type(service.subscribe("incidents.*", AnyIncidentEvent), Subscription[Any])
    assert_type(service.subscribe("orders", list[int]), Subscription[list[int]])
    anything: Subscription[Any] = service.subscribe("orders", Any)
    anything.close()


def iterating() -> None:
    with service.subscribe("orders", Order) as subscription:
        for delivery in subscription:
            assert_type(delivery, Delivery[Order])
            assert_type(delivery.payload.number, int)
            assert_type(delivery.envelope, MessageEnvelope[Order])
            assert_type(delivery.key, str | None)
        one = subscription.next(1.0)
        assert_type(one, Delivery[Order] | None)
        assert_type(subscription.next_batch(10, timeout=1.0), list[Delivery[Order]])
    assert_type(service.consume("orders", Order, timeout=1.0, limit=3, group="g"), Iterator[Delivery[Order]])
    assert_type(service.consume("orders", timeout=1.0), Iterator[Delivery[dict[str, Any]]])
    assert_type(service.consume_one("orders", Order, timeout=1.0), Delivery[Order] | None)
    assert_type(service.consume_one("orders"), Delivery[dict[str, Any]] | None)


def handle_order(delivery: Delivery[Order]) -> None:
    delivery.ack(confirm=True)


def handle_note(delivery: Delivery[dict[str, Any]]) -> str:
    return str(delivery.payload["text"])


def callbacks() -> None:
    assert_type(service.subscribe("orders", Order, callback=handle_order, concurrency=4), Subscription[Order])
    service.subscribe("notes", callback=handle_note)
    service.subscribe("orders", MessageEnvelope[Order], callback=handle_order, handler_timeout=5.0)
    service.subscribe("orders", Order, callback=lambda delivery: delivery.payload.number)

    @service.handler("incidents.resolved", IncidentResolved, group="g")
    def resolved(delivery: Delivery[IncidentResolved]) -> int:
        return delivery.payload.resolution_time_secs

    assert_type(resolved(next(service.consume("incidents.resolved", IncidentResolved))), int)


def by_variant(event: AnyIncidentEvent) -> str:
    match event:
        case IncidentCreated(title=title):
            return title
        case IncidentResolved(resolution_time_secs=seconds):
            return f"after {seconds} s"
        case _:
            return event.incident_id


def wire_and_life() -> None:
    assert_type(to_json(Order(1)), str)
    assert_type(from_json("{}", Order), Order)
    assert_type(service.health(), Health)
    assert_type(service.close(timeout=1.0), list[str])


def mistakes() -> None:
    """Each line is an error, and mypy finds an unused ignore if it is not."""
    service.subscribe("invoices", Invoice, callback=handle_order)  # type: ignore[arg-type]
    service.subscribe("orders", Order, concurrent=4)  # type: ignore[call-overload]
    service.subscribe("orders", Order, start="yesterday")  # type: ignore[call-overload]
    service.consume_one("orders", Order).payload  # type: ignore[union-attr]  # noqa: B018
    MessagingConfig(backend="memory", retries=3)  # type: ignore[call-arg]
    service.publish("orders", Order(1), key=7)  # type: ignore[arg-type]
