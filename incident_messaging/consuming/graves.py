"""What becomes of a message that was given up: its dead letter."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import attrs

from incident_messaging.record import Position, RawHeader, Received, Record

#: Characters of a stack trace that a dead letter keeps, the last ones.
STACK_LIMIT = 8_192

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
    redriven = received.headers.get("x-redrive-count", "0")
    position = received.position
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
        "x-dlq-redrive-count": redriven,
    }
    return Record(
        topic=topic,
        body=received.body or b"",
        key=received.key,
        headers=headers,
        dedup_id=_identity(group, position) if position.has_place else f"dlq:{group}:{received.fallback_id}",
        raw_headers=kept_headers(received.raw_headers),
        reserve=0,
    )


def shed(record: Record) -> Record | None:
    """The same dead letter without the next thing that it can do without, or ``None``.

    In turn: the stack trace, the exception's message, the user's headers. The rest says where it
    came from and stays.
    """
    for name in ("x-dlq-stacktrace", "x-dlq-exception-message"):
        if name in record.headers:
            return attrs.evolve(record, headers={k: v for k, v in record.headers.items() if k != name})
    if record.raw_headers:
        return attrs.evolve(record, raw_headers=())
    return None


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


def redrive_id(group: str, original: Position, count: int) -> str:
    """What JetStream compares of a message that is put back for the ``count``-th time."""
    return f"{_identity(group, original)}:r{count}"


def _identity(group: str, original: Position) -> str:
    at = original if original.stream is None else f"{original.stream}:{original.sequence}"
    return f"dlq:{group}:{at}"


def kept_headers(pairs: Sequence[RawHeader]) -> Sequence[RawHeader]:
    """The headers that a message keeps through its dead letter and back: neither the SDK's nor the broker's."""
    return [(name, raw) for name, raw in pairs if is_kept(name)]


def is_kept(name: str) -> bool:
    """Whether a header is one of those."""
    return not name.lower().startswith(_NOT_COPIED)
