"""The forms of single values in JSON, where JSON has none of its own.

datetime is RFC 3339, date and time ISO 8601, UUID and Decimal text, bytes base64, sets and tuples
arrays, an enum's member its value. Reading is strict about types, because a guess
(``bool("false")``, ``str(None)``) would be worse than an error.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

Read = Callable[[Any], Any]
Write = Callable[[Any], Any]


def rfc3339(value: datetime) -> str:
    """An aware datetime as RFC 3339, with ``Z`` for UTC.

    Raises:
        ValueError: It has no time zone, so nobody could tell when it is.
    """
    offset = value.utcoffset()
    if offset is None:
        raise ValueError(f"{value!r} has no time zone; say which, e.g. tzinfo=datetime.UTC")
    if offset % timedelta(minutes=1):  # a historical local mean time; RFC 3339 has whole minutes
        value = value.astimezone(UTC)
    text = value.isoformat()
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


#: How values are written; of a subclass its nearest base counts.
WRITE: Mapping[type, Write] = {
    datetime: rfc3339,
    date: date.isoformat,
    time: time.isoformat,
    UUID: str,
    Decimal: str,
    bytes: _base64,
    bytearray: _base64,
    enum.Enum: lambda member: member.value,
    set: list,
    frozenset: list,
    str: str.__str__,
    int: int,
    float: float,
    dict: dict,
    list: list,
    tuple: list,
}


def shown(value: object) -> str:
    """A value as an error's text shows it: not too long, whatever its ``repr`` does."""
    try:
        return f"{value!r:.100}"
    except Exception:  # a user's own __repr__, or an integer of more digits than Python writes
        return f"<{type(value).__name__}>"


def expected(what: str, value: object) -> ValueError:
    """The error for a value of another kind than wanted."""
    return ValueError(f"expected {what}, not {shown(value)}")


def parse_rfc3339(text: str) -> datetime:
    """An aware datetime from RFC 3339.

    Raises:
        ValueError: It is not RFC 3339, or has no offset.
    """
    value = datetime.fromisoformat(text.upper())
    if value.utcoffset() is None:
        raise ValueError(f"{text!r} has no UTC offset")
    return value


def _read_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise expected("text", value)


def _read_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():  # JavaScript's and others' way of an integer
        return int(value)
    raise expected("a whole number", value)


def _read_float(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise expected("a number", value)


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise expected("true or false", value)


def _read_decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise expected("a decimal number as text", value)
    try:
        return Decimal(str(value))
    except InvalidOperation:
        raise expected("a decimal number as text", value) from None


#: How they are read.
READ: Mapping[type, Read] = {
    str: _read_text,
    int: _read_int,
    float: _read_float,
    bool: _read_bool,
    datetime: lambda value: parse_rfc3339(_read_text(value)),
    date: lambda value: date.fromisoformat(_read_text(value)),
    time: lambda value: time.fromisoformat(_read_text(value)),
    UUID: lambda value: UUID(_read_text(value)),
    Decimal: _read_decimal,
    bytes: lambda value: base64.b64decode(_read_text(value), validate=True),
}


def as_it_is(value: Any) -> Any:
    """The value itself."""
    return value


def exactly(kind: type, what: str) -> Read:
    """Reads JSON values of one kind as they are, and refuses all others."""

    def read(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise expected(what, value)

    return read


#: Message types that are JSON values themselves.
JSON: Mapping[Any, Read] = {
    Any: as_it_is,
    dict: exactly(dict, "an object"),
    list: exactly(list, "an array"),
    str: _read_text,
}
