"""A record in Kafka's own form, and back. Pure.

Text travels as UTF-8. What foreign writers sent may be anything: it is read by surrogateescape, so
that writing it again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import methodcaller
from typing import Any

from confluent_kafka import Message

from incident_messaging.backends.kafka.link import log
from incident_messaging.record import NO_HEADERS, Position, RawHeader, Received, Record


def key_of(record: Record) -> str | bytes | None:
    """The key as it goes out; the client library takes text, too, where it is no more than that."""
    key = record.key
    return key if key is None or key.isascii() else key.encode("utf-8", "surrogateescape")


def header_pairs(record: Record) -> list[tuple[str, str | bytes | None]]:
    """The headers as they go out: the raw ones first, since of repeated names the last wins."""
    if not record.raw_headers and "".join(record.headers.values()).isascii():
        return list(record.headers.items())
    pairs: list[tuple[str, str | bytes | None]] = list(record.raw_headers)
    pairs += [(name, value.encode("utf-8", "surrogateescape")) for name, value in record.headers.items()]
    return pairs


def received(message: Message[Any, Any], token: Any) -> Received:
    """A message as it came in; it must not be an error."""
    key: Any = message.key()
    pairs = raw_headers(message)
    headers = {name: _text(value) for name, value in pairs} if pairs else NO_HEADERS
    position = Position(topic=message.topic(), partition=message.partition(), offset=message.offset())
    return Received(
        topic=message.topic() or "",
        body=message.value(),
        key=None if key is None else key.decode("utf-8", "surrogateescape"),
        headers=headers,
        raw_headers=pairs,
        position=position,
        timestamp=max(0, message.timestamp()[1]) / 1000,
        fallback_id=str(position),
        token=token,
    )


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "surrogateescape")


def raw_headers(message: Message[Any, Any]) -> Sequence[RawHeader]:
    """The pairs as they came; none of them where the name of one is no UTF-8."""
    try:
        raw: Any = _headers(message)
    except SystemError:
        log.warning("headers of %s-%s-%s cannot be read", message.topic(), message.partition(), message.offset())
        return ()
    return raw or ()


#: ``message.headers()``, by a way on which CPython looks whether a C function has failed. confluent-kafka reads names
#: strictly, and returns a list with a hole in it where one is no UTF-8: a plain call, once the interpreter has
#: specialised it, takes that list, and who reads it crashes the process.
_headers = methodcaller("headers")
