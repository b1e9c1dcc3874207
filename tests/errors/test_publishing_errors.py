"""Messages that are refused, cannot be written, or have no known outcome."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclOperation,
    ResourceType,
)
from error_kit import LONG, PATIENCE, Make, Provoked, frozen, make_topic, row
from kafka_rules import deny
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from waiting import until

from incident_messaging import (
    IncidentCreated,
    PublishFailed,
    SerializationError,
    Timeout,
    from_json,
)
from incident_messaging.brokers import KafkaBroker


@row(PublishFailed, "too_large")
@pytest.mark.parametrize("backend", ["memory", "nats", "kafka"])
def test_a_message_over_the_limit_is_refused_before_it_is_sent(
    provoked: Provoked, service_on: Make, backend: str
) -> None:
    service = service_on(backend=backend, nats={"servers": ["127.0.0.1:1"]}, kafka={"bootstrap_servers": "127.0.0.1:1"})
    with provoked("exceeds max_message_size 1,048,576", "message of 1,", within=0.5) as met:
        service.publish("orders", {"n": "x" * 900_000}, headers={"h": "y" * 150_000})
    assert (met.error.topic, met.error.retryable) == ("orders", False)
    assert met.error.envelope is not None


@row(PublishFailed, "too_large")
def test_a_message_over_the_nats_servers_limit(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    server = nats_server_factory(max_payload=100_000)
    service = service_on(backend="nats", nats={"servers": [server.url]})
    service.publish("orders", {"n": 1})
    with provoked("87,500", "max_payload", within=1.0):  # less what dead letters need
        service.publish("orders", {"n": "x" * 99_000}, timeout=LONG)
    assert service.publish("orders", {"n": 2}).results  # the connection is as it was


@row(PublishFailed, "too_large")
def test_a_message_over_the_kafka_topics_limit(
    provoked: Provoked, on_kafka: Make, kafka_broker: Any, prefix: str
) -> None:
    make_topic(kafka_broker, f"{prefix}.small", **{"max.message.bytes": "2000"})
    service = on_kafka(kafka={"compression_type": "none"})
    with provoked("max.message.bytes", f"{prefix}.small", within=5.0):
        service.publish("small", {"n": "x" * 10_000}, timeout=LONG)


@row(PublishFailed, "denied")
def test_nats_denies_publishing(provoked: Provoked, service_on: Make, nats_server_factory: Any, prefix: str) -> None:
    rights = f'{{ publish: {{ deny: ["{prefix}.secret"] }} }}'
    server = nats_server_factory(
        config=f'authorization {{ users = [ {{ user: "app", password: "p", permissions: {rights} }} ] }}'
    )
    service = service_on(backend="nats", nats={"servers": [server.url], "user": "app", "password": "p"})
    service.publish("open", {"n": 1})
    with provoked("secret", within=1.0):
        service.publish("secret", {"n": 1}, timeout=LONG)
    assert service.publish("open", {"n": 2}).results


@row(PublishFailed, "denied")
def test_kafka_denies_publishing(guarded_kafka: KafkaBroker, provoked: Provoked, service_on: Make, prefix: str) -> None:
    service = service_on(backend="kafka", kafka={"bootstrap_servers": guarded_kafka.bootstrap_servers})
    service.publish("open", {"n": 1})
    service.publish("secret", {"n": 1})
    deny(guarded_kafka.bootstrap_servers, ResourceType.TOPIC, f"{prefix}.secret", AclOperation.WRITE)
    with provoked("ACL", f"{prefix}.secret", within=5.0):
        service.publish("secret", {"n": 2}, timeout=LONG)
    assert service.publish("open", {"n": 2}).results


@row(PublishFailed, "no_stream")
def test_no_stream_on_nats_and_none_may_be_made(provoked: Provoked, on_nats: Make) -> None:
    service = on_nats(nats={"create_streams": False})
    with provoked("stream", "create_streams", within=1.0):
        service.publish("orders", {"n": 1}, timeout=LONG)


@row(PublishFailed, "no_stream")
def test_no_topic_on_kafka_and_none_may_be_made(provoked: Provoked, on_kafka: Make, prefix: str) -> None:
    service = on_kafka(kafka={"create_topics": False})
    with provoked(f"{prefix}.orders", "create_topics", within=3.0):
        service.publish("orders", {"n": 1}, timeout=LONG)


@row(PublishFailed, "stream_full")
def test_a_full_stream_refuses(provoked: Provoked, on_nats: Make) -> None:
    service = on_nats(nats={"stream_max_bytes": 50_000})
    service.publish("orders", {"n": "x" * 30_000})
    with provoked("full", within=1.0) as met:
        service.publish("orders", {"n": "x" * 30_000}, timeout=LONG)
    assert met.error.retryable


@row(PublishFailed, "rejected")
def test_nats_rejects(provoked: Provoked, on_nats: Make, prefix: str, jetstream: Any) -> None:
    async def seal(stream: JetStreamContext) -> None:
        config = StreamConfig(name=prefix, subjects=[f"{prefix}.>"])
        await stream.add_stream(config)
        config.sealed = True
        await stream.update_stream(config)

    jetstream(seal)
    with provoked("sealed", within=1.0):
        on_nats().publish("orders", {"n": 1}, timeout=LONG)


@row(PublishFailed, "rejected")
def test_kafka_rejects(provoked: Provoked, on_kafka: Make, kafka_broker: Any, prefix: str) -> None:
    make_topic(kafka_broker, f"{prefix}.compacted", **{"cleanup.policy": "compact"})  # takes no message without a key
    with provoked(f"{prefix}.compacted", within=5.0):
        on_kafka().publish("compacted", {"n": 1}, timeout=LONG)


@row(PublishFailed, "batch")
@pytest.mark.parametrize("backend", ["on_nats", "on_kafka"])
def test_a_batch_with_a_failure(provoked: Provoked, backend: str, request: pytest.FixtureRequest) -> None:
    service = request.getfixturevalue(backend)()
    with provoked("1 of 3 messages failed, the first at 1", within=10.0) as met:
        service.publish_batch("orders", [{"n": 0}, {"n": {1, "a"}, "m": object()}, {"n": 2}], timeout=LONG)
    assert met.error.result.published == 2
    assert isinstance(met.error.__cause__, SerializationError)


@row(SerializationError, "encode")
@pytest.mark.parametrize("value", [object(), float("nan"), 2**64, {1: 2}, "\ud800"])
def test_a_message_that_cannot_be_written(provoked: Provoked, on_nats: Make, value: Any) -> None:
    with provoked("not writable as JSON", within=0.5) as met:
        on_nats().publish("orders", {"n": [value]})
    assert met.error.topic == "orders"


@row(SerializationError, "decode")
def test_bytes_that_cannot_be_read(provoked: Provoked) -> None:
    with provoked("not readable", within=0.5) as met:
        from_json(b'{"type": "Created"}', IncidentCreated)
    assert met.error.data == b'{"type": "Created"}'


@row(Timeout, "timeout")
def test_a_frozen_nats_server(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    server = nats_server_factory()
    service = service_on(backend="nats", nats={"servers": [server.url]})
    service.publish("orders", {"n": 0})
    with frozen(server):
        with provoked("orders", "may be stored", within=1.0) as met:
            service.publish("orders", {"n": 1}, timeout=1.0)
        assert (met.error.maybe_delivered, isinstance(met.error, TimeoutError)) == (True, True)
        assert pickle.loads(pickle.dumps(met.error)).maybe_delivered
        with provoked("waited for", within=1.0):
            service.subscribe("orders", timeout=1.0)
        with provoked("1 to nats", within=0.5):
            service.publish_nowait("orders", {"n": 2})
            service.flush(0.5)
    again = service.publish("orders", met.error.envelope)
    assert again.duplicate  # stored once
    assert service.health().ok


@row(Timeout, "timeout")
def test_a_frozen_kafka_broker(provoked: Provoked, service_on: Make, kafka_broker_factory: Any) -> None:
    broker = kafka_broker_factory()
    service = service_on(backend="kafka", kafka={"bootstrap_servers": broker.bootstrap_servers})
    service.publish("orders", {"n": 0})
    with frozen(broker):
        with provoked("orders", "may be stored", within=1.0) as met:
            service.publish("orders", {"n": 1}, timeout=1.0)
        assert met.error.maybe_delivered
        with provoked("waited for", within=1.0):
            service.subscribe("orders", timeout=1.0)
    assert service.publish("orders", met.error.envelope, timeout=30.0).results


@row(Timeout, "timeout")
def test_a_killed_nats_server_is_ridden_out_until_the_timeout(
    provoked: Provoked, service_on: Make, nats_server_factory: Any
) -> None:
    server = nats_server_factory()
    service = service_on(backend="nats", nats={"servers": [server.url], "reconnect_delay_ms": 50})
    service.publish("orders", {"n": 0})
    server.kill()
    assert until(lambda: not service.is_connected, PATIENCE)
    with provoked("not sent", within=1.0) as met:
        service.publish("orders", {"n": 1}, timeout=1.0)
    assert not met.error.maybe_delivered
    waiting = service.publish_nowait("orders", met.error.envelope)
    server.start()
    assert waiting.result(PATIENCE).results
