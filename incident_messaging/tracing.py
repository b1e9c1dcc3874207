"""Where a tracer may look on: one for the whole process, as `incident_messaging.contrib.otel` installs.

Without one, a publish pays for a look at a variable, and a callback the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import attrs

from incident_messaging.config import MessagingBackend
from incident_messaging.consuming.delivery import Delivery
from incident_messaging.publishing.publication import BrokerResult

__all__ = ["Outgoing", "Sending", "Tracer", "install", "installed"]


@attrs.frozen(kw_only=True)
class Outgoing:
    """A message that is about to be handed over.

    Attributes:
        topic: Without the prefix.
        backends: The brokers it goes to, by name.
        message_id: The id in the envelope.
        correlation_id: The one in the envelope, or ``None``.
        key: Its key, or ``None``.
        size: Bytes of the body.
    """

    topic: str
    backends: Sequence[str]
    message_id: str
    correlation_id: str | None
    key: str | None
    size: int


class Sending(Protocol):
    """One publish, as a tracer follows it."""

    #: What travels with the message beside its own headers, such as ``traceparent``.
    headers: Mapping[str, str]

    def ended(self, results: Mapping[MessagingBackend, BrokerResult], error: BaseException | None) -> None:
        """It has an outcome, or was never handed over; called once, on any thread. Must not raise."""


class Tracer(Protocol):
    """What looks on. Its methods are called on the threads that publish and handle, and must not raise."""

    def publishing(self, message: Outgoing) -> Sending:
        """A message is about to be handed over."""

    def handling(self, delivery: Delivery[Any]) -> AbstractContextManager[Any]:
        """A ``with`` block round a callback; sees what the callback raises."""


_tracer: Tracer | None = None
_NOTHING = nullcontext()


def install(tracer: Tracer | None) -> None:
    """Have a tracer look on from now on, in the place of the one before; ``None`` is nobody."""
    global _tracer
    _tracer = tracer


def installed() -> Tracer | None:
    """Who looks on."""
    return _tracer


def handling(delivery: Delivery[Any]) -> AbstractContextManager[Any]:
    """A ``with`` block round a callback."""
    return _NOTHING if _tracer is None else _tracer.handling(delivery)
