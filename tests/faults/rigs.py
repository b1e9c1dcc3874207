"""A broker with a proxy before it, a service that goes through the proxy, and a raw look at the broker's log.

The cases are the same for both brokers; what differs is here.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import confluent_kafka
import nats
from history import name_of
from nats.js.errors import ServiceUnavailableError
from proxy import Proxy, proxy

from incident_messaging.brokers import KafkaBroker, KafkaCluster, NatsCluster, NatsServer
from incident_messaging.brokers.ports import free_port

PREFIX = "faults"


@attrs.define
class Rig(ABC):
    """One broker under fire.

    Attributes:
        broker: Its process: kill, freeze, start.
        proxy: What stands between it and the service.
        settings: The configuration of services.
    """

    broker: NatsServer | KafkaBroker
    proxy: Proxy
    settings: dict[str, Any]

    #: How many may be handled again for one kill of the broker while a consumer lives.
    again_per_kill: int = 2_000
    #: Whether what was on its way when a connection broke comes before newer messages (docs: "delivery").
    order_survives_losses: bool = True

    @abstractmethod
    def stored(self, topic: str) -> list[str]:
        """The names of the messages in the broker's log, read past the proxy by a raw client."""


class NatsRig(Rig):
    def stored(self, topic: str) -> list[str]:
        patience = time.monotonic() + 30.0

        async def read() -> list[str]:
            login = {name: self.settings["nats"].get(name) for name in ("user", "password")}
            async with await nats.connect(self.broker.url, **login) as client:  # type: ignore[union-attr]
                stream, subject = client.jetstream(timeout=20), f"{PREFIX}.{topic}"
                # The leader knows how many there are; the node that a consumer is given may not have caught up with it.
                state = (await stream.stream_info(PREFIX.upper(), subjects_filter=subject)).state
                place = await stream.pull_subscribe(subject, stream=PREFIX.upper())
                found: list[str] = []
                while len(found) < (state.subjects or {}).get(subject, 0):
                    for message in await place.fetch(500, timeout=20):
                        found.append(name_of(json.loads(message.data)["payload"]))
                        await message.ack()
                return found

        while True:
            try:
                return asyncio.run(read())
            except ServiceUnavailableError:  # the node has just come back, and knows no leader yet
                if time.monotonic() > patience:
                    raise


class KafkaRig(Rig):
    def stored(self, topic: str) -> list[str]:
        settings = {"bootstrap.servers": f"127.0.0.1:{self.broker.port}", "group.id": "look", "log_level": 0}
        consumer = confluent_kafka.Consumer(settings)
        found: list[str] = []
        try:
            partitions = consumer.list_topics(f"{PREFIX}.{topic}", timeout=10).topics[f"{PREFIX}.{topic}"].partitions
            for number in partitions:
                place = confluent_kafka.TopicPartition(f"{PREFIX}.{topic}", number, 0)
                end = _end_of(consumer, place)
                consumer.assign([place])
                at = 0
                while at < end:
                    message = consumer.poll(10)
                    assert message is not None, f"nothing came at {at} of {end}"
                    assert message.error() is None, message.error()
                    at = (message.offset() or 0) + 1
                    found.append(name_of(json.loads(message.value() or b"")["payload"]))
        finally:
            consumer.close()
        return found


#: What a client says that has not learned of a leader again.
NO_LEADER = {confluent_kafka.KafkaError.NOT_LEADER_FOR_PARTITION, confluent_kafka.KafkaError._UNKNOWN_PARTITION}


def _end_of(consumer: confluent_kafka.Consumer, place: confluent_kafka.TopicPartition) -> int:
    """The partition's end; a broker that was frozen or restarted may need a moment to lead it again."""
    for _ in range(30):
        try:
            _, end = consumer.get_watermark_offsets(place, timeout=10)
        except confluent_kafka.KafkaException as error:
            if not error.args[0].retriable() and error.args[0].code() not in NO_LEADER:
                raise
            consumer.poll(1.0)
        else:
            return end
    raise AssertionError(f"nobody leads {place}")


@attrs.define
class NatsClusterRig(NatsRig):
    cluster: NatsCluster = attrs.field(kw_only=True)

    def leader(self, _topic: str) -> NatsServer:
        """Who leads the topic's stream."""

        async def ask() -> str:
            client = await nats.connect(self.cluster.urls)
            info = await client.jetstream().stream_info(PREFIX.upper())
            await client.close()
            assert info.cluster is not None
            return info.cluster.leader or ""

        name = asyncio.run(ask())
        (leader,) = [node for node in self.cluster.nodes if node.monitor("/varz")["server_name"] == name]
        return leader


@attrs.define
class KafkaClusterRig(KafkaRig):
    cluster: KafkaCluster = attrs.field(kw_only=True)

    def leader(self, topic: str) -> KafkaBroker:
        """Who leads the topic's first partition."""
        client = confluent_kafka.Consumer({"bootstrap.servers": self.cluster.bootstrap_servers, "group.id": "look"})
        try:
            partition = client.list_topics(f"{PREFIX}.{topic}", timeout=10).topics[f"{PREFIX}.{topic}"].partitions[0]
        finally:
            client.close()
        assert len(partition.replicas) == 3
        (leader,) = [node for node in self.cluster.nodes if node.node_id == partition.leader]
        return leader


def nats_settings(port: int) -> dict[str, Any]:
    nats = {"servers": [f"nats://127.0.0.1:{port}"], "ping_interval_secs": 1, "ack_wait_ms": 4_000}
    return {"backend": "nats", "topic_prefix": PREFIX, "nats": nats}


def kafka_settings(port: int) -> dict[str, Any]:
    kafka = {
        "bootstrap_servers": f"127.0.0.1:{port}",
        "partitions": 3,
        "session_timeout_ms": 6_000,
        "auto_commit_interval_ms": 500,
    }
    return {"backend": "kafka", "topic_prefix": PREFIX, "kafka": kafka}


@contextmanager
def nats_cluster_rig() -> Iterator[NatsClusterRig]:
    with NatsCluster(3) as cluster, proxy(cluster.nodes[0].port) as between:
        nats = {"servers": cluster.urls, "ping_interval_secs": 1, "ack_wait_ms": 4_000}
        settings = {"backend": "nats", "topic_prefix": PREFIX, "nats": nats}
        yield NatsClusterRig(cluster.nodes[0], between, settings, order_survives_losses=False, cluster=cluster)


@contextmanager
def kafka_cluster_rig() -> Iterator[KafkaClusterRig]:
    # Three copies because the service asks for them, not because the cluster makes them by itself.
    config = {"default.replication.factor": "1"}
    with KafkaCluster(3, config=config) as cluster, proxy(cluster.nodes[0].port) as between:
        servers = {"bootstrap_servers": cluster.bootstrap_servers}
        kafka = servers | {"replication_factor": 3, "partitions": 3, "session_timeout_ms": 6_000}
        settings = {"backend": "kafka", "topic_prefix": PREFIX, "kafka": kafka}
        yield KafkaClusterRig(cluster.nodes[0], between, settings, cluster=cluster)


CLUSTERS = {"nats": nats_cluster_rig, "kafka": kafka_cluster_rig}


@contextmanager
def nats_rig() -> Iterator[Rig]:
    with NatsServer() as server, proxy(server.port) as between:
        yield NatsRig(server, between, nats_settings(between.port), order_survives_losses=False)


@contextmanager
def kafka_rig() -> Iterator[Rig]:
    port = free_port()  # clients are sent to the advertised address, so that must be the proxy's
    listeners = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}", "group.min.session.timeout.ms": "1000"}
    broker = KafkaBroker(config=listeners)
    with proxy(broker.port, port) as between, broker:
        yield KafkaRig(broker, between, kafka_settings(port))


RIGS = {"nats": nats_rig, "kafka": kafka_rig}
