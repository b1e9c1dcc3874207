"""The brokers that contestants meet on, and what has to be there before they start."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.brokers import KafkaBroker, NatsServer
from incident_messaging.brokers.kafka_files import KAFKA_VERSION

from .contestants.child import STEP, envelopes, full, key_of

#: How far a feeder is ahead of whom it feeds.
_AHEAD = 10 * STEP
#: Topics that are made by one request to Kafka.
_AT_ONCE = 500


class NatsStage:
    """A NATS server; with the stream that the SDK makes, unless core NATS alone is meant."""

    def __init__(self, server: NatsServer, delivery: str) -> None:
        self.server = server
        self.settings = {"broker": "nats", "address": server.url, "delivery": delivery}
        self.version = str(server.monitor("/varz").get("version"))
        if delivery != "core":
            self._make_stream()

    def _make_stream(self) -> None:
        with MessagingService(MessagingConfig(nats={"servers": [self.server.url]})) as service:
            service.publish("bench.first", {"makes": "the stream"})

    def renew(self) -> None:
        """Start anew: the server takes 1,000 places of groups on a stream, and they stay."""
        self.server.stop()
        self.server.wipe()
        self.server.start()
        self._make_stream()

    def prepare(self, topics: Iterable[str]) -> None:
        """Nothing: the stream takes every topic."""

    def store(self, topic: str, count: int) -> None:
        """Put envelopes into the stream, by the line protocol: as plain as what any client sends."""
        with _Line(self.server) as line:
            line.send(b"".join(_pub(topic, event) for event in envelopes(count)))
            line.confirm()
        deadline = time.monotonic() + 30.0
        while self._stored(topic) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the stream did not take {count} messages in time")
            time.sleep(0.05)

    def _stored(self, topic: str) -> int:
        streams = self.server.monitor("/jsz?streams=1&config=1").get("account_details", [])
        return sum(stream["state"]["messages"] for account in streams for stream in account["stream_detail"]) - 1

    @contextmanager
    def feed(self, topic: str, count: int) -> Iterator[Any]:
        """Feeds whoever tells its progress: core NATS keeps nothing, so that nobody may be far ahead."""
        chunks = [
            b"".join(_pub(topic, event) for event in envelopes(min(STEP, count - first)))
            for first in range(0, count, STEP)
        ]
        sent = 0
        with _Line(self.server) as line:

            def progress(handled: int) -> None:
                nonlocal sent
                until = min(len(chunks), (handled + _AHEAD) // STEP)
                line.send(b"".join(chunks[sent:until]))
                sent = max(sent, until)

            yield progress


class KafkaStage:
    """A Kafka node; topics have one partition, so that nobody has an advantage by more of them."""

    def __init__(self, broker: KafkaBroker) -> None:
        self.broker = broker
        self.settings = {"broker": "kafka", "address": broker.bootstrap_servers}
        self.version = KAFKA_VERSION

    def prepare(self, topics: Iterable[str]) -> None:
        """Make topics, many by one request, and return when the broker knows a leader of each."""
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap_servers, "log_level": 0})
        names = [full(topic) for topic in topics]
        for first in range(0, len(names), _AT_ONCE):
            made = admin.create_topics(
                [NewTopic(name, num_partitions=1) for name in names[first : first + _AT_ONCE]], request_timeout=60.0
            )
            for outcome in made.values():
                outcome.result(60.0)
        deadline = time.monotonic() + 60.0 + 0.05 * len(names)
        while not _led(admin, names):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all of {len(names)} topics were ready in time")
            time.sleep(0.1)

    def renew(self) -> None:
        """Nothing: a place of a group costs the broker little."""

    def store(self, topic: str, count: int) -> None:
        """Put envelopes into a topic."""
        self.prepare([topic])
        producer = Producer(
            {"bootstrap.servers": self.broker.bootstrap_servers, "compression.type": "snappy",
             "queue.buffering.max.messages": count + 1, "log_level": 0}
        )  # fmt: skip
        for event in envelopes(count):
            producer.produce(full(topic), json.dumps(event).encode(), key=key_of(event))
        if producer.flush(60.0):
            raise RuntimeError(f"the topic did not take {count} messages in time")


Stage = NatsStage | KafkaStage


@contextmanager
def stage(way: str) -> Iterator[Stage]:
    """A broker of its own, with the data in a temporary folder: for ``jetstream``, ``core`` or ``kafka``."""
    if way == "kafka":
        with KafkaBroker() as node:
            yield KafkaStage(node)
    else:
        with NatsServer() as server:
            yield NatsStage(server, way)


def _led(admin: AdminClient, names: list[str]) -> bool:
    """Whether each topic can be written to; the controller's word comes before the broker's deed."""
    known = admin.list_topics(timeout=30.0).topics
    return all(name in known and known[name].partitions and known[name].partitions[0].leader >= 0 for name in names)


class _Line:
    """A connection to NATS in its line protocol: the cheapest way to send what is the same for all."""

    def __init__(self, server: NatsServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30.0)

    def __enter__(self) -> _Line:
        self.send(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
        self.confirm()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def confirm(self) -> None:
        """Return when the server has read all that was sent."""
        self.send(b"PING\r\n")
        heard = b""
        while b"PONG" not in heard:
            some = self._socket.recv(65536)
            if not some:
                raise RuntimeError("NATS has closed the line")
            heard = heard[-8:] + some


def _pub(topic: str, event: dict[str, Any]) -> bytes:
    body = json.dumps(event).encode()
    return b"PUB %s %d\r\n%s\r\n" % (full(topic).encode(), len(body), body)
