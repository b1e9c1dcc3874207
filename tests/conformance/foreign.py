"""Writers that are not this SDK: the raw clients of each broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import confluent_kafka
import nats

from incident_messaging.backends import memory
from incident_messaging.record import Record

#: Writes a message: full topic, body, key, headers.
Write = Callable[[str, bytes | None, str | None, Mapping[str, str]], None]


def to_memory(fixture: Callable[[str], Any]) -> Write:
    def write(topic: str, body: bytes | None, key: str | None, headers: Mapping[str, str]) -> None:
        record = Record(topic=topic, body=body or b"", key=key, headers=headers, dedup_id="")
        memory.world(topic.split(".")[0]).append(record)

    return write


def to_nats(fixture: Callable[[str], Any]) -> Write:
    def write(topic: str, body: bytes | None, key: str | None, headers: Mapping[str, str]) -> None:
        async def publish() -> None:
            client = await nats.connect(fixture("nats_server").url, allow_reconnect=False)
            try:
                given = {**headers, **({"x-key": key} if key else {})}
                await client.publish(topic, body or b"", headers=given or None)
                await client.flush()
            finally:
                await client.close()

        asyncio.run(publish())

    return write


def to_kafka(fixture: Callable[[str], Any]) -> Write:
    def write(topic: str, body: bytes | None, key: str | None, headers: Mapping[str, str]) -> None:
        servers = fixture("kafka_broker").bootstrap_servers
        # As Java's clients choose a key's partition.
        producer = confluent_kafka.Producer({"bootstrap.servers": servers, "partitioner": "murmur2_random"})
        pairs = [(name, value.encode()) for name, value in headers.items()]
        producer.produce(topic, body, key=key, headers=pairs)
        assert producer.flush(15.0) == 0

    return write
