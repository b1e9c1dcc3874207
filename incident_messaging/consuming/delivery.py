"""A message in the hands of a handler or iterator, and the ways to settle it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from incident_messaging.config import MessagingBackend
from incident_messaging.consuming.plan import Plan
from incident_messaging.consuming.schedule import Entry
from incident_messaging.envelope import MessageEnvelope, MessageMetadata
from incident_messaging.record import Position

T = TypeVar("T")

#: Headers that only repeat what a message says itself.
REPEATED = frozenset({"x-message-id", "x-key", "x-correlation-id", "content-type"})


class Retry(Exception):
    """Raised by a callback: hand this message out again.

    Attributes:
        delay: Seconds until then; ``None`` is as the policy says, 0 at once.
    """

    def __init__(self, delay: float | None = None) -> None:
        super().__init__("the handler asked for another attempt")
        self.delay = delay


class Reject(Exception):
    """Raised by a callback: this message goes to the dead letters now."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)


class Source(Protocol):
    """Where a delivery comes from and is settled: an `Intake`."""

    @property
    def plan(self) -> Plan:
        """What the subscription is to do."""

    def settle(self, deliveries: Sequence[Any], *, confirm: bool = ..., timeout: float | None = ...) -> None:
        """Acknowledge."""

    def fail(self, delivery: Any, error: Exception) -> None:
        """Settle as failed."""

    def extend(self, delivery: Any) -> None:
        """Being worked on."""


class Delivery(Generic[T]):
    """One message, as it was handed out.

    It may be settled from any thread; settling twice is harmless, and so is settling one that has
    been handed out again since.
    """

    __slots__ = ("_attempt", "_entry", "_headers", "_source", "envelope")

    def __init__(self, source: Source, entry: Entry, envelope: MessageEnvelope[T]) -> None:
        self._source = source
        self._entry = entry
        self._attempt = entry.attempt + 1
        self._headers: Mapping[str, str] | None = None
        self.envelope = envelope

    @property
    def payload(self) -> T:
        """The message itself, of the type that was asked for."""
        return self.envelope.payload

    @property
    def metadata(self) -> MessageMetadata:
        """The envelope's metadata; made from the broker's own where the writer sent no envelope."""
        return self.envelope.metadata

    @property
    def topic(self) -> str:
        """The topic it was published to, without the prefix."""
        return self._source.plan.short(self._entry.received.topic)

    @property
    def key(self) -> str | None:
        """The key that keeps its order."""
        return self._entry.received.key

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, but for those that only repeat id, key, correlation id and content type."""
        if self._headers is None:
            given = self._entry.received.headers
            self._headers = {name: text for name, text in given.items() if name.lower() not in REPEATED}
        return self._headers

    @property
    def body(self) -> bytes:
        """The bytes as they came."""
        return self._entry.received.body or b""

    @property
    def attempt(self) -> int:
        """Which start of a handler this is, 1 the first."""
        return self._attempt

    @property
    def backend(self) -> MessagingBackend:
        """The broker that it came from."""
        return self._source.plan.backend

    @property
    def position(self) -> Position:
        """Where the broker keeps it."""
        return self._entry.received.position

    @property
    def group(self) -> str | None:
        """The group that it was delivered to; ``None`` for a broadcast."""
        return self._source.plan.group

    def ack(self, *, confirm: bool = False, timeout: float = 5.0) -> None:
        """Say that it is handled.

        Args:
            confirm: Return only when the broker has confirmed (always so with
                ``enable_auto_commit=False``). On Kafka, where an earlier message is unsettled, it
                returns at once and this one follows that.
            timeout: Seconds that the confirmation may take.

        Raises:
            Timeout: Not confirmed in time; it is settled here all the same.
        """
        self._source.settle([self], confirm=confirm, timeout=timeout)

    def nack(self, delay: float | None = None) -> None:
        """Say that it failed: it comes again, or goes to the dead letters after the last attempt.

        Args:
            delay: Seconds until then; ``None`` is as the policy says, 0 at once.
        """
        self._source.fail(self, Retry(delay))

    def reject(self, reason: str = "rejected by the handler") -> None:
        """Send it to the dead letters now.

        Raises:
            ConfigurationError: ``enable_dlq`` is off.
        """
        self._source.fail(self, Reject(reason))

    def in_progress(self) -> None:
        """Say that it is being worked on: ``handler_timeout`` counts anew, the broker is told."""
        self._source.extend(self)

    def current(self) -> Entry | None:
        """The entry, if this hand-out of it is still the last one."""
        return self._entry if self._entry.attempt == self._attempt else None

    def undo(self) -> None:
        """It was not handed out after all, and counts as no attempt."""
        self._entry.attempt = self._attempt - 1

    def __repr__(self) -> str:
        return f"<Delivery {self.topic} {self.metadata.message_id} at {self.position}, attempt {self.attempt}>"
