"""What becomes of a message that was given up: its dead letter."""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import attrs

from incident_messaging.record import RESERVE, RawHeader, Received, Record

#: Characters of a stack trace that a dead letter keeps, the last ones.
STACK_LIMIT = 8_192
#: The header of a dead letter whose body is only the beginning: how many bytes it had.
BODY_CUT = "x-dlq-body-cut"
#: Bytes of a body that are never cut: it would gain little more than that header takes.
_LEFT = 64

#: Names that a dead letter does not take over: the last dead letter's, and the broker's own.
_NOT_COPIED = ("x-dlq-", "x-redrive-", "nats-", "x-key")


@attrs.define(kw_only=True)
class Grave:
    """Why a message was given up, in words that survive the exception.

    Attributes:
        record: The dead letter, once made; it may be shed of what does not fit.
        told: Whether it was said that it cannot be stored.
    """

    type: str
    message: str
    stack: str
    attempts: int
    record: Record | None = None
    told: bool = False

    @classmethod
    def of(cls, error: BaseException, attempts: int) -> Grave:
        """Write down what an exception says."""
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return cls(
            type=_text(lambda: name),
            message=_text(lambda: str(error)),
            stack=_text(lambda: "".join(traceback.format_exception(error)))[-STACK_LIMIT:],
            attempts=attempts,
        )


def _text(say: Callable[[], str]) -> str:
    """What an exception says, as text that every broker takes; its own methods may fail, too."""
    try:
        said = say()
    except Exception as error:
        said = f"(not to be told: {type(error).__name__})"
    return said.encode("utf-8", "replace").decode()


def dead_letter(received: Received, grave: Grave, *, topic: str, group: str, backend: str) -> Record:
    """The record that keeps a message: its bytes, key and headers, and why it is here.

    Args:
        received: The original.
        grave: Why.
        topic: The full dead-letter topic.
        group: The group that gave it up.
        backend: The broker's short name.
    """
    headers = {
        "x-dlq-original-topic": received.topic,
        **_place(received),
        "x-dlq-exception-type": grave.type,
        "x-dlq-exception-message": grave.message,
        "x-dlq-stacktrace": grave.stack,
        "x-dlq-attempts": str(grave.attempts),
        "x-dlq-group": group,
        "x-dlq-backend": backend,
        "x-dlq-failed-at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "x-dlq-redrive-count": str(count_in(received.headers.get("x-redrive-count")) or 0),
    }
    return Record(
        topic=topic,
        body=received.body or b"",
        key=received.key,
        headers=headers,
        # Nobody may take it beforehand: docs/decisions/0015-ids-of-dead-letters.rst.
        dedup_id=f"dlq:{group}:{secrets.token_hex(16)}",
        raw_headers=kept_headers(received.raw_headers),
    )


def shed(record: Record) -> Record | None:
    """The same dead letter without the next thing that it can do without, or ``None``.

    In turn: the stack trace, the exception's message, the user's headers, the key, and the end of the
    body, piece by piece. The rest says where it came from and stays.
    """
    for name in ("x-dlq-stacktrace", "x-dlq-exception-message"):
        if name in record.headers:
            return attrs.evolve(record, headers={k: v for k, v in record.headers.items() if k != name})
    if record.raw_headers:
        return attrs.evolve(record, raw_headers=())
    if record.key is not None:
        return attrs.evolve(record, key=None)
    return _cut(record) if len(record.body) > _LEFT else None


def _cut(record: Record) -> Record:
    """At first only what the headers need: a message that the broker took has a dead letter then."""
    size = len(record.body)
    first = BODY_CUT not in record.headers and size > 2 * RESERVE
    headers = {BODY_CUT: str(size), **record.headers}
    return attrs.evolve(record, headers=headers, body=record.body[: size - RESERVE if first else size // 2])


def _place(received: Received) -> Mapping[str, str]:
    position = received.position
    if position.stream is not None:
        return {"x-dlq-original-stream": position.stream, "x-dlq-original-sequence": str(position.sequence)}
    if not position.has_place:
        return {}  # core NATS keeps nothing: there is no place to name
    return {
        "x-dlq-original-partition": str(position.partition),
        "x-dlq-original-offset": str(position.offset),
    }


def count_in(text: str | None) -> int | None:
    """The number that a header gives, if it does; anybody may have written it."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else None


def kept_headers(pairs: Sequence[RawHeader]) -> Sequence[RawHeader]:
    """The headers that a message keeps through its dead letter and back: neither the SDK's nor the broker's."""
    return [(name, raw) for name, raw in pairs if is_kept(name)]


def is_kept(name: str) -> bool:
    """Whether a header is one of those."""
    return not name.lower().startswith(_NOT_COPIED)
