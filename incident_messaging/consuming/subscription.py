"""A subscription, as its user holds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from incident_messaging.config import MessagingBackend
from incident_messaging.consuming.delivery import Delivery
from incident_messaging.consuming.hands import Hands
from incident_messaging.consuming.intake import Intake
from incident_messaging.deadline import Deadline
from incident_messaging.errors import ConfigurationError, MessagingError

T = TypeVar("T")


class Subscription(Generic[T]):
    """A place on a topic, from which messages are handed to a callback or an iterator.

    Guarantees: a message leaves only when it was acknowledged or its dead letter is stored; messages
    with one key are handed out in order, one at a time (a batch: in order); the settling methods
    never block, but for a confirmation. Every method may be called from any thread.
    """

    def __init__(self, intake: Intake[T]) -> None:
        self._intake = intake
        self._hands = Hands(intake)

    @property
    def name(self) -> str:
        """The name of its place on the broker, a Kafka ``group.id`` or a JetStream durable."""
        return self._intake.plan.name

    @property
    def topic(self) -> str:
        """The topic or pattern, without the prefix."""
        return self._intake.plan.topic

    @property
    def backend(self) -> MessagingBackend:
        """The broker that it reads from."""
        return self._intake.plan.backend

    @property
    def group(self) -> str | None:
        """The group; ``None`` for a broadcast."""
        return self._intake.plan.group

    @property
    def error(self) -> MessagingError | None:
        """Why it ended by itself, if it did."""
        return self._intake.error

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._intake.closed

    def next(self, timeout: float | None = None) -> Delivery[T] | None:
        """The next message, or ``None``: ready, and nothing came in ``timeout`` seconds.

        With ``auto_ack`` it first acknowledges what this thread was handed last. ``None`` waits for
        ever, 0 looks once.

        Raises:
            MessagingError: The subscription ended by itself, and this is why.
            BackendUnavailable: It is closed, or was inherited over a fork.
            ConfigurationError: It has a callback.
        """
        batch = self._hands.take(1, Deadline.after(timeout))
        return batch[0] if batch else None

    def next_batch(self, max_size: int, timeout: float | None = None) -> list[Delivery[T]]:
        """Up to ``max_size`` messages: waits for the first, takes what else is there.

        The batch is acknowledged whole, by the next call (with ``auto_ack``) or ``ack(batch)``.

        Raises:
            MessagingError: As `next`.
        """
        if max_size < 1:
            raise ConfigurationError(f"max_size {max_size!r} is not allowed: 1 or more")
        return self._hands.take(max_size, Deadline.after(timeout))

    def __iter__(self) -> Iterator[Delivery[T]]:
        """Every message from now on; asking for the next acknowledges the last one (with ``auto_ack``).

        Leaving the loop in any other way acknowledges nothing more and gives the last one back.
        """
        return self._hands.deliveries(None, None)

    def ack(self, deliveries: Sequence[Delivery[T]] | None = None) -> None:
        """Acknowledge these, or what this thread was handed last; a batch costs one commit."""
        if deliveries is not None:
            self._intake.settle(deliveries)
        else:
            self._hands.ack()

    def nack(self, delay: float | None = None) -> None:
        """What this thread was handed last has failed: it comes again by the policy, or after ``delay``."""
        self._hands.nack(delay)

    def drain(self, timeout: float = 10.0) -> list[str]:
        """Take no more, let what has arrived be handled, settle, close.

        Returns:
            What could not be finished in time, in words.
        """
        return self._intake.drain(timeout)

    def close(self, timeout: float = 10.0) -> list[str]:
        """Hand out nothing more, let running callbacks end, settle, give back the rest. Idempotent.

        Called by one of its own callbacks it returns at once, and the rest follows when that ends.

        Returns:
            What could not be finished in time, in words.
        """
        return self._intake.close(timeout)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it is closed; false when ``timeout`` seconds ran out first.

        Raises:
            MessagingError: It ended by itself, and this is why.
        """
        return self._intake.join(timeout)

    def __enter__(self) -> Subscription[T]:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
