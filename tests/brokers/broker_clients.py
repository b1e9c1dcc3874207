"""The least that raw clients can do on a broker: write, read everything, see whether it answers."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import confluent_kafka
import confluent_kafka.admin
import nats
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

TOPIC = "kept"
T = TypeVar("T")

_quiet = logging.getLogger("tests.brokers.clients")


class RawNats:
    """nats-py on one or several servers; one stream, ``replicas`` copies."""

    def __init__(self, *urls: str, replicas: int = 1) -> None:
        self.urls, self.replicas = list(urls), replicas

    def write(self, *texts: str) -> None:
        async def publish(stream: JetStreamContext) -> None:
            await stream.add_stream(StreamConfig(TOPIC, subjects=[TOPIC], num_replicas=self.replicas))
            for text in texts:
                await stream.publish(TOPIC, text.encode(), headers={"Nats-Msg-Id": text[:50]})

        self._with(publish)

    def writes(self, text: str) -> bool:
        """Whether the text was stored; repeating it stores it once."""
        try:
            self.write(text)
        except (TimeoutError, nats.errors.Error):
            return False
        return True

    def read(self) -> list[str]:
        async def fetch(stream: JetStreamContext) -> list[str]:
            last = (await stream.stream_info(TOPIC)).state.last_seq
            found = [await stream.get_msg(TOPIC, seq) for seq in range(1, last + 1)]
            return [(message.data or b"").decode() for message in found]

        return self._with(fetch)

    def has_data(self) -> bool:
        async def look(stream: JetStreamContext) -> bool:
            return TOPIC in [info.config.name for info in await stream.streams_info()]

        return self._with(look)

    def answers(self, timeout: float) -> bool:
        """Whether the first server greets: on a bare socket, since nats-py leaves its own open at a time-out."""
        host, port = self.urls[0].removeprefix("nats://").split(":")
        with socket.create_connection((host, int(port)), timeout) as connection:
            try:
                return connection.recv(4).startswith(b"INFO")
            except TimeoutError:
                return False

    def _with(self, work: Callable[[JetStreamContext], Awaitable[T]], timeout: float = 10.0) -> T:
        async def connected() -> T:
            client = await nats.connect(self.urls, connect_timeout=5, allow_reconnect=False)
            try:
                return await work(client.jetstream(timeout=timeout))
            finally:
                await client.close()

        return asyncio.run(connected())


class RawKafka:
    """confluent-kafka on one or several brokers; one topic, one partition, ``replicas`` copies."""

    def __init__(self, bootstrap_servers: str, replicas: int = 1) -> None:
        self.config: dict[str, Any] = {"bootstrap.servers": bootstrap_servers, "logger": _quiet}
        self.replicas = replicas

    def write(self, *texts: str) -> None:
        if not self.has_data():
            admin = self._admin()  # kept: without it what it was asked for ends in an error
            admin.create_topics([confluent_kafka.admin.NewTopic(TOPIC, 1, self.replicas)])[TOPIC].result(30)
        producer = confluent_kafka.Producer({**self.config, "acks": "all"})
        failed: list[Any] = []
        for text in texts:
            producer.produce(TOPIC, text, callback=lambda error, _: failed.append(error) if error else None)
        assert producer.flush(60) == 0
        assert not failed

    def read(self) -> list[str]:
        consumer = confluent_kafka.Consumer({**self.config, "group.id": "raw", "enable.auto.commit": False})
        try:
            end = self._end(consumer)
            consumer.assign([confluent_kafka.TopicPartition(TOPIC, 0, 0)])
            found: list[str] = []
            deadline = time.monotonic() + 30
            while len(found) < end and time.monotonic() < deadline:
                message = consumer.poll(1.0)
                if message is not None and not message.error():  # an error is no message, and may pass
                    found.append((message.value() or b"").decode())
        finally:
            consumer.close()
        return found

    def _end(self, consumer: confluent_kafka.Consumer) -> int:
        """The topic's end; asked again while the leader is being chosen."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return int(consumer.get_watermark_offsets(confluent_kafka.TopicPartition(TOPIC, 0), timeout=5)[1])
            except confluent_kafka.KafkaException:
                if time.monotonic() > deadline:
                    raise

    def has_data(self) -> bool:
        return TOPIC in self._admin().list_topics(timeout=30).topics

    def answers(self, timeout: float) -> bool:
        try:
            self._admin().list_topics(timeout=timeout)
        except confluent_kafka.KafkaException:
            return False
        return True

    def _admin(self) -> confluent_kafka.admin.AdminClient:
        return confluent_kafka.admin.AdminClient(self.config)
