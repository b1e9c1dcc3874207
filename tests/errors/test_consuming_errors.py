"""Places that cannot be had, and subscriptions that end by themselves."""

from __future__ import annotations

from typing import Any

from confluent_kafka.admin import (
    AclOperation,
    ResourceType,
)
from error_kit import LONG, PATIENCE, Make, Provoked, delete_before, make_topic, row
from kafka_rules import deny
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from waiting import until

from incident_messaging import (
    ConsumeFailed,
    Delivery,
    IncidentCreated,
    Reject,
    RetryPolicy,
    SubscribeFailed,
)
from incident_messaging.brokers import KafkaBroker


@row(SubscribeFailed, "no_topic")
def test_no_stream_to_subscribe_to(provoked: Provoked, on_nats: Make, prefix: str) -> None:
    service = on_nats(nats={"create_streams": False})
    with provoked(prefix, "create_streams", within=3.0) as met:
        service.subscribe("orders", timeout=LONG)
    assert met.error.topic == "orders"


@row(SubscribeFailed, "no_topic")
def test_no_topic_for_the_dead_letters(provoked: Provoked, on_kafka: Make, prefix: str) -> None:
    service = on_kafka(kafka={"create_topics": False})
    with provoked(f"{prefix}.dead-letter", "create_topics", within=5.0):
        service.subscribe("orders", timeout=LONG)


@row(SubscribeFailed, "denied")
def test_nats_denies_subscribing(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    rights = '{ publish: { deny: ["$JS.API.CONSUMER.>"] } }'
    server = nats_server_factory(
        config=f'authorization {{ users = [ {{ user: "app", password: "p", permissions: {rights} }} ] }}'
    )
    service = service_on(backend="nats", nats={"servers": [server.url], "user": "app", "password": "p"})
    with provoked("permissions violation", within=3.0):
        service.subscribe("orders", timeout=LONG)


@row(SubscribeFailed, "denied")
def test_nats_core_denies_subscribing(
    provoked: Provoked, service_on: Make, nats_server_factory: Any, prefix: str
) -> None:
    rights = f'{{ subscribe: {{ deny: ["{prefix}.secret"] }} }}'
    server = nats_server_factory(
        config=f'authorization {{ users = [ {{ user: "app", password: "p", permissions: {rights} }} ] }}'
    )
    login = {"servers": [server.url], "user": "app", "password": "p", "delivery": "core"}
    service = service_on(backend="nats", nats=login)
    with provoked(f"{prefix}.secret", "permission", within=3.0):
        service.subscribe("secret", timeout=LONG)


@row(SubscribeFailed, "denied")
def test_kafka_denies_subscribing(
    guarded_kafka: KafkaBroker, provoked: Provoked, service_on: Make, prefix: str
) -> None:
    service = service_on(backend="kafka", kafka={"bootstrap_servers": guarded_kafka.bootstrap_servers})
    service.publish("orders", {"n": 1})
    deny(guarded_kafka.bootstrap_servers, ResourceType.GROUP, f"g:{prefix}.orders", AclOperation.READ)
    with provoked("ACL", within=5.0):
        service.subscribe("orders", group="g", timeout=LONG)


@row(SubscribeFailed, "overlap")
def test_streams_that_overlap(provoked: Provoked, on_nats: Make, prefix: str, jetstream: Any) -> None:
    async def add(stream: JetStreamContext) -> None:
        await stream.add_stream(StreamConfig(name=f"other-{prefix}", subjects=[f"{prefix}.a.*.z"]))

    jetstream(add)
    with provoked(f"other-{prefix}", within=3.0):
        on_nats().subscribe("orders", timeout=LONG)


@row(ConsumeFailed, "lost_place")
def test_a_durable_that_is_gone(provoked: Provoked, on_nats: Make, prefix: str, jetstream: Any) -> None:
    service = on_nats()
    subscription = service.subscribe("orders", group="g")
    service.publish("orders", {"n": 1})
    stream = service.publish("orders", {"n": 2}).results.popitem()[1].position.stream  # type: ignore[attr-defined]
    jetstream(lambda js: js.delete_consumer(stream, subscription.name))
    with provoked("lost its place", "g", subscription.name, within=PATIENCE):
        while True:
            subscription.next(PATIENCE)
    assert subscription.name in service.health().ended


@row(ConsumeFailed, "lost_place")
def test_messages_that_a_connected_member_never_got(
    provoked: Provoked, on_nats: Make, prefix: str, jetstream: Any
) -> None:
    """The server moves the durable past what is purged, and says nothing."""
    service = on_nats()
    # All is there before the first delivery, which says how many are behind it: by that the gap is noticed.
    service.publish_batch("orders", [{"n": n} for n in range(10)])
    subscription = service.subscribe("orders", group="g", prefetch=1)
    assert subscription.next(PATIENCE) is not None
    jetstream(lambda js: js.purge_stream(prefix.upper()))
    service.publish("orders", {"n": 100})
    with provoked("lost its place", "messages were deleted unread", within=PATIENCE):
        while True:
            subscription.next(PATIENCE)


def test_dead_letters_taken_out_are_no_lost_place(on_nats: Make) -> None:
    """Single messages that are deleted in the middle of a stream leave its beginning where it is."""
    service = on_nats()
    service.publish("orders", {"n": -1})

    def reject(delivery: Delivery[Any]) -> None:
        raise Reject("no")

    with service.subscribe("orders", group="g", callback=reject):
        service.publish_batch("orders", [{"n": n} for n in range(9)])
        assert until(lambda: len(list(service.dead_letters.list())) == 10, PATIENCE)
    reader = service.subscribe("dead-letter", bytes, group="reader", prefetch=1)
    assert reader.next(PATIENCE) is not None
    assert service.dead_letters.purge().done == 10
    service.publish("dead-letter", {"n": "last"})
    while (delivery := reader.next(PATIENCE)) is not None and b'"n":"last"' not in delivery.body:
        pass
    assert delivery is not None
    assert reader.error is None


@row(ConsumeFailed, "lost_place")
def test_offsets_that_are_gone(provoked: Provoked, on_kafka: Make, kafka_broker: Any, prefix: str) -> None:
    make_topic(kafka_broker, f"{prefix}.orders")
    service = on_kafka()
    service.publish_batch("orders", [{"n": n} for n in range(5)])
    assert len(list(service.consume("orders", group="g", timeout=PATIENCE, limit=1))) == 1
    delete_before(kafka_broker, f"{prefix}.orders", 4)
    with provoked("3 messages may be missing", within=PATIENCE):
        service.subscribe("orders", group="g").next(PATIENCE)


@row(ConsumeFailed, "slow_reader")
def test_a_reader_that_falls_behind(provoked: Provoked, on_nats: Make) -> None:
    service = on_nats()
    subscription = service.subscribe("orders", broadcast=True, prefetch=5)
    service.publish_batch("orders", [{"n": n} for n in range(50)])
    assert until(lambda: subscription.error is not None, PATIENCE)
    with provoked("prefetch 5", within=0.1) as met:
        subscription.next(LONG)
    assert met.error.retryable


@row(ConsumeFailed, "undecodable")
def test_bytes_that_nobody_can_read_and_no_dead_letters(provoked: Provoked, on_nats: Make) -> None:
    service = on_nats(enable_dlq=False)
    service.publish("orders", {"type": "Created"})
    subscription = service.subscribe("orders", IncidentCreated, group="g")
    with provoked("cannot be decoded", "enable_dlq", within=PATIENCE):
        subscription.next(PATIENCE)


@row(ConsumeFailed, "breaker")
def test_a_handler_that_fails_with_everything(provoked: Provoked, on_kafka: Make) -> None:
    def fail(delivery: Delivery[Any]) -> None:
        raise KeyError("deployed badly")

    service = on_kafka()
    service.publish_batch("orders", [{"n": n} for n in range(10)])
    retry = RetryPolicy(max_attempts=1, breaker_share=0.5, breaker_window=4)
    subscription = service.subscribe("orders", group="g", callback=fail, retry=retry)
    with provoked("4 of the last 4 messages", "breaker_share 0.5", "KeyError", within=PATIENCE) as met:
        subscription.join(PATIENCE)
    assert not met.error.retryable
