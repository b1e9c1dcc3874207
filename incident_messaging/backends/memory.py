"""A broker in this process, with the full semantics; for tests.

One for each process and topic prefix: services with the same prefix see one another's messages, as
they would on a real broker. Messages are kept until `reset`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence, Set
from datetime import datetime

from incident_messaging import topics
from incident_messaging.backends.base import (
    Archive,
    ConsumerSpec,
    MessageConsumer,
    MessageProducer,
    Parcel,
    Sink,
    Status,
    broken_off,
)
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable
from incident_messaging.record import Position, Received, Record

_worlds: dict[str, World] = {}
_worlds_lock = threading.Lock()


def world(prefix: str) -> World:
    """The broker of a topic prefix."""
    with _worlds_lock:
        return _worlds.setdefault(prefix, World())


def _after_fork_in_child() -> None:
    """A child is another process, with a broker of its own; the locks may be held by a thread it does not have."""
    global _worlds_lock
    _worlds_lock = threading.Lock()
    _worlds.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def reset() -> None:
    """Forget every message and every place of every prefix."""
    with _worlds_lock:
        _worlds.clear()


class World:
    """All messages in one log, and the places of the groups in it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._log: list[Received] = []
        self._offsets: dict[str, int] = {}
        self._places: dict[str, Place] = {}
        self._outbox: deque[tuple[MemoryConsumer, list[Received]]] = deque()
        self._delivering = False

    def append(self, record: Record) -> Position:
        """Keep a message and let it be delivered."""
        with self.lock:
            offset = self._offsets.get(record.topic, 0)
            self._offsets[record.topic] = offset + 1
            position = Position(topic=record.topic, partition=0, offset=offset)
            ours = ((name, text.encode("utf-8", "surrogateescape")) for name, text in record.headers.items())
            pairs = [*record.raw_headers, *ours]
            received = Received(
                topic=record.topic,
                body=record.body,
                key=record.key,
                headers={name: (raw or b"").decode("utf-8", "surrogateescape") for name, raw in pairs},
                raw_headers=pairs,
                position=position,
                timestamp=time.time(),
                fallback_id=str(position),
            )
            self._log.append(received)
            for place in self._places.values():
                place.arrived(received)
        self.deliver()
        return position

    def holds(self, topic: str) -> list[Received]:
        """What a topic has by now."""
        with self.lock:
            return [received for received in self._log if received.topic == topic]

    def remove(self, gone: Sequence[Received]) -> None:
        """Forget messages, and hand out none of them any more."""
        positions = {received.position for received in gone}
        with self.lock:
            self._log[:] = [received for received in self._log if received.position not in positions]
            for place in self._places.values():
                place.forget(positions)

    def join(self, consumer: MemoryConsumer) -> Place:
        """Make the consumer's place, or join it."""
        spec = consumer.spec
        with self.lock:
            place = self._places.get(spec.name)
            if place is None:
                place = self._places[spec.name] = Place(spec, self._log)
            place.members.append(consumer)
        return place

    def drop(self, place: Place, name: str) -> None:
        """A broadcast's place ends with it."""
        with self.lock:
            if self._places.get(name) is place:
                del self._places[name]

    def deliver(self) -> None:
        """Hand out what there is room for. One thread at a time does, so that order is kept."""
        with self.lock:
            for place in list(self._places.values()):
                self._outbox.extend(place.assign())
            if self._delivering:
                return
            self._delivering = True
        while True:
            with self.lock:
                if not self._outbox:
                    self._delivering = False
                    return
                consumer, batch = self._outbox.popleft()
            consumer.sink.deliver(batch)


class Place:
    """What a group has not handled yet, and who of it has what."""

    def __init__(self, spec: ConsumerSpec, log: Sequence[Received]) -> None:
        self._matches = topics.regex(spec.topic).fullmatch
        self._excluded = spec.dead_letter_topic if topics.is_pattern(spec.topic) else None
        self._waiting: deque[Received] = deque(r for r in log if self._wants(r) and _from(spec, r))
        self._owners: dict[str, tuple[MemoryConsumer, int]] = {}
        self._turn = 0
        self.members: list[MemoryConsumer] = []

    def arrived(self, received: Received) -> None:
        """A message was published."""
        if self._wants(received):
            self._waiting.append(received)

    def assign(self) -> list[tuple[MemoryConsumer, list[Received]]]:
        """Who gets what now. Under the world's lock."""
        out: dict[MemoryConsumer, list[Received]] = {}
        while self._waiting and (member := self._member(self._waiting[0])) is not None:
            received = self._waiting.popleft()
            member.held[received.position] = received
            member.held_bytes += received.size
            if received.key is not None:
                self._owners[received.key] = (member, self._owners.get(received.key, (member, 0))[1] + 1)
            out.setdefault(member, []).append(received)
        return list(out.items())

    def handled(self, member: MemoryConsumer, received: Received) -> bool:
        """A member is done with a message; false if it was no longer its own."""
        if member.held.pop(received.position, None) is None:
            return False
        member.held_bytes -= received.size
        owner = self._owners.get(received.key) if received.key is not None else None
        if owner is not None and received.key is not None:
            self._owners[received.key] = (owner[0], owner[1] - 1)
            if owner[1] == 1:
                del self._owners[received.key]
        return True

    def forget(self, gone: Set[Position]) -> None:
        """Messages were removed; what a member has already stays its own."""
        self._waiting = deque(received for received in self._waiting if received.position not in gone)

    def leave(self, member: MemoryConsumer) -> None:
        """Give back what a member did not acknowledge, in order."""
        held = sorted(member.held.values(), key=lambda r: (r.timestamp, r.position.offset))
        for received in held:
            self.handled(member, received)
        self._waiting.extendleft(reversed(held))
        self.members.remove(member)

    def _wants(self, received: Received) -> bool:
        return received.topic != self._excluded and self._matches(received.topic) is not None

    def _member(self, received: Received) -> MemoryConsumer | None:
        """The member that may have the next message: its key's owner, else the next with room."""
        owner = self._owners.get(received.key) if received.key is not None else None
        if owner is not None:
            return owner[0] if owner[0].has_room(received) else None
        for _ in self.members:
            self._turn += 1
            member = self.members[self._turn % len(self.members)]
            if member.has_room(received):
                return member
        return None


def _from(spec: ConsumerSpec, received: Received) -> bool:
    """Whether a message in the log lies behind the start that was asked for."""
    start = spec.start
    if start == "latest":
        return False
    if isinstance(start, datetime):
        return received.timestamp >= start.timestamp()
    if isinstance(start, Position) and start.topic == received.topic:
        return (received.position.offset or 0) >= (start.offset or 0)
    return True


class MemoryBroker(MessageProducer):
    """The door to a prefix's world."""

    name = "memory"

    def __init__(self, config: MessagingConfig) -> None:
        self._prefix = config.topic_prefix
        self._world: World | None = None
        self._closed = False

    def connect(self, deadline: Deadline) -> None:
        """There is nothing to wait for."""
        self._world = world(self._prefix)

    def send_all(self, parcels: Sequence[Parcel]) -> None:
        """Keep the records, acknowledge them at once."""
        rest = iter(parcels)
        try:
            for parcel in rest:
                if self._closed:
                    error = BackendUnavailable("the memory broker is closed", code="closed", backend=self.name)
                    parcel(None, False, error)
                    continue
                self.connect(parcel.deadline)
                assert self._world is not None
                parcel(self._world.append(parcel), False, None)
        finally:
            broken_off(rest, self.name)
            self.told()

    def consumer(self, spec: ConsumerSpec, sink: Sink) -> MessageConsumer:
        """A consumer in the same world."""
        return MemoryConsumer(self._prefix, spec, sink)

    def archive(self, topic: str, patience: float) -> Archive:
        """A look into the same world."""
        return MemoryArchive(world(self._prefix), topic)

    def status(self) -> Status:
        """Connected from the first use on."""
        if self._closed:
            return Status(state="closed")
        return Status(state="new" if self._world is None else "connected")

    def close(self, deadline: Deadline) -> int:
        """Nothing is ever on its way."""
        self._closed = True
        return 0


class MemoryArchive(Archive):
    """A topic of a world."""

    def __init__(self, of: World, topic: str) -> None:
        self._world = of
        self._topic = topic

    def read(self, since: float = 0.0) -> Iterator[Received]:
        """All at once: it is in memory anyway."""
        yield from self._world.holds(self._topic)

    def remove(self, messages: Sequence[Received]) -> None:
        """Confirmed at once."""
        self._world.remove(messages)

    def close(self) -> None:
        """There is nothing to let go."""


class MemoryConsumer(MessageConsumer):
    """One member of a group, or one broadcast."""

    def __init__(self, prefix: str, spec: ConsumerSpec, sink: Sink) -> None:
        self.spec = spec
        self.sink = sink
        self.held: dict[Position, Received] = {}
        self.held_bytes = 0
        self._prefix = prefix
        self._world: World | None = None
        self._place: Place | None = None

    def open(self, deadline: Deadline) -> None:
        """Join the group's place."""
        self._world = world(self._prefix)
        self._place = self._world.join(self)
        self._world.deliver()

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        """Confirmed at once."""
        if self._world is None or self._place is None:
            return
        with self._world.lock:
            for received in batch:
                self._place.handled(self, received)
        self._world.deliver()

    def extend(self, batch: Sequence[Received]) -> None:
        """Nothing runs out here."""

    def mark(self, message: Received, starts: int, deadline: Deadline) -> None:
        """The broker dies with the process: there are no suspects."""

    def close(self, deadline: Deadline) -> None:
        """Give back what is held, leave: nothing takes time here."""
        if self._world is None or self._place is None:
            return
        with self._world.lock:
            if self not in self._place.members:
                return
            self._place.leave(self)
        if self.spec.group is None:
            self._world.drop(self._place, self.spec.name)
        self._world.deliver()

    def has_room(self, received: Received) -> bool:
        """Whether the prefetch lets one more in. Under the world's lock."""
        if not self.held:
            return True
        fits = self.held_bytes + received.size <= self.spec.prefetch_bytes
        return fits and len(self.held) < self.spec.prefetch
