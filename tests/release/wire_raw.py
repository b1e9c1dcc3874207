"""Messages as the brokers' own clients see them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import confluent_kafka
import nats
from foreign import to_kafka, to_nats

#: Seconds that a broker has to answer.
PATIENCE = 30.0


class Message(NamedTuple):
    """What is on the wire; bytes as text, which all of ours are."""

    body: str
    key: str | None
    headers: dict[str, str]


class Raw(ABC):
    """A broker without the SDK."""

    name: str
    settings: dict[str, Any]

    @abstractmethod
    def last(self, topic: str) -> Message:
        """The last message of a topic with its full name."""

    @abstractmethod
    def write(self, topic: str, message: Message) -> None:
        """Put a message there."""


class RawNats(Raw):
    name = "nats"

    def __init__(self, url: str) -> None:
        self._url = url
        self.settings = {"backend": "nats", "nats": {"servers": [url]}}
        self._write = to_nats(lambda _: SimpleNamespace(url=url))

    def last(self, topic: str) -> Message:
        async def look() -> Message:
            client = await nats.connect(self._url, allow_reconnect=False)
            try:
                stream = await client.jetstream().find_stream_name_by_subject(topic)
                found = await client.jetstream().get_last_msg(stream, topic)
                headers = dict(found.headers or {})
                return Message((found.data or b"").decode(), headers.get("x-key"), headers)
            finally:
                await client.close()

        return asyncio.run(look())

    def write(self, topic: str, message: Message) -> None:
        self._write(topic, message.body.encode(), None, message.headers)


class RawKafka(Raw):
    name = "kafka"

    def __init__(self, servers: str) -> None:
        self._servers = servers
        kafka: Mapping[str, Any] = {"bootstrap_servers": servers, "partitions": 2}
        self.settings = {"backend": "kafka", "kafka": kafka}
        self._write = to_kafka(lambda _: SimpleNamespace(bootstrap_servers=servers))

    def last(self, topic: str) -> Message:
        consumer = confluent_kafka.Consumer(
            {"bootstrap.servers": self._servers, "group.id": "raw", "enable.auto.commit": False}
        )
        try:
            partitions = consumer.list_topics(topic, PATIENCE).topics[topic].partitions
            ends = {number: consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, number), PATIENCE)[1]
                    for number in partitions}  # fmt: skip
            (number,) = [number for number, end in ends.items() if end]
            consumer.assign([confluent_kafka.TopicPartition(topic, number, ends[number] - 1)])
            found = consumer.poll(PATIENCE)
            assert found is not None
            assert found.error() is None, found.error()
            headers = {name: value.decode() for name, value in found.headers() or ()}
            key = found.key()
            return Message((found.value() or b"").decode(), key.decode() if key else None, headers)
        finally:
            consumer.close()

    def write(self, topic: str, message: Message) -> None:
        self._write(topic, message.body.encode(), message.key, message.headers)
