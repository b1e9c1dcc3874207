"""Records that the doctor reads, without a group, and writes, to a topic of its own."""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from incident_messaging.backends.kafka import errors, settings
from incident_messaging.backends.kafka.link import DebugLog
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable

#: The longest wait in C, between two of which Ctrl-C is heard.
_SLICE: Final = 0.1
#: Seconds for one record to be read, and to be stored or told of.
_READ: Final = 2.0
_STORED: Final = 10.0
#: Records that are read.
_MOST: Final = 200


class Sampler:
    """Looks into partitions without a group, and commits nothing. The client is made at the first look."""

    def __init__(self, config: MessagingConfig) -> None:
        self._config = config
        self._made: Consumer | None = None
        self._left = _MOST

    @property
    def _client(self) -> Consumer:
        if self._made is None:
            name = f"incident-messaging-look-{uuid.uuid4().hex[:12]}"
            self._made = Consumer(settings.looker(self._config, name), logger=DebugLog())
        return self._made

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset of a partition, and the one that comes next.

        Raises:
            MessagingError: Kafka does not tell.
        """
        try:
            return self._client.get_watermark_offsets(TopicPartition(topic, partition), timeout=_STORED)
        except KafkaException as exc:
            error = errors.of(exc)
            if errors.passes(error):
                text = f"Kafka: the ends of {topic}-{partition}: {error.str()}"
                raise BackendUnavailable(text, backend="kafka") from exc
            raise errors.subscribe(error, topic) from exc

    def stored(self, topic: str, partition: int, offset: int) -> float | None:
        """The Unix time of the record at an offset; ``None`` if it cannot be read, or many were read before."""
        if self._left <= 0:
            return None
        self._left -= 1
        self._client.assign([TopicPartition(topic, partition, offset)])
        patience = Deadline.after(_READ)
        while not patience.over:
            message = self._client.poll(_SLICE)
            if message is not None:
                return None if message.error() is not None else message.timestamp()[1] / 1000
        return None

    def close(self) -> None:
        """Let go of the client."""
        client, self._made = self._made, None
        if client is not None:
            client.close()


def time_of(config: MessagingConfig, topic: str) -> tuple[float, float, float]:
    """The broker's Unix time as it stored a record in a topic with LogAppendTime, and ours before and after it.

    Raises:
        MessagingError: It was not stored, or not with its time.
    """
    stamps: list[tuple[int, int]] = []
    failed: list[KafkaError] = []

    def report(error: KafkaError | None, message: Message[Any, Any]) -> None:
        if error is not None:
            failed.append(error)
        else:
            stamps.append(message.timestamp())

    producer = Producer(settings.producer(config), logger=DebugLog())
    before = after = 0.0
    for _ in range(2):  # the first one waits for a connection, and for the topic's leader
        before = time.time()
        producer.produce(topic, b"", on_delivery=report)
        patience = Deadline.after(_STORED)
        while producer.flush(_SLICE) and not patience.over:
            pass
        after = time.time()
    if failed:
        raise errors.publish(failed[0], topic)
    if len(stamps) < 2 or stamps[-1][0] != TIMESTAMP_LOG_APPEND_TIME:
        raise BackendUnavailable(f"Kafka did not tell when it stored a record in {topic}", backend="kafka")
    return stamps[-1][1] / 1000, before, after
