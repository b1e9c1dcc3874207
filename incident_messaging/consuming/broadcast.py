"""One broker consumer for all broadcasts of a process on one topic.

A consumer costs threads, sockets and a copy of the topic's traffic; two hundred open pages that
watch the same topic need one. What it receives is acknowledged at once and handed to every reader;
a reader that falls behind cannot slow the others down, so it is ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs

from incident_messaging.backends.base import ConsumerSpec, MessageConsumer, MessageProducer, Sink
from incident_messaging.deadline import Deadline
from incident_messaging.errors import ConsumeFailed, MessagingError, Timeout
from incident_messaging.record import Received


class Broadcasts:
    """The shared consumers of one broker, by topic."""

    def __init__(self, broker: MessageProducer) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._shared: dict[str, Shared] = {}

    def reader(self, spec: ConsumerSpec, sink: Sink) -> MessageConsumer:
        """A reader of the topic from now on, which opens the shared consumer if it is the first."""
        return Reader(partial(self.shared, spec), spec, sink)

    def shared(self, spec: ConsumerSpec) -> Shared:
        """The topic's shared consumer; a new one if there is none, or its end has come."""
        with self._lock:
            shared = self._shared.get(spec.topic)
            if shared is None or shared.over:
                shared = self._shared[spec.topic] = Shared(self._broker, spec)
            return shared


class Shared:
    """The sink of the shared consumer: it hands on to every reader."""

    def __init__(self, broker: MessageProducer, spec: ConsumerSpec) -> None:
        self._opening = threading.Lock()  # held while the consumer opens or closes
        self._lock = threading.Lock()
        self._readers: list[Reader] = []
        self._topic = spec.topic
        self._consumer = broker.consumer(attrs.evolve(spec, prefetch=max(spec.prefetch, 1000)), self)
        self._open = False
        self.over = False

    def join(self, reader: Reader, deadline: Deadline) -> bool:
        """Let a reader in; false if the last one has just left, or the one that opened it failed.

        Raises:
            MessagingError: As `MessageConsumer.open`.
        """
        left = deadline.left()
        if not self._opening.acquire(timeout=-1 if left is None else left):
            raise Timeout(f"the broadcast of {self._topic} is still being opened by another reader")
        try:
            if self.over:
                return False
            if not self._open:
                self._begin(deadline)
            with self._lock:
                self._readers.append(reader)
            return True
        finally:
            self._opening.release()

    def _begin(self, deadline: Deadline) -> None:
        try:
            self._consumer.open(deadline)
        except BaseException:
            self.over = True
            self._consumer.close(Deadline.after(0.1))  # the caller's time may be over
            raise
        self._open = True

    def leave(self, reader: Reader, deadline: Deadline) -> None:
        """Let a reader go; the last one closes the consumer."""
        with self._opening:
            with self._lock:
                if reader in self._readers:
                    self._readers.remove(reader)
                last = not self._readers and self._open and not self.over
            if last:
                self.over = True
                self._consumer.close(deadline)

    def deliver(self, batch: Sequence[Received]) -> None:
        """Hand a batch to every reader."""
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            reader.offer(batch)
        self._consumer.ack(batch)

    def forget(self, gone: Callable[[Received], bool]) -> None:
        """Nothing is anybody's own in a broadcast."""

    def ended(self, error: MessagingError) -> None:
        """The consumer is over: so is every reader."""
        with self._lock:
            readers, self.over = list(self._readers), True
        for reader in readers:
            reader.end(error)


class Reader(MessageConsumer):
    """One subscription's part in a shared consumer."""

    def __init__(self, find: Callable[[], Shared], spec: ConsumerSpec, sink: Sink) -> None:
        self._find = find
        self._shared: Shared | None = None
        self._spec = spec
        self._sink = sink
        self._lock = threading.Lock()
        self._unread = self._unread_size = 0
        self._over = False

    def open(self, deadline: Deadline) -> None:
        """Join; what is published from now on is delivered."""
        shared = self._find()
        while not shared.join(self, deadline):
            shared = self._find()
        self._shared = shared

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        """Only makes room; a broadcast has no place on the broker."""
        with self._lock:
            self._unread -= len(batch)
            self._unread_size -= sum(message.size for message in batch)

    def extend(self, batch: Sequence[Received]) -> None:
        """Nothing to tell the broker."""

    def mark(self, message: Received, starts: int, deadline: Deadline) -> None:
        """Nothing comes again: there are no suspects."""

    def close(self, deadline: Deadline) -> None:
        """Leave."""
        self._over = True
        if self._shared is not None:
            self._shared.leave(self, deadline)

    def offer(self, batch: Sequence[Received]) -> None:
        """Take a batch, or end: the reader has fallen behind."""
        with self._lock:
            if self._over:
                return
            idle = self._unread <= 1  # one in hand and one behind it are let in, however large
            self._unread += len(batch)
            self._unread_size += sum(message.size for message in batch)
            behind = self._behind(idle=idle)
            self._over = behind is not None
        if behind is None:
            self._sink.deliver(batch)
            return
        self._sink.ended(
            ConsumeFailed(f"the reader of {self._spec.topic} {behind}, or use a group", code="slow_reader")
        )

    def _behind(self, *, idle: bool) -> str | None:
        """What is said of a reader that has more than it may have, and what helps."""
        spec = self._spec
        if self._unread > spec.prefetch:
            return f"fell {self._unread:,} messages behind (prefetch {spec.prefetch:,}); read faster, raise prefetch"
        if self._unread_size > spec.prefetch_bytes and not idle:
            words = f"fell {self._unread_size:,} bytes behind (max_in_flight_bytes {spec.prefetch_bytes:,})"
            return f"{words}; read faster, raise max_in_flight_bytes"
        return None

    def end(self, error: MessagingError) -> None:
        """The shared consumer is over."""
        self._sink.ended(error)


def shares(spec: ConsumerSpec, start: Any) -> bool:
    """Whether a subscription may share: a broadcast of what comes from now on."""
    return spec.group is None and start in (None, "latest")
