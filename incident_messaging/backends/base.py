"""The contract between the SDK and a broker: ten verbs for its traffic, four for a look into a topic.

A backend is one `MessageProducer` (the connection, which publishes), the `MessageConsumer`s that it
makes, one for each subscription, and an `Archive` where somebody looks into a topic. It knows the
broker; it knows nothing of envelopes, message types, retries, dead letters or metrics. All that is
above it and the same for every broker. ``tests/conformance`` holds every backend to this page.

Threads: every method may be called from any thread. What a backend calls back (`Done`, `Sink`)
it may call from a thread of its own, and those calls neither block nor raise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import attrs

from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, MessagingError
from incident_messaging.record import Position, Received, Record

#: The position of a record, or what makes it for those who want it: few do, and it takes as long as all else that
#: an acknowledgement brings.
Where = Position | Callable[[], Position]

#: ``done(where, duplicate, error)``: what became of a record. ``error`` is ``None`` when the
#: broker acknowledged it; a `Timeout` carries ``maybe_delivered``.
Done = Callable[[Where | None, bool, MessagingError | None], None]

#: Where a place that does not exist yet begins.
Start = Literal["earliest", "latest"] | datetime | Position


@attrs.frozen(kw_only=True)
class Status:
    """A backend's state, told without I/O.

    Attributes:
        state: ``new`` (never connected), ``connected``, ``disconnected`` (was connected and is
            trying again) or ``closed``.
        error: The last trouble in words, or ``None``; kept after it has passed.
    """

    state: Literal["new", "connected", "disconnected", "closed"]
    error: str | None = None


@attrs.frozen(kw_only=True)
class ConsumerSpec:
    """What a subscription asks of a broker.

    Attributes:
        topic: The full topic or pattern (``*`` one level, a last ``>`` one or more), prefix included.
        group: The group whose members share the messages, or ``None`` for a broadcast, which sees
            all and keeps no place on the broker.
        name: The group's name on the broker (a broadcast's is made for it); threads carry it too.
        start: Where a group without a place, or a broadcast, begins.
        prefetch: How many messages may be delivered and not yet acknowledged.
        prefetch_bytes: The same in bytes of body, key and headers; one message is always let through.
        dead_letter_topic: The full topic that `open` makes or checks, or ``None``. A pattern
            must not match it where the broker can leave a topic out.
    """

    topic: str
    group: str | None
    name: str
    start: Start
    prefetch: int
    prefetch_bytes: int
    dead_letter_topic: str | None = None


def position(where: Where | None) -> Position | None:
    """The position itself."""
    return where() if callable(where) else where


class Parcel(Record, ABC):
    """A record on its way to one broker; called with what became of it, as a `Done`.

    It is the record itself: of two objects for each message on its way the garbage collector would see both.

    Attributes:
        deadline: By when it has its outcome; it always has an end.
        sent: How often it was handed on: the broker may have what was.
        note: The backend's own, until then; nobody else looks at it.
    """

    __slots__ = ("deadline", "note", "sent")

    deadline: Deadline
    sent: int
    note: Any

    @abstractmethod
    def __call__(self, where: Where | None, duplicate: bool, error: MessagingError | None) -> None:
        """It has its outcome."""


def broken_off(rest: Iterable[Parcel], backend: str) -> None:
    """End the parcels that a hand-over did not come to: it was broken off, by Ctrl-C or by a fault."""
    for parcel in rest:
        parcel(None, False, BackendUnavailable(f"{parcel.topic}: not sent, broken off", backend=backend))


class _Addressed(Parcel):
    """A parcel whose outcome goes to a function."""

    __slots__ = ("_done",)

    def __init__(self, record: Record, deadline: Deadline, done: Done) -> None:
        self.take(record)
        self.deadline = deadline
        self.sent, self.note = 0, None
        self._done = done

    def __call__(self, where: Where | None, duplicate: bool, error: MessagingError | None) -> None:
        self._done(where, duplicate, error)


class Sink(Protocol):
    """Where a consumer puts what it receives; a subscription is one."""

    def deliver(self, batch: Sequence[Received]) -> None:
        """Take a batch, in the broker's order. Called by one thread at a time."""

    def forget(self, gone: Callable[[Received], bool]) -> None:
        """Drop what was delivered and not started yet, and is no longer ours (Kafka: revoked)."""

    def ended(self, error: MessagingError) -> None:
        """The consumer is over by itself and delivers nothing more. Called at most once."""


class MessageConsumer(ABC):
    """One subscription's place on a broker.

    Guarantees: each message of the topic is delivered to one member of the group, in the broker's
    order; never more than ``prefetch`` are delivered and unacknowledged; what is not acknowledged
    stays ours as long as the process lives and the broker lets it (JetStream: work-in-progress is
    sent for all of it, prefetched or in a handler; Kafka: polling never stops), and comes again to
    somebody when it does not. A connection that breaks is rebuilt without a call from above.
    """

    @abstractmethod
    def open(self, deadline: Deadline) -> None:
        """Return when the place exists on the broker: what is published after this is delivered.

        Raises:
            SubscribeFailed: It cannot be had (``denied``, ``overlap``, ``no_topic``).
            ConnectionFailed: No broker, before the first connection.
            Timeout: Not ready in time; the text says what it waited for.
        """

    @abstractmethod
    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        """Acknowledge; what was acknowledged is not delivered again to this group.

        Without a deadline it returns at once and the broker learns of it soon. With one it returns
        when the broker has confirmed; where the broker can only confirm in order and an earlier
        message is unsettled, it returns at once and this one follows that.
        A message that is no longer ours is passed over.

        Raises:
            Timeout: With a deadline: not confirmed by then.
        """

    @abstractmethod
    def extend(self, batch: Sequence[Received]) -> None:
        """Tell the broker at once that the messages are being worked on; returns at once."""

    @abstractmethod
    def mark(self, message: Received, starts: int, deadline: Deadline) -> None:
        """Store how often a handler was started on a suspect, and return when that outlives this process.

        Who receives the message after this process has died is told so (``Received.starts``); settling takes the
        mark away. A consumer that hands out no suspects, since nothing of it outlives the process, does nothing.

        Raises:
            Timeout: Not stored by the deadline.
        """

    @abstractmethod
    def close(self, deadline: Deadline) -> str | None:
        """Hand over every acknowledgement, give back what was not acknowledged, leave. Idempotent.

        Nothing is delivered after it returns. Never raises.

        Returns:
            What could not be finished by the deadline, in words; a named daemon thread may be left to finish it.
        """


class Archive(ABC):
    """What a topic holds, for those who look into it: no place, no traffic; used by one thread.

    Guarantees: looking changes nothing; what was removed is not shown again by any archive of the topic.
    """

    @abstractmethod
    def read(self, since: float = 0.0) -> Iterator[Received]:
        """All that the topic holds, from its first message to the one that is the last by now.

        In the broker's order (Kafka: partition by partition). A topic that does not exist holds nothing.

        Args:
            since: Unix seconds; what was stored before may be left out, where the broker finds a time.

        Raises:
            Timeout: The broker has stopped answering.
            SubscribeFailed: It does not allow it (``denied``).
        """

    @abstractmethod
    def remove(self, messages: Sequence[Received]) -> None:
        """Take out messages that `read` has shown; returns when the broker has confirmed.

        Raises:
            Timeout: Not confirmed; removing them again is harmless.
            PublishFailed: The broker does not allow it (``denied``).
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds. Idempotent, never raises."""


class MessageProducer(ABC):
    """A broker as the SDK sees it: publishes, and makes consumers.

    Guarantees: the constructor does no I/O and starts no thread; records that one thread sends
    keep their order per key, also through retries; after the first connection an outage is ridden
    out until each record's own deadline.
    """

    #: ``nats``, ``kafka`` or ``memory``: the label of metrics, errors and receipts.
    name: str

    #: To be called behind every burst of outcomes, on the thread that told them: who collects them acts then.
    told: Callable[[], None] = staticmethod(lambda: None)

    @abstractmethod
    def connect(self, deadline: Deadline) -> None:
        """Return when the broker has answered. The other verbs connect by themselves.

        Raises:
            ConnectionFailed: Every address said no (``unreachable``, ``unauthorized``, ``tls``), or
                none had answered by the deadline.
            ConfigurationError: The broker is older than what is supported, or an option is not usable.
        """

    @abstractmethod
    def send_all(self, parcels: Sequence[Parcel]) -> None:
        """Hand records over, in their order; returns at once and never raises.

        Each parcel is called exactly once, at the latest 0.1 s after its deadline, from any thread, also this
        one; `told` follows when all that came with it is told. Before the first connection the error is a
        `ConnectionFailed`, as soon as every address has said no.
        """

    def send(self, record: Record, deadline: Deadline, done: Done) -> None:
        """Hand one record over, whose outcome goes to a function; as `send_all`."""
        self.send_all([_Addressed(record, deadline, done)])

    @abstractmethod
    def consumer(self, spec: ConsumerSpec, sink: Sink) -> MessageConsumer:
        """A consumer that is not open yet; no I/O."""

    @abstractmethod
    def archive(self, topic: str, patience: float) -> Archive:
        """A look into a topic, each answer waited for at most so many seconds; no I/O yet.

        Raises:
            ConfigurationError: Nothing is kept (core NATS).
        """

    @abstractmethod
    def status(self) -> Status:
        """The state, without I/O."""

    @abstractmethod
    def close(self, deadline: Deadline) -> int:
        """Send what was handed over, close, join. Idempotent, never raises.

        Returns:
            How many records had no outcome by the deadline; each was told an error.
        """
