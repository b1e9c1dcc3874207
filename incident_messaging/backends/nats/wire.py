"""Records and messages as NATS puts them on the wire. Pure.

Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol; headers: ADR-4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

import attrs

from incident_messaging.record import Position, Received, Record

#: The header that carries a record's key: NATS knows no keys.
KEY_HEADER = "x-key"
#: The header whose value JetStream compares within a stream's duplicate window.
ID_HEADER = "Nats-Msg-Id"

#: What a header's value may hold as it is: printable ASCII but the per cent sign.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
#: What its name may hold as it is (RFC 9110, section 5.6.2, without the per cent sign).
_TOKEN = "!#$&'*+-.^_`|~"
_ACK_TOKENS = 9


@attrs.define
class Metadata:
    """What the reply subject of a JetStream message says about it.

    Attributes:
        stream: The stream that keeps it.
        sequence: Its number there.
        timestamp: When it was stored, in Unix seconds.
        pending: How many messages the consumer has not delivered yet.
        delivery: The number of this delivery, of all that the consumer made.
        times: How often this message was delivered, this time included.
    """

    stream: str
    sequence: int
    timestamp: float
    pending: int
    delivery: int = 0
    times: int = 1


def publish_command(subject: str, reply: str, headers: bytes, body: bytes) -> bytes:
    """The command that publishes a message; ``headers`` as from `encode_headers`, or empty."""
    if not headers:
        return b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(body), body)
    size = len(headers)
    return b"HPUB %s %s %d %d\r\n%s%s\r\n" % (
        subject.encode(),
        reply.encode(),
        size,
        size + len(body),
        headers,
        body,
    )


def encode_headers(record: Record) -> bytes:
    """The header block of a record, with the id that JetStream compares."""
    pairs = {ID_HEADER: record.dedup_id, **record.headers}
    if record.key is not None:
        pairs[KEY_HEADER] = record.key
    # The way of nearly all headers: nothing to encode in any of them, as one look at all together tells.
    values = "".join(pairs.values())
    if not (values.isascii() and values.isprintable()) or "%" in values or " " in values:
        pairs = {name: _encode(value) for name, value in pairs.items()}
    block = (_layout(tuple(pairs)) % tuple(pairs.values())).encode()
    for name, raw in record.raw_headers:
        # As they came: only what would break the block is taken out.
        block += b"\r\n%s: %s" % (_encode_name(name).encode(), (raw or b"").replace(b"\r", b" ").replace(b"\n", b" "))
    return block + b"\r\n\r\n"


@lru_cache(maxsize=1024)
def _layout(names: tuple[str, ...]) -> str:
    """A header block of these names, to be filled with their values."""
    return "NATS/1.0" + "".join([f"\r\n{_encode_name(name).replace('%', '%%')}: %s" for name in names])


def split_headers(block: bytes | None) -> list[tuple[str, bytes]]:
    """The pairs of a header block, values as they are on the wire without the blanks around them."""
    if not block:
        return []
    pairs = []
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            pairs.append((_name_of(name), value.strip()))
    return pairs


@lru_cache(maxsize=1024)
def _name_of(raw: bytes) -> str:
    return raw.strip().decode("utf-8", "surrogateescape")


def status_of(block: bytes | None) -> tuple[str, str, Mapping[str, str]]:
    """Code, description and headers of a server's status message (``100``, ``408``, ...), or blanks."""
    if not block or block[8:9] != b" ":
        return "", "", {}
    first = block.split(b"\r\n", 1)[0].decode("ascii", "replace")
    headers = {name: raw.decode("ascii", "replace") for name, raw in split_headers(block)}
    return first[9:12], first[13:].strip(), headers


def received(subject: str, block: bytes | None, body: bytes, meta: Metadata | None, now: float) -> Received:
    """The message as the SDK sees it; without metadata (core NATS) its time is ``now``."""
    headers: dict[str, str] = {}
    raw_headers = []
    message_id = None
    for pair in split_headers(block):
        name, raw = pair
        if name.startswith(("Nats-", "nats-")):
            if name == ID_HEADER:
                message_id = decode(raw)
            continue
        raw_headers.append(pair)
        headers[name] = decode(raw)
    if meta is None:
        position, timestamp = Position(topic=subject), now
    else:
        position, timestamp = Position(stream=meta.stream, sequence=meta.sequence), meta.timestamp
    return Received(
        topic=subject,
        body=body,
        key=headers.get(KEY_HEADER),
        headers=headers,
        raw_headers=raw_headers,
        position=position,
        timestamp=timestamp,
        fallback_id=message_id or str(position),
    )


def metadata(reply: str) -> Metadata:
    """What a JetStream reply subject says, with a domain in it or without (ADR-15).

    Raises:
        ValueError: It is not such a subject.
    """
    tokens = reply.split(".")
    if tokens[:2] != ["$JS", "ACK"] or len(tokens) < _ACK_TOKENS:
        raise ValueError(f"not a JetStream reply subject: {reply:.200}")
    at = 2 if len(tokens) == _ACK_TOKENS else 4
    times, sequence, delivery, nanos, pending = map(int, tokens[at + 2 : at + 7])
    return Metadata(tokens[at], sequence, nanos / 1e9, pending, delivery, times)


def decode(raw: bytes) -> str:
    """A header's value as text; bytes that are no UTF-8 by surrogateescape."""
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    return raw.decode("utf-8", "surrogateescape")


def acknowledgement(body: bytes) -> tuple[Position | None, bool, dict[str, object]]:
    """Position, whether it is a duplicate, and the error of JetStream's answer to a publish."""
    answer = json.loads(body)
    if answer.get("error"):
        return None, False, answer["error"]
    return Position(stream=answer["stream"], sequence=answer["seq"]), bool(answer.get("duplicate")), {}


def usual_acknowledgement(inbox: str) -> re.Pattern[bytes]:
    """A whole message with JetStream's answer to a publish, as nearly all are.

    Args:
        inbox: Its subject up to the last level, which is a number.

    Returns:
        A pattern with the groups number, size, body, stream, sequence; the size is to be compared with the body's,
        which somebody else may have written.
    """
    subject = re.escape(inbox.encode())
    return re.compile(rb'MSG %s(\d+) \d+ (\d+)\r\n(\{"stream":"([^"\\]+)", ?"seq":(\d+)\})\r\n' % subject)


def _encode(value: str) -> str:
    encoded = quote_from_bytes(value.encode("utf-8", "surrogateescape"), safe=_PLAIN)
    # The protocol drops blanks at both ends.
    core = encoded.strip(" ")
    lead = len(encoded) - len(encoded.lstrip(" "))
    return "%20" * lead + core + "%20" * (len(encoded) - len(core) - lead)


@lru_cache(maxsize=1024)
def _encode_name(name: str) -> str:
    return quote_from_bytes(name.encode("utf-8", "surrogateescape"), safe=_TOKEN)
