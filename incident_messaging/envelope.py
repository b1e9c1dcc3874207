"""The envelope: a message, and what is known about it; and the form of both on the wire.

The reader of metadata is lenient where other writers differ: what is missing or not usable is filled
with what the broker knows, and unknown fields are passed over.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Generic, Self, TypeVar

import attrs

from incident_messaging.forms import parse_rfc3339, rfc3339, shown

T = TypeVar("T")

#: Of the format of envelopes.
VERSION: Final = "1.0"

#: The last second of year 9999, where `datetime` ends.
_LAST_SECOND: Final = 253_402_300_799

#: Of a UUID's 128 bits (RFC 9562): those that are random, and version 4 and variant binary 10 in the others.
_RANDOM_BITS: Final = (1 << 128) - 1 & ~(0xF << 76) & ~(0b11 << 62)
_FIXED_BITS: Final = (4 << 76) | (0b10 << 62)


#: Own, so that a program that seeds ``random`` does not repeat ids; seeded anew in a forked child.
#: ``os.urandom`` for each id releases the interpreter lock each time, and beside a busy thread waits
#: up to 5 ms to have it back.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def new_message_id() -> str:
    """The text of a random UUID (version 4, RFC 9562); unique, not secret."""
    digits = "%032x" % (_random.getrandbits(128) & _RANDOM_BITS | _FIXED_BITS)
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def unix_time() -> int:
    """Now, in whole Unix seconds."""
    return int(time.time())


@attrs.define
class MessageMetadata:
    """What is known about a message; may be changed until it is published.

    Attributes:
        message_id: Which message; the same when it comes again.
        correlation_id: What it belongs to, in the words of whoever began it.
        timestamp: When it was made, in whole Unix seconds, whichever form it had on the wire.
        source: Which program made it; empty is filled when published, by the configuration.
        version: Of this format.
        headers: Text that travels inside the body. The headers of ``publish`` and of a `Delivery`
            are the broker's own and travel beside the body.
    """

    message_id: str = attrs.field(factory=new_message_id)
    correlation_id: str | None = None
    timestamp: int = attrs.field(factory=unix_time)
    source: str = ""
    version: str = VERSION
    headers: dict[str, str] = attrs.field(factory=dict)

    @property
    def time(self) -> datetime:
        """``timestamp`` as an aware datetime in UTC."""
        return datetime.fromtimestamp(self.timestamp, UTC)


@attrs.define
class MessageEnvelope(Generic[T]):
    """A message with its metadata.

    Attributes:
        metadata: What is known about it.
        payload: The message itself.
    """

    metadata: MessageMetadata
    payload: T

    @classmethod
    def new(
        cls,
        payload: T,
        *,
        correlation_id: str | None = None,
        source: str | None = None,
        message_id: str | None = None,
    ) -> Self:
        """An envelope round a message, made now.

        Args:
            payload: The message.
            correlation_id: What it belongs to.
            source: Which program makes it; ``None`` is the configured one, when it is published.
            message_id: ``None`` is a new one.
        """
        metadata = MessageMetadata(correlation_id=correlation_id, source=source or "")
        if message_id is not None:
            metadata.message_id = message_id
        return cls(metadata, payload)


def _is_text(value: Any) -> bool:
    return type(value) is str


#: What a user may put into metadata, in code and in words.
_ALLOWED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "message_id": (lambda value: _is_text(value) and value != "", "text that is not empty"),
    "correlation_id": (lambda value: value is None or _is_text(value), "text or None"),
    "timestamp": (lambda value: type(value) is int and 0 <= value <= _LAST_SECOND, "whole Unix seconds"),
    "source": (_is_text, "text"),
    "version": (_is_text, "text"),
    "headers": (
        lambda value: isinstance(value, dict) and all(map(_is_text, (*value, *value.values()))),
        "a dict of text",
    ),
}


def check_metadata(metadata: MessageMetadata) -> None:
    """Refuse metadata that a user has filled with what cannot travel.

    Raises:
        ValueError: The text names field, value and what is allowed.
    """
    for name, (is_allowed, words) in _ALLOWED.items():
        value = getattr(metadata, name)
        if not is_allowed(value):
            raise ValueError(f"metadata.{name} {shown(value)} is not allowed: {words}")


def wire_time(timestamp: int, *, unix: bool) -> int | str:
    """A time in Unix seconds as it is on the wire: as it is, or as RFC 3339."""
    return timestamp if unix else rfc3339(datetime.fromtimestamp(timestamp, UTC))


def metadata_fields(metadata: MessageMetadata, *, unix: bool) -> dict[str, Any]:
    """Metadata as it is on the wire, its timestamp in Unix seconds or as RFC 3339."""
    return {
        "message_id": metadata.message_id,
        "correlation_id": metadata.correlation_id,
        "timestamp": wire_time(metadata.timestamp, unix=unix),
        "source": metadata.source,
        "version": metadata.version,
        "headers": metadata.headers,
    }


def is_envelope(document: Any) -> bool:
    """Whether a JSON value is an envelope, not a payload of the same looks.

    It is an object with a payload and a metadata object that names a message, or that has nothing
    beside these two.
    """
    if type(document) is not dict or "payload" not in document:
        return False
    metadata = document.get("metadata")
    return type(metadata) is dict and (type(metadata.get("message_id")) is str or len(document) == 2)


def read_metadata(
    fields: Mapping[str, Any], message_id: str, timestamp: float, correlation_id: str | None = None
) -> MessageMetadata:
    """Metadata from an object that somebody has written, not necessarily this SDK.

    Args:
        fields: The object.
        message_id: Stands in for one that is missing or not usable, as do the next two.
        timestamp: In Unix seconds.
        correlation_id: Text, or ``None``.
    """
    get = fields.get
    given_id, correlation, time = get("message_id"), get("correlation_id"), get("timestamp")
    source, version, headers = get("source"), get("version"), get("headers")
    return MessageMetadata(
        given_id if given_id and type(given_id) is str else message_id,
        correlation if type(correlation) is str else correlation_id,
        time if type(time) is int and 0 <= time <= _LAST_SECOND else _timestamp_or(time, timestamp),
        source if type(source) is str else "",
        version if type(version) is str else VERSION,
        _text_items(headers) if headers and type(headers) is dict else {},
    )


def _timestamp_or(value: Any, otherwise: float) -> int:
    """Whole seconds from RFC 3339, or from a number that is not whole."""
    if type(value) is str:
        try:
            return int(parse_rfc3339(value).timestamp())
        except (ValueError, OverflowError):
            return int(otherwise)
    is_usable = type(value) is float and 0 <= value <= _LAST_SECOND
    return int(value if is_usable else otherwise)


def _text_items(headers: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if type(value) is str}
