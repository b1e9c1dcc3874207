"""Each row of the table of errors, met on a real broker or a dead port: class, code, words, and in time."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import nats
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from waiting import until

from incident_messaging import (
    BackendUnavailable,
    ConfigurationError,
    ConnectionFailed,
    ConsumeFailed,
    IncidentCreated,
    MessagingConfig,
    MessagingError,
    MessagingService,
    PublishFailed,
    SerializationError,
    SubscribeFailed,
    Timeout,
    errors,
    from_json,
)
from incident_messaging.brokers import KafkaBroker
from incident_messaging.brokers.ports import free_port
from incident_messaging.deadline import Deadline
from incident_messaging.record import Record

#: What a call may take beyond its time-out.
GRACE = 0.2
PATIENCE = 15.0

#: Rows that nothing can raise yet.
TO_COME = {(ConsumeFailed, "breaker"): "the circuit breaker is a later issue's"}

Row = tuple[type[MessagingError], str]
Make = Callable[..., MessagingService]
Provoked = Callable[..., AbstractContextManager["Met"]]


def row(error: type[MessagingError], code: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The row of the table that a test provokes."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        test.row = (error, code)  # type: ignore[attr-defined]
        return test

    return mark


class Met:
    """The error, once the block is over."""

    error: Any = None


@pytest.fixture
def provoked(request: pytest.FixtureRequest) -> Provoked:
    """A block that has to raise the error of the test's row, in time, with these words, and whole when copied."""
    kind, code = request.function.row

    @contextmanager
    def block(*words: str, within: float) -> Iterator[Met]:
        met, begun = Met(), time.monotonic()
        with pytest.raises(MessagingError) as caught:
            yield met
        took = time.monotonic() - begun
        met.error = error = caught.value
        assert (type(error), error.code) == (kind, code), repr(error)
        assert took <= within + GRACE, f"took {took:.2f} s, allowed are {within} s"
        for word in words:
            assert word in str(error)
        for other in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
            assert type(other) is kind
            assert (str(other), other.args) == (str(error), error.args)
            assert vars(other).keys() == vars(error).keys()
            assert (other.code, other.backend, other.topic) == (error.code, error.backend, error.topic)
            assert (getattr(other.envelope, "metadata", None), other.retryable) == (
                getattr(error.envelope, "metadata", None), error.retryable
            )  # fmt: skip

    return block


@pytest.fixture
def prefix() -> str:
    return f"e-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def service_on(prefix: str, nothing_left_behind: None) -> Iterator[Make]:
    """Makes services; they are closed when the test is over, whatever state their broker is in."""
    with ExitStack() as stack:

        def make(**settings: Any) -> MessagingService:
            service = MessagingService(MessagingConfig.from_mapping({"topic_prefix": prefix, **settings}))
            stack.callback(service.close, 2.0)
            return service

        yield make


@pytest.fixture
def on_nats(service_on: Make, nats_server: Any) -> Make:
    def make(*, nats: dict[str, Any] | None = None, **settings: Any) -> MessagingService:
        return service_on(backend="nats", nats={"servers": [nats_server.url], **(nats or {})}, **settings)

    return make


@pytest.fixture
def on_kafka(service_on: Make, kafka_broker: Any) -> Make:
    def make(*, kafka: dict[str, Any] | None = None, **settings: Any) -> MessagingService:
        servers = kafka_broker.bootstrap_servers
        return service_on(backend="kafka", kafka={"bootstrap_servers": servers, **(kafka or {})}, **settings)

    return make


@pytest.fixture
def jetstream(nats_server: Any) -> Callable[[Callable[[JetStreamContext], Awaitable[Any]]], Any]:
    """Do something with a client of another make."""

    def work(what: Callable[[JetStreamContext], Awaitable[Any]], url: str = "") -> Any:
        async def connected() -> Any:
            client = await nats.connect(url or nats_server.url, allow_reconnect=False)
            try:
                return await what(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(connected())

    return work


def make_topic(broker: Any, name: str, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic(name, 1, 1, config=config)])[name].result(PATIENCE)


def test_every_row_of_the_table_is_provoked() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MessagingError)]
    table = {(kind, code) for kind in classes for code in kind.codes}
    tested = {test.row for test in globals().values() if hasattr(test, "row")}
    assert table - tested == set(TO_COME)
    assert tested - table == set()


def test_the_tree_is_also_that_of_the_built_in_errors() -> None:
    assert issubclass(Timeout, TimeoutError)
    assert issubclass(ConnectionFailed, ConnectionError)
    assert issubclass(ConfigurationError, ValueError)


# -- ConnectionFailed -----------------------------------------------------------------------------

CALLS: dict[str, Callable[[MessagingService], object]] = {
    "connect": lambda service: service.connect(3.0),
    "publish": lambda service: service.publish("orders", {"n": 1}, timeout=3.0),
    "publish_nowait": lambda service: service.publish_nowait("orders", {"n": 1}).result(3.0),
    "subscribe": lambda service: service.subscribe("orders", timeout=3.0),
}


@row(ConnectionFailed, "unreachable")
@pytest.mark.parametrize("call", CALLS)
def test_a_dead_port_says_no_at_once_on_nats(provoked: Provoked, service_on: Make, call: str, capfd: Any) -> None:
    port = free_port()
    service = service_on(backend="nats", nats={"servers": [f"nats://127.0.0.1:{port}"]}, publish_timeout_ms=3000)
    with provoked(f"NATS connection failed: connection refused (nats://127.0.0.1:{port})", within=1.0) as met:
        CALLS[call](service)
    assert (met.error.backend, met.error.retryable, isinstance(met.error, ConnectionError)) == ("nats", True, True)
    assert capfd.readouterr().err == ""


@row(ConnectionFailed, "unreachable")
@pytest.mark.parametrize("call", CALLS)
def test_a_dead_port_says_no_at_once_on_kafka(provoked: Provoked, service_on: Make, call: str, capfd: Any) -> None:
    port = free_port()
    service = service_on(backend="kafka", kafka={"bootstrap_servers": f"127.0.0.1:{port}"}, publish_timeout_ms=3000)
    words = f"Kafka producer creation failed: broker not available (127.0.0.1:{port})"
    with provoked(words, within=3.0) as met:
        CALLS[call](service)
    assert (met.error.backend, met.error.retryable) == ("kafka", True)
    assert capfd.readouterr().err == ""


@row(ConnectionFailed, "unreachable")
@pytest.mark.parametrize("backend", ["nats", "kafka"])
def test_a_port_that_never_answers_ends_by_the_timeout(provoked: Provoked, service_on: Make, backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        service = service_on(
            backend=backend, nats={"servers": [address]}, kafka={"bootstrap_servers": address}
        )  # fmt: skip
        with provoked(address, within=1.0):
            service.connect(1.0)
        service.close(1.0)


@row(ConnectionFailed, "unauthorized")
def test_nats_does_not_let_in(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    server = nats_server_factory(config='authorization { user: "app", password: "right" }')
    service = service_on(backend="nats", nats={"servers": [server.url], "user": "app", "password": "wrong-secret"})
    with provoked("NATS", server.address, within=1.0) as met:
        service.connect(5.0)
    assert "wrong-secret" not in str(met.error)


@row(ConnectionFailed, "unauthorized")
def test_kafka_does_not_let_in(provoked: Provoked, service_on: Make, kafka_broker_factory: Any) -> None:
    port, controller, login = free_port(), free_port(), free_port()
    jaas = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_app="right";'
    kafka_broker_factory(
        port=port,
        controller_port=controller,
        config={
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL://127.0.0.1:{login}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{login}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": jaas,
        },
    )
    login_of = {
        "bootstrap_servers": f"127.0.0.1:{login}", "enable_sasl": True, "sasl_mechanism": "PLAIN",
        "sasl_username": "app",
    }  # fmt: skip
    service = service_on(backend="kafka", kafka={**login_of, "sasl_password": "wrong-secret"})
    with provoked("Kafka login failed", f"127.0.0.1:{login}", within=5.0) as met:
        service.connect(5.0)
    assert "wrong-secret" not in str(met.error)
    service_on(backend="kafka", kafka={**login_of, "sasl_password": "right"}).connect(5.0)


@row(ConnectionFailed, "tls")
def test_nats_without_tls_is_refused_and_told_nothing(provoked: Provoked, service_on: Make, later: Any) -> None:
    told: list[bytes] = []

    def serve() -> None:
        peer, _ = plain.accept()
        with peer:
            peer.sendall(b'INFO {"server_id":"x","version":"2.10.0","headers":true,"max_payload":1024}\r\n')
            peer.settimeout(PATIENCE)
            told.append(peer.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as plain:
        address = f"127.0.0.1:{plain.getsockname()[1]}"
        later(serve)
        login = {"servers": [f"nats://{address}"], "enable_tls": True, "user": "app", "password": "secret"}
        service = service_on(backend="nats", nats=login)
        with provoked("TLS", address, within=1.0):
            service.connect(5.0)
        service.close()
        assert until(lambda: told, PATIENCE)
    assert told == [b""]


@row(ConnectionFailed, "tls")
def test_kafka_without_tls_is_refused(provoked: Provoked, service_on: Make, kafka_broker: Any) -> None:
    address = kafka_broker.bootstrap_servers
    service = service_on(backend="kafka", kafka={"bootstrap_servers": address, "enable_ssl": True})
    with provoked("TLS", address, within=5.0):
        service.connect(5.0)


# -- PublishFailed --------------------------------------------------------------------------------


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
        service.publish("orders", {"n": "x" * 99_000}, timeout=1.0)
    assert service.publish("orders", {"n": 2}).results  # the connection is as it was


@row(PublishFailed, "too_large")
def test_a_message_over_the_kafka_topics_limit(
    provoked: Provoked, on_kafka: Make, kafka_broker: Any, prefix: str
) -> None:
    make_topic(kafka_broker, f"{prefix}.small", **{"max.message.bytes": "2000"})
    service = on_kafka(kafka={"compression_type": "none"})
    with provoked("max.message.bytes", f"{prefix}.small", within=5.0):
        service.publish("small", {"n": "x" * 10_000}, timeout=5.0)


@row(PublishFailed, "denied")
def test_nats_denies_publishing(provoked: Provoked, service_on: Make, nats_server_factory: Any, prefix: str) -> None:
    rights = f'{{ publish: {{ deny: ["{prefix}.secret"] }} }}'
    server = nats_server_factory(
        config=f'authorization {{ users = [ {{ user: "app", password: "p", permissions: {rights} }} ] }}'
    )
    service = service_on(backend="nats", nats={"servers": [server.url], "user": "app", "password": "p"})
    service.publish("open", {"n": 1})
    with provoked("secret", within=1.0):
        service.publish("secret", {"n": 1}, timeout=3.0)
    assert service.publish("open", {"n": 2}).results


@pytest.fixture(scope="session")
def guarded_kafka() -> Iterator[KafkaBroker]:
    """A broker that knows access control lists, and lets everybody do what no list speaks of."""
    config = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaBroker(config=config) as broker:
        yield broker


def deny(broker: KafkaBroker, resource: ResourceType, name: str, operation: AclOperation) -> None:
    client = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    bindings = [
        AclBinding(resource, name, ResourcePatternType.LITERAL, "User:*", "*", each, permission)
        for each, permission in ((AclOperation.ALL, AclPermissionType.ALLOW), (operation, AclPermissionType.DENY))
    ]
    for future in client.create_acls(bindings).values():
        future.result(PATIENCE)


@row(PublishFailed, "denied")
def test_kafka_denies_publishing(guarded_kafka: KafkaBroker, provoked: Provoked, service_on: Make, prefix: str) -> None:
    service = service_on(backend="kafka", kafka={"bootstrap_servers": guarded_kafka.bootstrap_servers})
    service.publish("open", {"n": 1})
    service.publish("secret", {"n": 1})
    deny(guarded_kafka, ResourceType.TOPIC, f"{prefix}.secret", AclOperation.WRITE)
    with provoked("ACL", f"{prefix}.secret", within=5.0):
        service.publish("secret", {"n": 2}, timeout=5.0)
    assert service.publish("open", {"n": 2}).results


@row(PublishFailed, "no_stream")
def test_no_stream_on_nats_and_none_may_be_made(provoked: Provoked, on_nats: Make) -> None:
    service = on_nats(nats={"create_streams": False})
    with provoked("stream", "create_streams", within=1.0):
        service.publish("orders", {"n": 1}, timeout=3.0)


@row(PublishFailed, "no_stream")
def test_no_topic_on_kafka_and_none_may_be_made(provoked: Provoked, on_kafka: Make, prefix: str) -> None:
    service = on_kafka(kafka={"create_topics": False})
    with provoked(f"{prefix}.orders", "create_topics", within=3.0):
        service.publish("orders", {"n": 1}, timeout=3.0)


@row(PublishFailed, "stream_full")
def test_a_full_stream_refuses(provoked: Provoked, on_nats: Make) -> None:
    service = on_nats(nats={"stream_max_bytes": 50_000})
    service.publish("orders", {"n": "x" * 30_000})
    with provoked("full", within=1.0) as met:
        service.publish("orders", {"n": "x" * 30_000}, timeout=3.0)
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
        on_nats().publish("orders", {"n": 1}, timeout=3.0)


@row(PublishFailed, "rejected")
def test_kafka_rejects(provoked: Provoked, on_kafka: Make, kafka_broker: Any, prefix: str) -> None:
    make_topic(kafka_broker, f"{prefix}.compacted", **{"cleanup.policy": "compact"})  # takes no message without a key
    with provoked(f"{prefix}.compacted", within=5.0):
        on_kafka().publish("compacted", {"n": 1}, timeout=5.0)


@row(PublishFailed, "batch")
@pytest.mark.parametrize("backend", ["on_nats", "on_kafka"])
def test_a_batch_with_a_failure(provoked: Provoked, backend: str, request: pytest.FixtureRequest) -> None:
    service = request.getfixturevalue(backend)()
    with provoked("1 of 3 messages failed, the first at 1", within=10.0) as met:
        service.publish_batch("orders", [{"n": 0}, {"n": {1, "a"}, "m": object()}, {"n": 2}], timeout=10.0)
    assert met.error.result.published == 2
    assert isinstance(met.error.__cause__, SerializationError)


# -- SubscribeFailed ------------------------------------------------------------------------------


@row(SubscribeFailed, "no_topic")
def test_no_stream_to_subscribe_to(provoked: Provoked, on_nats: Make, prefix: str) -> None:
    service = on_nats(nats={"create_streams": False})
    with provoked(prefix, "create_streams", within=3.0) as met:
        service.subscribe("orders", timeout=3.0)
    assert met.error.topic == "orders"


@row(SubscribeFailed, "no_topic")
def test_no_topic_for_the_dead_letters(provoked: Provoked, on_kafka: Make, prefix: str) -> None:
    service = on_kafka(kafka={"create_topics": False})
    with provoked(f"{prefix}.dead-letter", "create_topics", within=5.0):
        service.subscribe("orders", timeout=5.0)


@row(SubscribeFailed, "denied")
def test_nats_denies_subscribing(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    rights = '{ publish: { deny: ["$JS.API.CONSUMER.>"] } }'
    server = nats_server_factory(
        config=f'authorization {{ users = [ {{ user: "app", password: "p", permissions: {rights} }} ] }}'
    )
    service = service_on(backend="nats", nats={"servers": [server.url], "user": "app", "password": "p"})
    with provoked("permissions violation", within=3.0):
        service.subscribe("orders", timeout=3.0)


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
        service.subscribe("secret", timeout=3.0)


@row(SubscribeFailed, "denied")
def test_kafka_denies_subscribing(
    guarded_kafka: KafkaBroker, provoked: Provoked, service_on: Make, prefix: str
) -> None:
    service = service_on(backend="kafka", kafka={"bootstrap_servers": guarded_kafka.bootstrap_servers})
    service.publish("orders", {"n": 1})
    deny(guarded_kafka, ResourceType.GROUP, f"g:{prefix}.orders", AclOperation.READ)
    with provoked("ACL", within=5.0):
        service.subscribe("orders", group="g", timeout=5.0)


@row(SubscribeFailed, "overlap")
def test_streams_that_overlap(provoked: Provoked, on_nats: Make, prefix: str, jetstream: Any) -> None:
    async def add(stream: JetStreamContext) -> None:
        await stream.add_stream(StreamConfig(name=f"other-{prefix}", subjects=[f"{prefix}.a.*.z"]))

    jetstream(add)
    with provoked(f"other-{prefix}", within=3.0):
        on_nats().subscribe("orders", timeout=3.0)


# -- ConsumeFailed --------------------------------------------------------------------------------


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


def delete_before(broker: Any, topic: str, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result(PATIENCE)


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
        subscription.next(1.0)
    assert met.error.retryable


@row(ConsumeFailed, "undecodable")
def test_bytes_that_nobody_can_read_and_no_dead_letters(provoked: Provoked, on_nats: Make) -> None:
    service = on_nats(enable_dlq=False)
    service.publish("orders", {"type": "Created"})
    subscription = service.subscribe("orders", IncidentCreated, group="g")
    with provoked("cannot be decoded", "enable_dlq", within=PATIENCE):
        subscription.next(PATIENCE)


# -- Timeout --------------------------------------------------------------------------------------


@contextmanager
def frozen(server: Any) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


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


# -- SerializationError ---------------------------------------------------------------------------


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


# -- BackendUnavailable ---------------------------------------------------------------------------


@row(BackendUnavailable, "disabled")
def test_subscribing_while_disabled(provoked: Provoked, on_nats: Make) -> None:
    with provoked("Messaging disabled", within=0.1):
        on_nats(enabled=False).subscribe("orders")


@row(BackendUnavailable, "closed")
@pytest.mark.parametrize("backend", ["on_nats", "on_kafka"])
def test_a_closed_service(provoked: Provoked, backend: str, request: pytest.FixtureRequest) -> None:
    service = request.getfixturevalue(backend)()
    service.connect()
    service.close()
    with provoked("closed", within=0.1):
        service.publish("orders", {"n": 1})


@row(BackendUnavailable, "window_full")
def test_a_full_window(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    server = nats_server_factory()
    service = service_on(
        backend="nats", nats={"servers": [server.url]}, max_in_flight=2, publish_timeout_ms=3000
    )  # fmt: skip
    service.publish("orders", {"n": 0})
    with frozen(server):
        waiting = [service.publish_nowait("orders", {"n": n}) for n in (1, 2)]
        with provoked("full", "max_in_flight", within=0.0) as met:
            service.publish_nowait("orders", {"n": 3})
        with provoked("2 messages", within=0.5):
            service.publish_nowait("orders", {"n": 3}, block=0.5)
    assert met.error.retryable
    assert all(future.result(PATIENCE) for future in waiting)


@row(BackendUnavailable, "forked")
def test_an_inherited_subscription(provoked: Provoked, on_nats: Make) -> None:
    subscription = on_nats().subscribe("orders", group="g")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with provoked("inherited", within=0.2):
                subscription.next(1.0)
            status = 0
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    assert status == 0, said
    assert subscription.next(0) is None


@row(BackendUnavailable, "loop_thread")
@pytest.mark.parametrize("backend", ["on_nats", "on_kafka"])
def test_blocking_on_a_thread_of_the_sdk(
    provoked: Provoked, backend: str, prefix: str, request: pytest.FixtureRequest
) -> None:
    service = request.getfixturevalue(backend)()
    service.connect()
    (outlet,) = service._connections.outlets()
    name = "incident-messaging-loop" if backend == "on_nats" else "incident-messaging-kafka-reports"
    met: list[BaseException] = []
    done = threading.Event()

    def call(*_: object) -> None:
        assert threading.current_thread().name == name
        try:
            service.publish("orders", {"n": 1})
        except BaseException as error:
            met.append(error)
        done.set()

    record = Record(topic=f"{prefix}.orders", body=b"{}", dedup_id="1")
    outlet.broker.send(record, Deadline.after(5.0), call)
    assert done.wait(PATIENCE)
    with provoked(name, within=0.1):
        raise met[0]


@row(BackendUnavailable, "down")
def test_nats_was_given_up(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    server = nats_server_factory()
    service = service_on(
        backend="nats", nats={"servers": [server.url], "max_reconnect_attempts": 1, "reconnect_delay_ms": 20}
    )
    subscription = service.subscribe("orders", group="g")
    server.kill()
    with provoked(server.address, within=5.0) as met:
        subscription.join(PATIENCE)
    assert met.error.retryable


# -- ConfigurationError ---------------------------------------------------------------------------


@row(ConfigurationError, "invalid")
def test_a_topic_that_is_none(provoked: Provoked, on_nats: Make) -> None:
    with provoked("'not a topic'", "allowed", within=0.1) as met:
        on_nats().publish("not a topic", {})
    assert isinstance(met.error, ValueError)


@row(ConfigurationError, "invalid")
def test_a_value_that_is_not_allowed(provoked: Provoked) -> None:
    with provoked("publish_timeout_ms", "-1", within=0.1):
        MessagingConfig(publish_timeout_ms=-1)
