"""What the tests of the NATS backend work with: a recording sink, outcomes, and short words for both."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import nats
from waiting import until

from incident_messaging.backends.base import ConsumerSpec, MessageConsumer, Start, position
from incident_messaging.backends.nats.broker import NatsBroker
from incident_messaging.config import MessagingConfig, NatsConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError
from incident_messaging.record import Position, Received, Record
from incident_messaging.topics import durable_name

#: Seconds for what should come; fewer than the usual ack_wait, so that what was lost for so long is missed.
PATIENCE = 25.0
QUIET = 0.4
#: Seconds that a busy machine may need beside those that are promised.
SLACK = 5.0

_numbers = itertools.count()


def in_time(seconds: float = PATIENCE) -> Deadline:
    return Deadline.after(seconds)


def config(url: str, *, prefix: str = "t", **options: Any) -> MessagingConfig:
    limits = {key: options.pop(key) for key in ("connect_timeout_ms",) if key in options}
    return MessagingConfig(topic_prefix=prefix, nats=NatsConfig(servers=url.split(","), **options), **limits)


def record(topic: str, body: bytes | str | int = b"x", **fields: Any) -> Record:
    data = body if isinstance(body, bytes) else str(body).encode()
    fields.setdefault("dedup_id", f"id-{next(_numbers)}")
    return Record(topic=topic, body=data, **fields)


class Outcomes:
    """What became of records, in the order in which it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Position | None, bool, MessagingError | None]] = []
        self._sent = 0

    def send(self, broker: NatsBroker, sent: Record, seconds: float = PATIENCE) -> None:
        number = self._sent
        self._sent += 1
        broker.send(sent, in_time(seconds), lambda *outcome: self.told.append((number, *outcome)))

    def wait(self, count: int | None = None, seconds: float = PATIENCE) -> list[MessagingError | None]:
        """The errors of so many outcomes (all that was sent), each told once."""
        wanted = self._sent if count is None else count
        assert until(lambda: len(self.told) >= wanted, seconds), f"{len(self.told)} outcomes of {wanted}"
        numbers = [number for number, *_ in self.told]
        assert len(set(numbers)) == len(numbers), "an outcome was told twice"
        return [error for *_, error in sorted(self.told, key=lambda outcome: outcome[0])]

    @property
    def positions(self) -> list[Position | None]:
        return [position(where) for _, where, *_ in sorted(self.told, key=lambda outcome: outcome[0])]


def publish(broker: NatsBroker, topic: str, bodies: Iterable[Any], **fields: Any) -> list[Position | None]:
    """Publish, and see that each was acknowledged."""
    outcomes = Outcomes()
    for body in bodies:
        outcomes.send(broker, record(topic, body, **fields))
    assert not [error for error in outcomes.wait() if error is not None]
    return outcomes.positions


def fails(broker: NatsBroker, sent: Record, seconds: float = PATIENCE) -> MessagingError:
    """The error of one record."""
    outcomes = Outcomes()
    outcomes.send(broker, sent, seconds)
    error = outcomes.wait(1, seconds + 2)[0]
    assert error is not None, "it was acknowledged"
    return error


class Reader:
    """A consumer and the sink it delivers to."""

    def __init__(self, broker: NatsBroker, spec: ConsumerSpec, *, acks: bool = True) -> None:
        self.seen: list[Received] = []
        self.error: MessagingError | None = None
        self.acks = acks
        self.most_unsettled = 0
        self._unsettled = 0
        self._lock = threading.Lock()
        self.consumer: MessageConsumer = broker.consumer(spec, self)

    # -- the sink ---------------------------------------------------------------------------------

    def deliver(self, batch: Sequence[Received]) -> None:
        with self._lock:
            self.seen.extend(batch)
            self._unsettled += len(batch)
            self.most_unsettled = max(self.most_unsettled, self._unsettled)
        if self.acks:
            self.ack(batch)

    def forget(self, gone: Callable[[Received], bool]) -> None:
        raise AssertionError("NATS takes nothing back")

    def ended(self, error: MessagingError) -> None:
        assert self.error is None, "ended twice"
        self.error = error

    # -- the test ---------------------------------------------------------------------------------

    def open(self, seconds: float = PATIENCE) -> Reader:
        self.consumer.open(in_time(seconds))
        return self

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        with self._lock:
            self._unsettled -= len(batch)
        self.consumer.ack(batch, deadline)

    def close(self, seconds: float = PATIENCE) -> None:
        self.consumer.close(in_time(seconds))

    @property
    def bodies(self) -> list[str]:
        return [(message.body or b"").decode(errors="replace") for message in list(self.seen)]

    def wait(self, count: int, seconds: float = PATIENCE) -> list[str]:
        assert until(lambda: len(self.seen) >= count, seconds), f"{self.bodies[-20:]} of {count}; {self.error}"
        return self.bodies

    def wait_ended(self, seconds: float = PATIENCE) -> MessagingError:
        assert until(lambda: self.error is not None, seconds), "it did not end"
        assert self.error is not None
        return self.error


def spec(
    topic: str,
    group: str | None = "g",
    *,
    start: Start = "earliest",
    prefetch: int = 100,
    prefetch_bytes: int = 1 << 24,
    dead_letter_topic: str | None = None,
) -> ConsumerSpec:
    return ConsumerSpec(
        topic=topic,
        group=group,
        name=durable_name(group, topic) if group else f"broadcast-{topic}",
        start=start,
        prefetch=prefetch,
        prefetch_bytes=prefetch_bytes,
        dead_letter_topic=dead_letter_topic,
    )


def api(url: str, request: str, **fields: Any) -> dict[str, Any]:
    """An answer of JetStream's API, asked with a client of its own."""

    async def ask() -> dict[str, Any]:
        client = await nats.connect(url)
        try:
            body = json.dumps(fields).encode() if fields else b""
            answer = await client.request(f"$JS.API.{request}", body, timeout=PATIENCE)
            found: dict[str, Any] = json.loads(answer.data)
            return found
        finally:
            await client.close()

    return asyncio.run(ask())


def stream_names(url: str) -> list[str]:
    return sorted(api(url, "STREAM.NAMES").get("streams") or ())
