"""What the running code works on: the correlation id, and the message in hand.

Both are context variables (PEP 567): each thread and each task has its own. A callback runs with those of its
message, so that what it publishes belongs to the same story, and its log lines can say so. A thread that a
callback starts has none: run it in ``contextvars.copy_context()``.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar, Token
from typing import Any

from incident_messaging.consuming.delivery import Delivery
from incident_messaging.envelope import MessageEnvelope

__all__ = ["Handling", "LogFields", "correlation_id"]

#: What is being worked on, in the words of whoever began it. A publish that names no correlation id takes this
#: one; a web application may set it from a request's header, and a callback runs with that of its message.
correlation_id: ContextVar[str | None] = ContextVar("incident_messaging_correlation_id", default=None)

_in_hand: ContextVar[Delivery[Any] | None] = ContextVar("incident_messaging_in_hand", default=None)


class Handling:
    """A ``with`` block in which a delivery is in hand, for those who iterate: a callback has it by itself."""

    __slots__ = ("_correlation", "_delivery", "_hand")

    _hand: Token[Delivery[Any] | None]
    _correlation: Token[str | None]

    def __init__(self, delivery: Delivery[Any]) -> None:
        self._delivery = delivery

    def __enter__(self) -> None:
        self._hand = _in_hand.set(self._delivery)
        self._correlation = correlation_id.set(self._delivery.metadata.correlation_id)

    def __exit__(self, *_: object) -> None:
        correlation_id.reset(self._correlation)
        _in_hand.reset(self._hand)


def correlation_of(message: Any, given: str | None) -> str | None:
    """The correlation id to publish a message with: the one given, its envelope's own, or the context's."""
    if given is not None:
        return given
    own = message.metadata.correlation_id if isinstance(message, MessageEnvelope) else None
    return correlation_id.get() if own is None else None  # the envelope's own stays as it is


class LogFields(logging.Filter):
    """Adds to each log record what is known of the message in hand; for a handler of ``logging``.

    The fields are ``message_id``, ``correlation_id``, ``topic`` (without the prefix), ``group`` and ``attempt``;
    each is ``None`` where there is none. Fields that a record has already are kept.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with the fields."""
        delivery = _in_hand.get()
        fields: dict[str, Any] = dict.fromkeys(("message_id", "topic", "group", "attempt"))
        if delivery is not None:
            fields.update(
                message_id=delivery.metadata.message_id,
                topic=delivery.topic,
                group=delivery.group,
                attempt=delivery.attempt,
            )
        fields["correlation_id"] = correlation_id.get()
        for name, value in fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True
