"""A broker with a topic prefix of a test's own, seen by the commands, by the SDK and by other programs' clients."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from nats.js.api import ConsumerConfig

from incident_messaging import MessagingConfig
from incident_messaging.commands import commands
from incident_messaging.deadline import Deadline

#: Seconds that a group may take to begin, and a broker to answer.
PATIENCE = 40.0


class Place:
    """A configuration for one of the session's brokers, in a file.

    Attributes:
        backend: ``nats`` or ``kafka``.
        prefix: The topic prefix, which nobody else has.
    """

    def __init__(self, broker_ways: tuple[str, dict[str, Any]], folder: Path, **more: Any) -> None:
        self.backend, way = broker_ways
        self.address = way["servers"][0] if self.backend == "nats" else way["bootstrap_servers"]
        self.prefix = f"g-{uuid.uuid4().hex[:8]}"
        brisk = {"nats": {"ack_wait_ms": 600}, "kafka": {"partitions": 2, "auto_commit_interval_ms": 50}}
        ways = way | brisk[self.backend] | more
        self._path = folder / "messaging.json"
        self._path.write_text(json.dumps({"backend": self.backend, "topic_prefix": self.prefix, self.backend: ways}))

    @property
    def config(self) -> MessagingConfig:
        """What the SDK is given."""
        return MessagingConfig.from_file(self._path)

    @property
    def stream(self) -> str:
        """The stream that the SDK makes on NATS."""
        return self.prefix.upper()

    def make_stream(self, name: str, *topics: str, **options: Any) -> None:
        """A stream on NATS, made by another program."""

        async def make() -> None:
            subjects = [f"{self.prefix}.{topic}" for topic in topics]
            async with await nats.connect(self.address) as connection:
                await connection.jetstream().add_stream(name=name, subjects=subjects, **options)

        asyncio.run(make())

    def delete_before(self, topic: str, offset: int) -> None:
        """Have Kafka forget the beginning of a topic's partition in which something is, as retention does."""
        if self.backend == "nats":
            return
        name = f"{self.prefix}.{topic}"
        admin = AdminClient({"bootstrap.servers": self.address})
        wanted = {TopicPartition(name, number): OffsetSpec.latest() for number in range(2)}
        ends = {each.partition: done.result().offset for each, done in admin.list_offsets(wanted).items()}
        full = [TopicPartition(name, number, offset) for number, end in ends.items() if end > offset]
        for done in admin.delete_records(full).values():
            done.result()

    def commit(self, group: str, topic: str, texts: Mapping[int, str]) -> None:
        """Have a raw Kafka group begin at offset 0, with a text beside each partition's offset."""
        offsets = [TopicPartition(f"{self.prefix}.{topic}", number, 0, text) for number, text in texts.items()]
        admin = AdminClient({"bootstrap.servers": self.address})
        admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, offsets)])[group].result()

    def written_by(self, group: str) -> list[str]:
        """The texts beside a Kafka group's offsets."""
        admin = AdminClient({"bootstrap.servers": self.address})
        found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
        return [each.metadata or "" for each in found.topic_partitions]

    def run(self, command: str, *arguments: str, answer: str | None = None) -> Result:
        """A command with this configuration."""
        return CliRunner().invoke(commands, [command, *arguments, "--config", str(self._path)], input=answer)

    def objects(self, command: str, *arguments: str) -> list[dict[str, Any]]:
        """What a command says as JSON."""
        done = self.run(command, *arguments, "--json")
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]


class Foreign:
    """Another program's place on a topic: a raw Kafka group, or a raw durable."""

    def __init__(self, place: Place, name: str, topics: Iterable[str]) -> None:
        self.name = name
        self._place = place
        self._topics = [f"{place.prefix}.{topic}" for topic in topics]

    def take(self, count: int, *, leave: Iterable[int] = ()) -> list[int]:
        """Take so many messages, acknowledge them as far as its broker lets it, and stop.

        Args:
            count: How many are taken, one after another.
            leave: Which of them (0 first) are not acknowledged. Kafka knows an offset alone: there nothing behind the
                first of them is committed.

        Returns:
            The numbers in the messages that it has acknowledged.
        """
        left = set(leave)
        if self._place.backend == "nats":
            return asyncio.run(self._fetch(count, left))
        with self.member() as client:
            taken = [self._next(client) for _ in range(count)]
            done = taken[: min(left, default=count)]
            for message in done:
                client.commit(message=message, asynchronous=False)
            return [number_in(message.value()) for message in done]

    @contextmanager
    def member(self) -> Any:
        """A member of the raw Kafka group."""
        client = Consumer(
            {
                "bootstrap.servers": self._place.address,
                "group.id": self.name,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "topic.metadata.refresh.interval.ms": 200,
            }
        )
        client.subscribe(self._topics)
        try:
            yield client
        finally:
            client.close()

    @staticmethod
    def _next(client: Consumer) -> Any:
        deadline = Deadline.after(PATIENCE)
        while not deadline.over:
            message = client.poll(0.1)
            if message is not None and message.error() is None:
                return message
        raise AssertionError(f"the raw consumer got nothing within {PATIENCE:g} s")

    async def _fetch(self, count: int, left: set[int]) -> list[int]:
        async with await nats.connect(self._place.address) as connection:
            stream = connection.jetstream(timeout=PATIENCE)
            config = ConsumerConfig(ack_wait=60, filter_subjects=self._topics)
            await stream.add_consumer(self._place.stream, config, durable_name=self.name)
            pull = await stream.pull_subscribe_bind(self.name, self._place.stream)
            taken = await pull.fetch(count, timeout=PATIENCE) if count else []
            assert len(taken) == count
            done = [message for at, message in enumerate(taken) if at not in left]
            for message in done:
                await message.ack_sync(timeout=PATIENCE)
            return [number_in(message.data) for message in done]


def number_in(body: bytes) -> int:
    """What `numbers` put into a message."""
    value = json.loads(body)
    return int(value.get("payload", value)["n"])


def numbers(count: int, begin: int = 0) -> list[dict[str, int]]:
    """Messages to publish."""
    return [{"n": n} for n in range(begin, begin + count)]
