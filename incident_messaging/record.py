"""The wire form of a message: what a broker takes, and what it hands over.

A `Record` goes out, a `Received` comes in. Neither knows about envelopes, events or types: the
codec turns one into the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

#: The map most messages share; never changed.
NO_HEADERS: Mapping[str, str] = {}

#: Bytes that a publish leaves free below a server's limit, so that a message also fits with what is added when it
#: becomes a dead letter or is redriven.
RESERVE = 16_384


@attrs.frozen(kw_only=True)
class Position:
    """Where a broker keeps a message: topic, partition and offset, or stream and sequence.

    As ``start`` of a subscription it names the first message wanted.
    """

    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    stream: str | None = None
    sequence: int | None = None

    @property
    def has_place(self) -> bool:
        """Whether it names a place; core NATS keeps nothing, and so has none."""
        return self.stream is not None or self.partition is not None

    def __str__(self) -> str:
        if self.stream is not None:
            return f"{self.stream}-{self.sequence}"
        if not self.has_place:
            return str(self.topic)
        return f"{self.topic}-{self.partition}-{self.offset}"


#: A header as it is on the wire; only Kafka knows one without a value.
RawHeader = tuple[str, bytes | None]


@attrs.define(kw_only=True, eq=False)
class Record:
    """A message on its way out.

    Attributes:
        topic: The full name on the broker, prefix included.
        body: The bytes of the envelope.
        key: What keeps its order, or ``None``.
        headers: Text by name, the SDK's own included, not yet encoded for a broker.
        dedup_id: What JetStream compares within its duplicate window (``Nats-Msg-Id``).
        raw_headers: Pairs to send as they are, beside ``headers``: a dead letter's, of a foreign
            writer, whose bytes may not be text and whose names may repeat.
    """

    topic: str
    body: bytes
    key: str | None = None
    headers: Mapping[str, str] = NO_HEADERS
    dedup_id: str
    raw_headers: Sequence[RawHeader] = ()

    def take(self, other: Record) -> None:
        """Become the same message."""
        self.topic, self.body, self.key = other.topic, other.body, other.key
        self.headers, self.dedup_id, self.raw_headers = other.headers, other.dedup_id, other.raw_headers

    @property
    def size(self) -> int:
        """Bytes of body, key and headers, as ``max_message_size`` counts them."""
        text = "".join((self.key or "", *self.headers, *self.headers.values()))
        raw = sum(len(name) + len(value or b"") for name, value in self.raw_headers) if self.raw_headers else 0
        return len(self.body) + raw + (len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape")))


@attrs.define(kw_only=True, eq=False)
class Received:
    """A message as a broker handed it over.

    A broker's own kind (a subclass) may leave what few messages are asked for to be read when it is
    asked for: headers and raw_headers, position, timestamp and fallback_id.

    Attributes:
        topic: The full name on the broker, prefix included.
        body: The bytes; ``None`` is a Kafka tombstone.
        key: The key as text (foreign bytes by surrogateescape), or ``None``.
        headers: Decoded text by name; of repeated names the last wins.
        raw_headers: The pairs as they came.
        position: Where the broker keeps it.
        timestamp: When the broker stored it, in Unix seconds.
        fallback_id: The id of a message that brings no envelope, the same at every redelivery.
        suspect: Whether a process may have died of it: one that had it did not give it back.
        starts: How many starts of a handler on it are known from processes that died.
    """

    topic: str
    body: bytes | None
    key: str | None
    headers: Mapping[str, str]
    raw_headers: Sequence[RawHeader]
    position: Position
    timestamp: float
    fallback_id: str
    suspect: bool = False
    starts: int = 0

    def header(self, name: str) -> str | None:
        """One header; a broker's own kind knows without reading them that there is none."""
        return self.headers.get(name)

    @property
    def size(self) -> int:
        """Bytes of body, key and headers, as the prefetch limit counts them."""
        text = sum(map(len, (self.key or "", *self.headers, *self.headers.values())))
        return text + (len(self.body) if self.body is not None else 0)
