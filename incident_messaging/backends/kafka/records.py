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

#: Bytes that a header takes beside its name and value: a message of a megabyte may have half a million empty ones.
_PAIR = 128


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


class Arrival(Received):
    """A message as it came in; what few ask for is read from the client's own object when they do.

    Attributes:
        message: The client's object, which is no error.
        offset: Its place in its partition.
        partition: What the consumer knows of its partition; nobody else looks inside.
    """

    __slots__ = ("message", "offset", "partition", "size")

    size: int

    def __init__(self, message: Message[Any, Any], topic: str, offset: int, partition: Any = None) -> None:
        key: Any = message.key()
        body = message.value()
        self.message = message
        self.topic = topic
        self.offset = offset
        self.partition = partition
        self.body = body
        self.key = None if key is None else key.decode("utf-8", "surrogateescape")
        self.raw_headers = raw = raw_headers(message)
        size = (0 if body is None else len(body)) + (0 if key is None else len(key))
        for name, value in raw:
            size += _PAIR + len(name) + (0 if value is None else len(value))
        self.size = size
        self.suspect = False
        self.starts = 0

    def __getattr__(self, name: str) -> Any:
        """Fill what is empty yet: only then it is called."""
        if name == "headers":
            self.headers = {name: _text(value) for name, value in self.raw_headers} if self.raw_headers else NO_HEADERS
        elif name == "position":
            self.position = Position(topic=self.topic, partition=self.message.partition(), offset=self.offset)
        elif name == "timestamp":
            self.timestamp = max(0, self.message.timestamp()[1]) / 1000
        elif name == "fallback_id":
            self.fallback_id = str(self.position)
        else:
            raise AttributeError(name)
        return getattr(self, name)

    def header(self, name: str) -> str | None:
        """See `Received.header`."""
        for each, value in reversed(self.raw_headers):
            if each == name:
                return _text(value)
        return None


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
