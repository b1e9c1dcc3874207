"""Headers and keys of megabytes, on brokers that take them: what is held of them is bounded, and each is handled."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import nats
import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from fuzz_writers import NatsWriter
from waiting import until

from incident_messaging import ConsumeFailed, MessagingConfig, MessagingService, Subscription

MEGABYTE = 1024 * 1024
LARGE = 3 * MEGABYTE
#: Messages of each kind, and how many bytes of all may be in hand.
EACH, IN_HAND = 15, 16 * MEGABYTE
#: How much the process may grow: those, for two consumers on Kafka, what confluent-kafka has of the same messages, and
#: librdkafka's queues. All of them together would be 700 MB.
MOST = 10 * IN_HAND
PATIENCE = 60.0
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a large value": ("a", {"headers": [("huge", b"v" * LARGE)]}),
    "a large name": ("b", {"headers": [("n" * LARGE, b"v")]}),
    "empty headers": ("c", {"headers": [("", b"")] * 200_000}),
    "a large key": ("d", {"key": b"k" * LARGE}),
}


def grown(since: float) -> float:
    return float(psutil.Process().memory_info().rss) - since


def settles(since: float) -> float:
    """How much the process has grown, once it does not for a second."""
    most, at = 0.0, time.monotonic()

    def is_quiet() -> bool:
        nonlocal most, at
        if grown(since) > most + MEGABYTE:
            most, at = grown(since), time.monotonic()
        return time.monotonic() - at > 1.0

    assert until(is_quiet, PATIENCE)
    return most


@pytest.fixture
def make(nothing_left_behind: None) -> Iterator[Callable[..., MessagingService]]:
    with ExitStack() as stack:

        def make(**settings: Any) -> MessagingService:
            prefix = f"large-{uuid.uuid4().hex[:8]}"
            config = MessagingConfig.from_mapping(
                {"topic_prefix": prefix, "max_in_flight_bytes": IN_HAND, "retry": {"max_attempts": 1}} | settings
            )
            return stack.enter_context(MessagingService(config))

        yield make


def test_kafka(make: Callable[..., MessagingService], kafka_broker: Any) -> None:
    servers = kafka_broker.bootstrap_servers
    service = make(backend="kafka", kafka={"bootstrap_servers": servers})
    topic = f"{service.config.topic_prefix}.large"
    create(servers, topic)
    with service.subscribe("large", start="earliest", prefetch=1_000) as subscription:
        slow = service.subscribe("large", broadcast=True)
        before = psutil.Process().memory_info().rss
        write(servers, topic)
        assert settles(before) < MOST, "nothing is read yet"
        with pytest.raises(ConsumeFailed, match="bytes behind") as caught:
            slow.join(PATIENCE)
        assert caught.value.code == "slow_reader"
        assert sorted(kinds(subscription, len(KINDS) * EACH)) == sorted("abcd" * EACH)
        assert grown(before) < MOST
        # Who waits for the next message also tries again what did not fit, without its headers and its key.
        assert until(lambda: subscription.next(0.1) or buried(service) == len(KINDS) * EACH, PATIENCE)


def buried(service: MessagingService) -> int:
    return sum(1 for _ in service.dead_letters.list())


def create(servers: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(topic, 1, 1, config={"max.message.bytes": str(4 * LARGE)})])[topic].result(PATIENCE)


def write(servers: str, topic: str) -> None:
    producer = Producer({"bootstrap.servers": servers, "message.max.bytes": 4 * LARGE, "linger.ms": 0})
    failed: list[Any] = []
    for number in range(EACH):
        for kind, fields in KINDS.values():
            body = f'{{"kind": "{kind}", "n": {number}}}'
            producer.produce(topic, body, on_delivery=lambda error, _: error and failed.append(error), **fields)
        producer.flush(PATIENCE)
    assert not failed, failed


def kinds(subscription: Subscription[Any], count: int) -> Iterator[str]:
    """What each says of itself; all of it is looked at, and each becomes a dead letter, of what is left of it."""
    for _ in range(count):
        delivery = subscription.next(PATIENCE)
        assert delivery is not None
        text = sum(map(len, (delivery.key or "", *delivery.headers, *delivery.headers.values())))
        assert text >= LARGE or not delivery.headers, "names without a letter are left out"
        yield delivery.payload["kind"]
        delivery.reject("it is too large to be kept as it is")


def test_nats(make: Callable[..., MessagingService], nats_server_factory: Any) -> None:
    """JetStream takes headers of 64 KB at the most; core delivers them, and drops what nobody reads in time."""
    # Both wait where the process comes to its messages late, instead of hanging up.
    waits = f'max_pending: {512 * MEGABYTE}\nwrite_deadline: "60s"'
    server = nats_server_factory(max_payload=8 * MEGABYTE, config=waits)
    stored = make(nats={"servers": [server.url]})
    stored.publish("large", {})  # makes the stream
    block = b"NATS/1.0\r\nhuge: %s\r\n\r\n" % (b"v" * LARGE)
    with NatsWriter(server.address) as writer:
        assert writer.publish([(f"{stored.config.topic_prefix}.large".encode(), block, b"{}")]) == [None]
    core = make(nats={"servers": [server.url], "delivery": "core", "ping_interval_secs": PATIENCE})
    with core.subscribe("large", prefetch=1_000) as subscription:
        before = psutil.Process().memory_info().rss
        asyncio.run(publish(server.url, f"{core.config.topic_prefix}.large", len(KINDS) * EACH))
        core.publish("behind", {}, timeout=PATIENCE)  # the server says that it has it behind all those
        assert settles(before) < MOST
        seen = []
        while (delivery := subscription.next(1.0)) is not None:
            assert len(delivery.headers["huge"]) == LARGE
            seen.append(delivery.payload["n"])
        assert seen == list(range(len(seen))), "the first that came, in their order"
        assert IN_HAND // LARGE <= len(seen) < len(KINDS) * EACH
        core.publish("large", {"n": "after"})
        after = subscription.next(PATIENCE)
        assert after is not None
        assert after.payload == {"n": "after"}


async def publish(url: str, subject: str, count: int) -> None:
    client = await nats.connect(url)
    for number in range(count):
        await client.publish(subject, b'{"n": %d}' % number, headers={"huge": "v" * LARGE})
        await client.flush()
    await client.close()
