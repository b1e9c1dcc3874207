"""Publishing to two brokers at once, and reading from one of them."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest
from two_brokers import settings
from waiting import takes, until

from incident_messaging import (
    MESSAGING_METRICS,
    ConfigurationError,
    ConnectionFailed,
    Delivery,
    MessageEnvelope,
    MessagingBackend,
    MessagingConfig,
    MessagingError,
    MessagingService,
    PublishFailed,
    PublishReceipt,
    Reject,
    Timeout,
)

NATS, KAFKA = MessagingBackend.NATS, MessagingBackend.KAFKA
PATIENCE = 30.0
#: Seconds that a busy machine may add to what has to end in time.
SLACK = 5.0

Make = Callable[..., MessagingService]


def states(receipt: PublishReceipt) -> set[str]:
    return {result.state for result in receipt.results.values()}


def read(service: MessagingService, topic: str, count: int, backend: MessagingBackend) -> list[Any]:
    found = service.consume(topic, group="reader", backend=backend, timeout=PATIENCE, limit=count)
    return [delivery.payload["n"] for delivery in found]


def test_a_message_arrives_on_both_and_the_receipt_says_so(service: MessagingService) -> None:
    receipt = service.publish("orders", {"n": 1}, key="k", headers={"tenant": "a"})
    assert {backend: result.state for backend, result in receipt.results.items()} == {NATS: "ok", KAFKA: "ok"}
    stored, kept = receipt.results[NATS].position, receipt.results[KAFKA].position
    assert stored is not None
    assert kept is not None
    assert (stored.sequence, kept.offset) == (1, 0)
    for backend in (NATS, KAFKA):
        delivery = next(service.consume("orders", group="g", backend=backend, timeout=PATIENCE, limit=1))
        assert (delivery.backend, delivery.payload, delivery.key) == (backend, {"n": 1}, "k")
        assert (delivery.metadata.message_id, delivery.headers) == (receipt.message_id, {"tenant": "a"})


def test_a_batch_and_futures_go_to_both(service: MessagingService) -> None:
    service.publish_batch("orders", [{"n": n} for n in range(100)], key="k")
    futures = [service.publish_nowait("orders", {"n": n}, key="k") for n in range(100, 200)]
    assert all(len(future.result(PATIENCE).results) == 2 for future in futures)
    service.flush(PATIENCE)
    for backend in (NATS, KAFKA):
        assert read(service, "orders", 200, backend) == list(range(200))


def test_metrics_count_each_broker(service: MessagingService) -> None:
    topic = f"counted-{time.monotonic_ns()}"
    service.publish_batch(topic, [{"n": n} for n in range(5)])
    for label in ("nats", "kafka"):
        assert MESSAGING_METRICS.value("messages_published", topic=topic, backend=label) == 5


@pytest.mark.parametrize("backend", [NATS, KAFKA])
def test_subscriptions_use_the_configured_broker_or_the_one_asked_for(
    new_service: Make, backend: MessagingBackend
) -> None:
    service = new_service(subscribe_backend=backend)
    other = KAFKA if backend is NATS else NATS
    with service.subscribe("orders", group="g") as default, service.subscribe(
        "orders", group="g", backend=other
    ) as chosen:  # fmt: skip
        service.publish("orders", {"n": 1})
        assert (default.backend, chosen.backend) == (backend, other)
        for subscription in (default, chosen):
            delivery = subscription.next(PATIENCE)
            assert delivery is not None
            assert delivery.backend is subscription.backend
    with pytest.raises(ConfigurationError):
        service.subscribe("orders", backend="memory")


def test_one_side_is_repaired_by_backend(service: MessagingService) -> None:
    envelope = MessageEnvelope.new({"n": 1})
    first = service.publish("orders", envelope, backend="nats")
    second = service.publish("orders", envelope, backend=KAFKA)
    assert (list(first.results), list(second.results)) == ([NATS], [KAFKA])
    assert first.message_id == second.message_id == envelope.metadata.message_id
    assert read(service, "orders", 1, NATS) == read(service, "orders", 1, KAFKA) == [1]


# -- one side killed ------------------------------------------------------------------------------


@pytest.fixture
def killable(
    nats_server_factory: Callable[..., Any], kafka_broker: Any, nothing_left_behind: None
) -> tuple[Any, dict[str, Any]]:
    """A NATS server of the test's own, beside the shared Kafka, and the configuration for both."""
    server = nats_server_factory()
    return server, settings(server, kafka_broker)


def service_on(given: dict[str, Any], **overrides: Any) -> MessagingService:
    return MessagingService(MessagingConfig.from_mapping({**given, **overrides}))


def both_are_connected(service: MessagingService) -> None:
    """Publish until both acknowledge: with ``any`` the first success ends a call, and the other may still connect."""
    assert until(lambda: states(service.publish("orders", {"n": 0})) == {"ok"}, PATIENCE)


def test_what_one_broker_refuses_is_named(killable: tuple[Any, dict[str, Any]]) -> None:
    _, given = killable
    with service_on(given, max_message_size=4_000_000) as service:
        with pytest.raises(PublishFailed) as caught:
            service.publish("orders", {"n": "x" * 2_000_000})  # the server takes 1 MiB; Kafka counts it compressed
    error = caught.value
    assert (error.code, error.results[NATS].state, error.results[KAFKA].state) == ("too_large", "failed", "ok")
    assert "kafka: acknowledged" in str(error)


def test_all_names_the_side_that_failed_and_the_one_that_has_it(killable: tuple[Any, dict[str, Any]]) -> None:
    server, given = killable
    with service_on(given) as service:
        service.publish("orders", {"n": 1})
        server.kill()
        assert until(lambda: not service.is_connected, PATIENCE)
        with takes(at_most=2.0 + SLACK), pytest.raises(Timeout) as caught:
            service.publish("orders", {"n": 2}, timeout=2.0)
        error = caught.value
        assert error.results[KAFKA].state == "ok"
        assert error.results[NATS].state in ("failed", "unknown")
        assert error.results[NATS].error is not None
        assert error.maybe_delivered  # Kafka has it
        assert "nats" in str(error)
        assert "kafka: acknowledged" in str(error)
        for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert (str(copied), copied.code, copied.envelope) == (str(error), error.code, error.envelope)
            assert {backend: (result.state, str(result.error)) for backend, result in copied.results.items()} == {
                backend: (result.state, str(result.error)) for backend, result in error.results.items()
            }
        server.start()
        assert until(lambda: service.is_connected, PATIENCE)
        repaired = service.publish("orders", error.envelope, backend=NATS)
        assert repaired.results[NATS].state == "ok"
        assert read(service, "orders", 2, KAFKA) == [1, 2]
        assert read(service, "orders", 2, NATS) == [1, 2]


def test_any_goes_on_with_one_side(killable: tuple[Any, dict[str, Any]]) -> None:
    server, given = killable
    with service_on(given, publish_require="any") as service:
        both_are_connected(service)
        server.kill()
        with takes(at_most=SLACK):  # not the time-out of the side that is gone, which is 10 s
            receipt = service.publish("orders", {"n": 1})
        assert receipt.results[KAFKA].state == "ok"
        assert receipt.results[NATS].state in ("pending", "failed", "unknown")
        assert service.is_connected  # one is enough
        assert len(service.publish_batch("orders", [{"n": n} for n in range(2, 50)])) == 48
        assert until(lambda: service.health().backends["nats"].state == "disconnected", PATIENCE)
        assert service.health().backends["kafka"].state == "connected"
        server.start()  # the close need not wait for what it has not acknowledged


def test_any_returns_at_the_first_acknowledgement_and_waits_little_for_the_other(
    killable: tuple[Any, dict[str, Any]],
) -> None:
    server, given = killable
    with service_on(given, publish_require="any") as service:
        both_are_connected(service)
        server.freeze()
        try:
            with takes(at_most=SLACK):  # not the time-out of the frozen side, which is 10 s
                receipt = service.publish("orders", {"n": 1})
        finally:
            server.thaw()
        assert (receipt.results[KAFKA].state, receipt.results[NATS].state) == ("ok", "pending")
        assert len(service.publish_batch("orders", [{"n": 2}])) == 1


def test_any_fails_when_both_do() -> None:
    given = {
        "backend": "both", "publish_require": "any", "publish_timeout_ms": 800,
        "nats": {"servers": ["nats://127.0.0.1:1"]}, "kafka": {"bootstrap_servers": "127.0.0.1:1"},
    }  # fmt: skip
    service = service_on(given)
    try:
        with takes(at_most=0.8 + SLACK), pytest.raises(MessagingError) as caught:
            service.publish("orders", {"n": 1})
        assert {result.state for result in caught.value.results.values()} == {"failed"}
        assert "nats: " in str(caught.value)
        assert "kafka: " in str(caught.value)
        assert "127.0.0.1:1" in str(caught.value)
    finally:
        service.close()


@pytest.mark.parametrize("require", ["all", "any"])
def test_connecting_follows_publish_require(kafka_broker: Any, require: str, nothing_left_behind: None) -> None:
    given = {
        "backend": "both", "publish_require": require, "connect_timeout_ms": 8000,
        "nats": {"servers": ["nats://127.0.0.1:1"]},
        "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers},
    }  # fmt: skip
    service = service_on(given)
    try:
        if require == "all":
            with pytest.raises(ConnectionFailed) as caught:
                service.connect()
            assert (caught.value.code, caught.value.backend) == ("unreachable", "nats")
            assert not service.is_connected
        else:
            service.connect()
            assert service.is_connected
            assert service.publish("orders", {"n": 1}).results[KAFKA].state == "ok"
    finally:
        service.close()


@pytest.mark.parametrize(("source", "target"), [(NATS, KAFKA), (KAFKA, NATS)])
def test_a_dead_letter_may_be_put_back_on_the_other_broker(
    service: MessagingService, source: MessagingBackend, target: MessagingBackend
) -> None:
    text = "grüße, 100 %"

    def reject(delivery: Delivery[Any]) -> None:
        raise Reject("not on this broker")

    with service.subscribe("orders", group="g", backend=source, callback=reject):
        service.publish("orders", {"n": 1}, key="k", headers={"note": text}, backend=source)
        letters = service.dead_letters
        assert until(lambda: [letter.backend for letter in letters.list()] == [source], PATIENCE)
    report = letters.redrive(backend=source, to=target)
    assert (report.done, report.failed) == (1, 0)
    assert list(letters.list()) == []
    (found,) = service.consume("orders", group="g", backend=target, timeout=PATIENCE, limit=1)
    assert (found.payload, found.key, found.headers["note"]) == ({"n": 1}, "k", text)
    assert found.headers["x-redrive-count"] == "1"
