"""What a subscription is to do: everything that does not change while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from incident_messaging import topics
from incident_messaging.backends.base import ConsumerSpec, MessageProducer
from incident_messaging.config import MessagingBackend, RetryPolicy
from incident_messaging.metrics import Meter
from incident_messaging.record import Received


@attrs.frozen(kw_only=True)
class Plan:
    """What a subscription is to do; made by the service, checked there.

    Attributes:
        spec: What is asked of the broker.
        backend: Which broker it is.
        broker: The broker: dead letters go there.
        prefix: The topic prefix, taken off again for the user.
        decode: From the wire to an envelope, or ``SKIPPED``.
        callback: What handles a delivery; ``None`` for an iterator.
        auto_ack: Whether returning from the callback, or asking for the next, acknowledges.
        confirm: Whether every acknowledgement is to be confirmed (``enable_auto_commit=False``).
        concurrency: How many workers call the callback.
        handler_timeout: Seconds after which a callback counts as failed, or ``None``.
        retry: When a failed message is tried again.
        dead_letters: Whether one that was given up goes to the dead letters.
        dlq_topic: The full dead-letter topic.
        burial_timeout: Seconds that storing a dead letter may take.
        meter: Where it counts.
        threads: Whether workers are started; the test helper runs callbacks itself.
    """

    spec: ConsumerSpec
    backend: MessagingBackend
    broker: MessageProducer
    prefix: str
    decode: Callable[[Received], Any]
    callback: Callable[..., object] | None
    auto_ack: bool
    confirm: bool
    concurrency: int
    handler_timeout: float | None
    retry: RetryPolicy
    dead_letters: bool
    dlq_topic: str
    burial_timeout: float
    meter: Meter
    threads: bool = True

    @property
    def name(self) -> str:
        """The name of the place on the broker, a Kafka ``group.id`` or a JetStream durable."""
        return self.spec.name

    @property
    def group(self) -> str | None:
        """The group; ``None`` for a broadcast."""
        return self.spec.group

    @property
    def topic(self) -> str:
        """The topic or pattern, without the prefix."""
        return self.short(self.spec.topic)

    def short(self, name: str) -> str:
        """A broker's topic name without the prefix."""
        return topics.short_name(self.prefix, name)
