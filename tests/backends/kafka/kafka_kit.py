"""What the tests of the Kafka backend work with: a recording sink, outcomes, and short words for both."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from waiting import until

from incident_messaging.backends.base import ConsumerSpec, position
from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.config import KafkaConfig, MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError
from incident_messaging.record import Position, Received, Record

#: Seconds after which something that should have come will not.
PATIENCE = 40.0
#: Seconds that a busy machine may need beside those that are promised.
SLACK = 5.0
#: Seconds without a message after which there is none.
QUIET = 0.4

_numbers = itertools.count()


def in_time(seconds: float = PATIENCE) -> Deadline:
    return Deadline.after(seconds)


def config(servers: str, **options: Any) -> MessagingConfig:
    """A configuration; names of `MessagingConfig` are found, all others are `KafkaConfig`'s."""
    outer = {name: options.pop(name) for name in list(options) if name in MessagingConfig.__slots__}
    return MessagingConfig(kafka=KafkaConfig(bootstrap_servers=servers, **options), **outer)


def record(topic: str, body: bytes | str | int = b"x", **fields: Any) -> Record:
    data = body if isinstance(body, bytes) else str(body).encode()
    return Record(topic=topic, body=data, dedup_id=f"id-{next(_numbers)}", **fields)


class Outcomes:
    """What became of records, in the order in which it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Position | None, bool, MessagingError | None]] = []
        self.sent = 0

    def send(self, broker: KafkaBroker, sent: Record, seconds: float = PATIENCE) -> None:
        number = self.sent
        self.sent += 1
        broker.send(sent, in_time(seconds), lambda *outcome: self.told.append((number, *outcome)))

    def wait(self, seconds: float = PATIENCE) -> list[MessagingError | None]:
        """The errors of all that was sent, in the order of sending; each was told once."""
        assert until(lambda: len(self.told) >= self.sent, seconds), f"{len(self.told)} outcomes of {self.sent}"
        numbers = [number for number, *_ in self.told]
        assert len(set(numbers)) == len(numbers), "an outcome was told twice"
        return [error for *_, error in sorted(self.told, key=lambda outcome: outcome[0])]

    @property
    def positions(self) -> list[Position | None]:
        return [position(where) for _, where, *_ in sorted(self.told, key=lambda outcome: outcome[0])]


def publish(broker: KafkaBroker, topic: str, bodies: Iterable[Any], **fields: Any) -> list[Position | None]:
    """Publish, and see that each was acknowledged."""
    outcomes = Outcomes()
    for body in bodies:
        outcomes.send(broker, record(topic, body, **fields))
    assert not [error for error in outcomes.wait() if error is not None]
    return outcomes.positions


def fails(broker: KafkaBroker, sent: Record, seconds: float = PATIENCE) -> MessagingError:
    """The error of one record."""
    outcomes = Outcomes()
    outcomes.send(broker, sent, seconds)
    error = outcomes.wait(seconds + 2)[0]
    assert error is not None, "it was acknowledged"
    return error


def spec(topic: str, **asked: Any) -> ConsumerSpec:
    group = asked.pop("group", "g")
    name = asked.pop("name", f"{group}:{topic}" if group else f"broadcast-{uuid.uuid4().hex[:8]}")
    asked.setdefault("start", "earliest")
    asked.setdefault("prefetch", 100)
    asked.setdefault("prefetch_bytes", 1 << 20)
    return ConsumerSpec(topic=topic, group=group, name=name, **asked)


class Reader:
    """A consumer and the sink it delivers to."""

    def __init__(self, broker: KafkaBroker, asked: ConsumerSpec, *, acks: bool = True) -> None:
        self.seen: list[Received] = []
        self.forgotten: list[Received] = []
        self.error: MessagingError | None = None
        self.acks = acks
        self.most_unsettled = 0
        self._unsettled: set[int] = set()
        self._lock = threading.Lock()
        self.consumer = broker.consumer(asked, self)

    # The sink.

    def deliver(self, batch: Sequence[Received]) -> None:
        with self._lock:
            self.seen.extend(batch)
            self._unsettled.update(map(id, batch))
            self.most_unsettled = max(self.most_unsettled, len(self._unsettled))
        if self.acks:
            self.ack(batch)

    def forget(self, gone: Callable[[Received], bool]) -> None:
        with self._lock:
            out = [message for message in self.seen if id(message) in self._unsettled and gone(message)]
            self.forgotten += out
            self._unsettled.difference_update(map(id, out))

    def ended(self, error: MessagingError) -> None:
        assert self.error is None, "ended twice"
        self.error = error

    # The test.

    def open(self, seconds: float = PATIENCE) -> Reader:
        self.consumer.open(in_time(seconds))
        return self

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        with self._lock:
            self._unsettled.difference_update(map(id, batch))
        self.consumer.ack(batch, deadline)

    def close(self, seconds: float = PATIENCE) -> None:
        self.consumer.close(in_time(seconds))

    @property
    def bodies(self) -> list[str]:
        return [(message.body or b"").decode(errors="replace") for message in list(self.seen)]

    def wait(self, count: int, seconds: float = PATIENCE) -> list[str]:
        assert until(lambda: len(self.seen) >= count, seconds), f"{len(self.seen)} of {count}; {self.error}"
        return self.bodies

    def wait_ended(self, seconds: float = PATIENCE) -> MessagingError:
        assert until(lambda: self.error is not None, seconds), "it did not end"
        assert self.error is not None
        return self.error


class Raw:
    """The broker through the client library alone, to look and to meddle."""

    def __init__(self, servers: str) -> None:
        self.settings: dict[str, Any] = {"bootstrap.servers": servers, "log_level": 0}
        self.admin = AdminClient(self.settings)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        del self.admin

    def make(self, topic: str, partitions: int = 1, **properties: str) -> None:
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=properties)
        self.admin.create_topics([new])[topic].result(PATIENCE)
        assert until(lambda: topic in self.topics(), PATIENCE)

    def delete(self, topic: str) -> None:
        self.admin.delete_topics([topic])[topic].result(PATIENCE)
        assert until(lambda: topic not in self.topics(), PATIENCE)

    def delete_before(self, topic: str, offset: int, partition: int = 0) -> None:
        asked = TopicPartition(topic, partition, offset)
        next(iter(self.admin.delete_records([asked]).values())).result(PATIENCE)

    def topics(self) -> dict[str, int]:
        listed = self.admin.list_topics(timeout=PATIENCE).topics
        return {name: len(topic.partitions) for name, topic in listed.items()}

    def produce(self, topic: str, bodies: Iterable[Any], **options: Any) -> None:
        producer = Producer(self.settings)
        for body in bodies:
            producer.produce(topic, body if body is None else str(body).encode(), **options)
        assert producer.flush(PATIENCE) == 0

    def committed(self, group: str, topic: str, partitions: int = 1) -> list[int]:
        """The group's offsets; -1001 for none."""
        with Consumer(self.settings | {"group.id": group}) as consumer:
            asked = [TopicPartition(topic, number) for number in range(partitions)]
            return [place.offset for place in consumer.committed(asked, timeout=PATIENCE)]

    def member(self, group: str, topic: str) -> Consumer:
        """A member of a group that is nothing of ours, and commits nothing."""
        consumer = Consumer(
            self.settings | {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        )
        consumer.subscribe([topic])
        return consumer

    @staticmethod
    def _missing(consumer: Consumer, topic: str, partitions: int, found: list[Any]) -> str:
        """What each partition has, and how much of it came."""
        came = Counter(message.partition() for message in found)
        return f"{len(found)} came: " + ", ".join(
            f"partition {number} has {consumer.get_watermark_offsets(TopicPartition(topic, number), 5.0)}, "
            f"{came[number]} came"
            for number in range(partitions)
        )

    def read(self, topic: str, count: int, partitions: int = 1) -> list[Any]:
        """So many messages from the beginning."""
        found: list[Any] = []
        settings = self.settings | {"group.id": f"raw-{uuid.uuid4()}", "enable.auto.commit": False}
        with Consumer(settings) as consumer:
            consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
            deadline = in_time()
            while len(found) < count and not deadline.over:
                message = consumer.poll(0.1)
                if message is not None:
                    assert message.error() is None, message.error()
                    found.append(message)
            assert len(found) == count, self._missing(consumer, topic, partitions, found)
        return found
