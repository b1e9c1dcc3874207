"""Messages that nobody should send: valid envelopes, mutated. The same seed makes the same messages.

::

    for message in corpus(seed=7, count=10_000):
        message.kind, message.level, message.key, message.headers, message.body

What a broker cannot carry is left to its writer (`fuzz_writers`): NATS has no keys and no null values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import attrs

from incident_messaging import IncidentCreated, MessageEnvelope, to_json

Headers = list[tuple[bytes, bytes | None]]
Mutate = Callable[[random.Random, "Message"], None]


@attrs.define
class Message:
    """What goes to a broker, byte for byte.

    Attributes:
        kind: The mutation, for who looks at what went wrong.
        body: ``None`` is Kafka's null value.
        level: The last level of its topic.
    """

    kind: str
    body: bytes | None
    key: bytes | None
    headers: Headers
    level: bytes = b"a"


def corpus(seed: int, count: int) -> Iterator[Message]:
    """So many messages, one mutation after the other."""
    chance = random.Random(seed)
    for number in range(count):
        kind, mutate = _MUTATIONS[number % len(_MUTATIONS)]
        message = _valid(chance, number)
        message.kind = kind
        mutate(chance, message)
        yield message


def _valid(chance: random.Random, number: int) -> Message:
    payload = IncidentCreated(f"INC-{number}", "high", "database", "disk is full on höst-1")
    envelope = MessageEnvelope.new(payload, source="fuzz", message_id=f"m-{number}", correlation_id="c-1")
    envelope.metadata.timestamp, envelope.metadata.headers = 1_767_225_600, {"tenant": "a"}
    headers: Headers = [(b"x-message-id", b"m-%d" % number), (b"content-type", b"application/json"), (b"tenant", b"a")]
    key = chance.choice([None, b"INC-%d" % (number % 97)])
    return Message("valid", to_json(envelope).encode(), key, headers)


# Bodies -------------------------------------------------------------------------------------------------------


def _flip(chance: random.Random, message: Message) -> None:
    body = bytearray(message.body or b"")
    for _ in range(chance.randint(1, 8)):
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    message.body = bytes(body)


def _truncate(chance: random.Random, message: Message) -> None:
    message.body = (message.body or b"")[: chance.randrange(len(message.body or b"x"))]


def _splice(chance: random.Random, message: Message) -> None:
    body = message.body or b""
    one, other = sorted(chance.randrange(len(body)) for _ in range(2))
    message.body = body[:other] + body[one:]


def _put(*pieces: bytes) -> Mutate:
    """Put a piece somewhere."""

    def mutate(chance: random.Random, message: Message) -> None:
        body, piece = message.body or b"", chance.choice(pieces)
        at = chance.choice([0, len(body), chance.randrange(len(body))])
        message.body = body[:at] + piece + body[at:]

    return mutate


def _in_text(*pieces: bytes) -> Mutate:
    """Put a piece into a string of the JSON text."""

    def mutate(chance: random.Random, message: Message) -> None:
        where = chance.choice([b"disk", b"c-1", b"fuzz", b"INC-", b"tenant", b"severity"])
        message.body = (message.body or b"").replace(where, where + chance.choice(pieces), 1)

    return mutate


def _instead(*pieces: bytes) -> Mutate:
    """Have a piece in the place of a value of the JSON text."""

    def mutate(chance: random.Random, message: Message) -> None:
        value = chance.choice([b'"high"', b'"1.0"', b'"c-1"', b'{"tenant":"a"}', b'"fuzz"', b'"Created"'])
        message.body = (message.body or b"").replace(value, chance.choice(pieces), 1)

    return mutate


def _timestamp(chance: random.Random, message: Message) -> None:
    head, _, rest = (message.body or b"").partition(b'"timestamp":')
    value = chance.choice(_TIMES)
    message.body = head + b'"timestamp":' + value + rest[rest.index(b",") :]


def _deep(chance: random.Random, message: Message) -> None:
    depth = chance.choice([100, 126, 127, 128, 1_000, 20_000])
    opening, closing = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = opening * depth + b"1" + closing * depth * chance.randint(0, 1)
    message.body = chance.choice([inner, b'{"metadata":{"message_id":"m"},"payload":%s}' % inner])


def _twice(chance: random.Random, message: Message) -> None:
    again = chance.choice([b'"payload":1', b'"metadata":[]', b'"metadata":{"message_id":"x"}', b'"payload":{"a":1}'])
    body = message.body or b""
    message.body = body[:-1] + b"," + again + b"}" if chance.random() < 0.5 else b"{" + again + b"," + body[1:]


def _is(*bodies: bytes | None) -> Mutate:
    def mutate(chance: random.Random, message: Message) -> None:
        message.body = chance.choice(bodies)

    return mutate


def _noise(chance: random.Random, message: Message) -> None:
    message.body = chance.randbytes(chance.choice([1, 20, 300, 3_000]))


def _as_utf16(chance: random.Random, message: Message) -> None:
    message.body = (message.body or b"").decode().encode(chance.choice(["utf-16", "utf-32", "latin-1"]))


_NUMBERS = (b"9" * 10_000, b"-" + b"1" * 10_000, b"1e400", b"-1e999", b"0." + b"3" * 10_000, b"1E+" + b"9" * 10_000,
            b"18446744073709551616", b"-9223372036854775809", b"1e-400", b"-0", b"01", b"0x10", b"1_000")  # fmt: skip
_CONSTANTS = (b"NaN", b"Infinity", b"-Infinity", b"nan", b"undefined", b"True", b"null", b"[]", b"{}", b'""', b"1")
_TIMES = (b"-1", b"1e300", b"253402300800", b'"1969-12-31T23:59:59Z"', b'"0001-01-01T00:00:00+14:00"', b'"now"', b"[]",
          b'"9999-12-31T23:59:59-23:59"', b"true", b"1.5", b'"2026-01-01"', b"99999999999999999999999")  # fmt: skip

# Headers and keys -----------------------------------------------------------------------------------------------

#: Bytes that do not belong into a name or a value.
_FOREIGN = (b"\x00", b"\x01\x02", b"\x1b[31m", b"\n", b"\r", b"\t", b"\x7f", b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80",
            "é".encode(), "\u202e".encode(), b"%", b"%ff", b"%0d%0a", b"%zz", b" ", b":", b"")  # fmt: skip


def _bytes(chance: random.Random) -> bytes:
    return b"".join(chance.choice([b"a", *_FOREIGN]) for _ in range(chance.randint(0, 6)))


def _odd_values(chance: random.Random, message: Message) -> None:
    message.headers += [(b"h%d" % number, chance.choice([_bytes(chance), None])) for number in range(3)]


def _odd_names(chance: random.Random, message: Message) -> None:
    message.headers += [(_bytes(chance), b"v") for _ in range(3)]


def _repeated(chance: random.Random, message: Message) -> None:
    name = chance.choice([b"tenant", b"x-message-id", b"x-correlation-id", b"traceparent", b"X-Tenant"])
    message.headers += [(name, _bytes(chance)) for _ in range(chance.randint(2, 20))]


def _many(chance: random.Random, message: Message) -> None:
    message.headers += [(b"h%d" % number, b"v" * chance.randint(0, 40)) for number in range(chance.choice([100, 900]))]


def _huge(chance: random.Random, message: Message) -> None:
    size = chance.choice([5_000, 20_000, 45_000])
    name, value = (b"n" * size, b"v") if chance.random() < 0.5 else (b"huge", b"v" * size)
    message.headers.append((name, value))


def _odd_key(chance: random.Random, message: Message) -> None:
    message.key = _bytes(chance) or b"\x00"


def _forged(*names: bytes) -> Mutate:
    """Headers of the SDK's own, by somebody else."""

    def mutate(chance: random.Random, message: Message) -> None:
        values = [b"", b"0", b"1", b"-1", b"9" * 5_000, b"NaN", "٣".encode(), b"other", b"fuzz.a", b"../x", b"a b"]
        some = chance.sample(names, chance.randint(1, len(names)))
        message.headers += [(name, chance.choice([*values, _bytes(chance)])) for name in some]

    return mutate


_TRACES = (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00", b"garbage",
           b"ff-" + b"z" * 32 + b"-x-1", b"00-" + b"a" * 9_000, b"\xff\xfe", b"", b"00-\x00-\x01-02")  # fmt: skip


def _trace(chance: random.Random, message: Message) -> None:
    message.headers.append((chance.choice([b"traceparent", b"Traceparent"]), chance.choice(_TRACES)))
    message.headers.append((b"tracestate", chance.choice([b"a=1", b"=", b"a=1,a=2," * 100, _bytes(chance)])))
    message.headers.append((b"baggage", chance.choice([b"a=1", b"a=%ff", b";;;,,,===", _bytes(chance)])))


_DLQ = tuple(
    f"x-dlq-{name}".encode()
    for name in ("original-topic", "original-partition", "original-offset", "original-stream", "original-sequence",
                 "exception-type", "attempts", "group", "backend", "failed-at", "redrive-count", "removed")
)  # fmt: skip
_NATS = tuple(
    f"Nats-{name}".encode()
    for name in ("Msg-Id", "Expected-Stream", "Expected-Last-Sequence", "Expected-Last-Msg-Id", "Rollup", "TTL", "Time",
                 "Stream", "Sequence", "Pending-Messages", "Marker-Reason", "Schedule", "Incr")
)  # fmt: skip


def _level(chance: random.Random, message: Message) -> None:
    levels = [b"a\x01b", b"a\x1b[31m", "ü".encode(), b"a%b", b"a:b", b"a/b", b"_a", b"a\x7f", b"A" * 200, b"$a"]
    message.level = chance.choice(levels)


def _as_it_is(_chance: random.Random, _message: Message) -> None:
    pass


_MUTATIONS: tuple[tuple[str, Mutate], ...] = (
    ("valid", _as_it_is),
    ("bits flipped", _flip),
    ("truncated", _truncate),
    ("spliced", _splice),
    ("keys twice", _twice),
    ("lone surrogate", _in_text(b"\\ud800", b"\\udfff\\ud800", b"\\uD83D", b"\\ud83d\\ud83d", b"\\u00", b"\\x")),
    ("invalid UTF-8", _in_text(b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xe2\x82")),
    ("control characters", _in_text(b"\x00", b"\n", b"\x1b[31m", b"\\u0000", b"\x7f", b"\\u001b")),
    ("deep", _deep),
    ("numbers", _instead(*_NUMBERS)),
    ("constants", _instead(*_CONSTANTS)),
    ("timestamps", _timestamp),
    ("byte order mark", _put(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")),
    ("other encodings", _as_utf16),
    ("noise", _noise),
    ("empty", _is(b"", None, b" ", b"\n", b"\x00", b"{}", b"[]", b"null", b'""', b"0")),
    ("header values", _odd_values),
    ("header names", _odd_names),
    ("repeated headers", _repeated),
    ("many headers", _many),
    ("huge header", _huge),
    ("odd key", _odd_key),
    ("forged dead letter", _forged(*_DLQ)),
    ("forged redrive", _forged(b"x-redrive-group", b"x-redrive-count")),
    ("forged ids", _forged(b"x-message-id", b"x-correlation-id", b"content-type", b"X-Message-Id")),
    ("forged Nats headers", _forged(*_NATS)),
    ("traces", _trace),
    ("topics", _level),
)
KINDS = tuple(kind for kind, _ in _MUTATIONS)
