"""Records and messages as NATS puts them on the wire. Pure.

Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol; headers: ADR-4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from incident_messaging.backends.base import Where
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
_BLANK_LINE = b"\r\n\r\n"
_KEY_NAME = KEY_HEADER.encode()
_KEY_LINE = b"\r\n%s: " % _KEY_NAME
#: Of how many names of headers is remembered what was made of them, and how long those are at most.
_REMEMBERED, _LONGEST_NAME, _LONGEST_LAYOUT = 1024, 64, 1024

_Name = TypeVar("_Name", bound=bytes | str | tuple[str, ...])


class _Memory(dict[_Name, str]):
    """What was made of names, by name. Strangers choose names too, so of long ones nothing is kept."""

    def __init__(self, make: Callable[[_Name], str], longest: int) -> None:
        self._make = make
        self._longest = longest

    def __missing__(self, name: _Name) -> str:
        made = self._make(name)
        size = sum(map(len, name)) if isinstance(name, tuple) else len(name)
        if size <= self._longest:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[name] = made
        return made


class Message(Received):
    """A message as it came; its headers are read when they are asked for.

    Attributes:
        block: The headers as they are on the wire.
        known: Whether it is known by now if the message is a suspect; it may not be delivered before.
    """

    __slots__ = ("block", "known", "size")

    size: int

    def __init__(self, subject: str, block: bytes | None, body: bytes) -> None:
        self.topic = subject
        self.block = block
        self.body = body
        self.size = len(body) if block is None else len(body) + len(block)
        self.known = True
        self.suspect = False
        self.starts = 0
        self.key = None if block is None else self._read_key(block)

    def __getattr__(self, name: str) -> Any:
        """Fill what is empty yet: only then it is called."""
        if name == "fallback_id":
            self.fallback_id = decode(dict(split_headers(self.block)).get(ID_HEADER, b"")) or self._own_id()
        elif name in ("headers", "raw_headers"):
            pairs = [pair for pair in split_headers(self.block) if not pair[0].startswith(("Nats-", "nats-"))]
            self.raw_headers, self.headers = pairs, {name: decode(raw) for name, raw in pairs}
        else:
            raise AttributeError(name)
        return getattr(self, name)

    def header(self, name: str) -> str | None:
        """See `Received.header`."""
        return self.headers.get(name) if self.block is not None and name.encode() in self.block else None

    def _own_id(self) -> str:
        """The id of a message whose writer gave it none."""
        return str(self.position)

    def _read_key(self, block: bytes) -> str | None:
        at = block.rfind(_KEY_LINE)
        begin = at + len(_KEY_LINE)
        end = block.find(b"\r\n", begin)
        if 0 <= at < end and block.find(_KEY_NAME, end) < 0:  # nothing behind it that may be another one
            return decode(block[begin:end].strip())
        return self.headers.get(KEY_HEADER) if _KEY_NAME in block else None


def publish_command(subject: str, reply: str, headers: bytes, body: bytes) -> bytes:
    """The command that publishes a message; ``headers`` as from `encode_headers`, or empty."""
    if not headers:
        return b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(body), body)
    size = len(headers)
    return b"".join((f"HPUB {subject} {reply} {size} {size + len(body)}\r\n".encode(), headers, body, b"\r\n"))


def encode_headers(record: Record) -> bytes:
    """The header block of a record, with the id that JetStream compares."""
    headers, key = record.headers, record.key
    if key is None or KEY_HEADER in headers or ID_HEADER in headers:
        pairs = {ID_HEADER: record.dedup_id, **headers}
        if key is not None:
            pairs[KEY_HEADER] = key
        layout, values = _layouts[tuple(pairs)], tuple(pairs.values())
    else:
        layout, values = _keyed_layouts[tuple(headers)], (record.dedup_id, *headers.values(), key)
    # The way of nearly all headers: nothing to encode in any of them, as one look at all together tells.
    text = "".join(values)
    if not (text.isascii() and text.isprintable()) or "%" in text or " " in text:
        values = tuple(map(_encode, values))
    block = (layout % values).encode()
    if not record.raw_headers:
        return block
    block = block.removesuffix(_BLANK_LINE)
    for name, raw in record.raw_headers:
        # As they came: only what would break the block is taken out.
        block += b"\r\n%s: %s" % (_encoded_names[name].encode(), (raw or b"").replace(b"\r", b" ").replace(b"\n", b" "))
    return block + _BLANK_LINE


def _layout(names: tuple[str, ...]) -> str:
    """A header block of these names, to be filled with their values."""
    lines = [f"\r\n{_encoded_names[name].replace('%', '%%')}: %s" for name in names]
    return "".join(("NATS/1.0", *lines, _BLANK_LINE.decode()))


def _keyed_layout(names: tuple[str, ...]) -> str:
    """The same with the id before these names, and the key behind them."""
    return _layout((ID_HEADER, *names, KEY_HEADER))


def split_headers(block: bytes | None) -> list[tuple[str, bytes]]:
    """The pairs of a header block, values as they are on the wire without the blanks around them."""
    if not block:
        return []
    pairs = []
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            pairs.append((_names[name], value.strip()))
    return pairs


def _name_of(raw: bytes) -> str:
    return raw.strip().decode("utf-8", "surrogateescape")


def status_of(block: bytes | None) -> tuple[str, str, Mapping[str, str]]:
    """Code, description and headers of a server's status message (``100``, ``408``, ...), or blanks."""
    if not block or block[8:9] != b" ":
        return "", "", {}
    first = block.split(b"\r\n", 1)[0].decode("ascii", "replace")
    headers = {name: raw.decode("ascii", "replace") for name, raw in split_headers(block)}
    return first[9:12], first[13:].strip(), headers


def told_by(reply: str) -> tuple[int, int, int, int, int]:
    """What a JetStream reply subject says, with a domain in it or without (ADR-15).

    Returns:
        How often the message was delivered, this time included; its sequence in the stream; the number of this
        delivery, of all that the consumer made; when it was stored, in nanoseconds; how many messages the consumer
        has not delivered yet.

    Raises:
        ValueError: It is not such a subject.
    """
    tokens = reply.split(".")
    if len(tokens) < _ACK_TOKENS or not reply.startswith("$JS.ACK."):
        raise ValueError(f"not a JetStream reply subject: {reply:.200}")
    times, sequence, delivery, nanos, pending = tokens[4:9] if len(tokens) == _ACK_TOKENS else tokens[6:11]
    return int(times), int(sequence), int(delivery), int(nanos), int(pending)


def unix(text: str) -> float:
    """The server's RFC 3339 as Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


def decode(raw: bytes) -> str:
    """A header's value as text; bytes that are no UTF-8 by surrogateescape."""
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    return raw.decode("utf-8", "surrogateescape")


def acknowledgement(body: bytes) -> tuple[Where | None, bool, dict[str, object]]:
    """What makes the position, whether it is a duplicate, and the error of JetStream's answer to a publish."""
    answer = json.loads(body)
    if answer.get("error"):
        return None, False, answer["error"]
    return partial(Position, stream=answer["stream"], sequence=answer["seq"]), bool(answer.get("duplicate")), {}


def stored_at(stream: bytes, sequence: bytes) -> Position:
    """The position that an acknowledgement says, as it is on the wire."""
    return Position(stream=stream.decode(), sequence=int(sequence))


def usual_acknowledgement(inbox: str) -> re.Pattern[bytes]:
    """A whole message with JetStream's answer to a publish, as nearly all are.

    Args:
        inbox: Its subject up to the last level, which is a number.

    Returns:
        A pattern with the groups number, size, body, stream, sequence; the size is to be compared with the body's,
        which somebody else may have written.
    """
    subject = re.escape(inbox.encode())
    return re.compile(
        rb'MSG %s(\d{1,19}) \d+ (\d{1,19})\r\n(\{"stream":"([!#-\[\]-~]+)", ?"seq":(\d{1,19})\})\r\n' % subject
    )


def _encode(value: str) -> str:
    encoded = quote_from_bytes(value.encode("utf-8", "surrogateescape"), safe=_PLAIN)
    # The protocol drops blanks at both ends.
    core = encoded.strip(" ")
    lead = len(encoded) - len(encoded.lstrip(" "))
    return "%20" * lead + core + "%20" * (len(encoded) - len(core) - lead)


def _encode_name(name: str) -> str:
    return quote_from_bytes(name.encode("utf-8", "surrogateescape"), safe=_TOKEN)


_layouts = _Memory(_layout, _LONGEST_LAYOUT)
_keyed_layouts = _Memory(_keyed_layout, _LONGEST_LAYOUT)
_names = _Memory(_name_of, _LONGEST_NAME)
_encoded_names = _Memory(_encode_name, _LONGEST_NAME)
