"""JSON as it travels: strict UTF-8 text, the same with and without orjson.

The two implementations differ by themselves: orjson writes NaN as ``null`` and reads integers
beyond 64 bits as floats, the standard library writes and reads NaN, infinities and lone surrogates
and has no fixed limit of depth. Here both refuse the same things, on the way out and in:

* NaN, infinities, and numbers that overflow to infinity;
* integers below -2**63 or above 2**64-1;
* keys that are not text, lone surrogates, bytes that are not UTF-8, a byte order mark;
* more than `MAX_DEPTH` objects and arrays inside one another.

Of repeated keys the last wins. Only the spelling of a float may differ (``1e-07``, ``1e-7``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal, Never

import attrs

from incident_messaging.errors import SerializationError
from incident_messaging.forms import shown

#: Objects and arrays inside one another. What serde_json reads by default, and so the platform's
#: other services; orjson writes 254 at most.
MAX_DEPTH: Final = 127

#: The whole numbers that travel: those of i64 and of u64.
MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**64 - 1

#: Escapes from left to right: a surrogate pair, a lone surrogate (the group), any other.
_ESCAPES = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F])|.)", re.DOTALL)

#: What two things are seen by: an integer beyond 64 bits has at least 19 digits in a row (all zeros here), and
#: what is nested has that many brackets (all square here).
_LOOKS = bytes(ord("0") if byte in b"0123456789" else ord("[") if byte in b"[{" else byte for byte in range(256))
_MANY_DIGITS = b"0" * 19


class Refused(ValueError):
    """A value that JSON cannot carry, and its path inside the value that was to be written."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def __str__(self) -> str:
        return f"{self.reason} (at {self.path.lstrip('.')})" if self.path else self.reason


def refuse(value: Any) -> Never:
    """Refuse a value for its type.

    Raises:
        Refused: Always.
    """
    kind = type(value)
    raise Refused(f"{kind.__module__}.{kind.__qualname__} cannot be written as JSON")


def plain(value: Any, convert: Callable[[Any], Any] = refuse, room: int = MAX_DEPTH) -> Any:
    """The value as plain ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool`` and ``None``, checked.

    Args:
        value: Anything; tuples become lists.
        convert: Is asked for what is none of these types by itself, and answers with something
            nearer to them, which is looked at in turn.
        room: How many levels of containers are left.

    Raises:
        Refused: It holds what cannot travel; the text names it and its path. Lone surrogates are
            left to the writer, which sees them for nothing.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int:
        return _checked_int(value)
    if kind is float:
        return _checked_float(value)
    if kind is dict:
        return _plain_dict(value, convert, room - 1)
    if kind is list or kind is tuple:
        return _plain_list(value, convert, room - 1)
    return plain(convert(value), convert, room)


def _checked_int(value: int) -> int:
    if MIN_INT <= value <= MAX_INT:
        return value
    raise Refused("a whole number beyond 64 bits")


def _checked_float(value: float) -> float:
    if math.isfinite(value):
        return value
    raise Refused(f"{value} is not a JSON number")


def _check_room(room: int) -> None:
    if room < 0:
        raise Refused(f"nested more than {MAX_DEPTH} levels deep")


def _plain_dict(value: dict[Any, Any], convert: Callable[[Any], Any], room: int) -> dict[str, Any]:
    _check_room(room)
    result = {}
    for key, item in value.items():
        if type(key) is not str:
            key = _text_key(key)
        try:
            result[key] = plain(item, convert, room)
        except Refused as refused:
            refused.path = f".{key}{refused.path}"
            raise
    return result


def _plain_list(value: list[Any] | tuple[Any, ...], convert: Callable[[Any], Any], room: int) -> list[Any]:
    _check_room(room)
    result: list[Any] = []
    try:
        for item in value:
            result.append(plain(item, convert, room))
    except Refused as refused:
        refused.path = f"[{len(result)}]{refused.path}"
        raise
    return result


def _text_key(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    raise Refused(f"the key {shown(key)} is not text")


@attrs.frozen(eq=False)
class JsonText:
    """One implementation of strict JSON.

    Attributes:
        name: ``json`` or ``orjson``.
        encode: Writes a value that `plain` has checked.
        decode: Reads bytes, refusing all that this module refuses.
    """

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    def dumps(self, value: Any) -> bytes:
        """Write a value as UTF-8 text.

        Raises:
            SerializationError: It holds what cannot travel; the text names it and its path.
        """
        try:
            return self.encode(plain(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise encode_error(error) from error

    def loads(self, data: bytes) -> Any:
        """Read UTF-8 text.

        Raises:
            SerializationError: It is not JSON, or holds what this module refuses; ``data`` has the bytes.
        """
        try:
            return self.decode(data)
        except (ValueError, RecursionError) as error:
            raise SerializationError(f"not readable as JSON: {error}", code="decode", data=data) from error


def encode_error(error: Exception) -> SerializationError:
    """The error for a value that could not be written; to be raised ``from`` the cause."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return SerializationError(f"not writable as JSON: {reason}", code="encode")


def _not_too_deep(value: Any) -> Any:
    level = _containers([value])
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _containers(outer: Any) -> list[Any]:
    items = outer.values() if type(outer) is dict else outer
    return [item for item in items if type(item) is dict or type(item) is list]


def _stdlib_encode(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


def _stdlib_decode(data: bytes) -> Any:
    text = data.decode()
    if "\\u" in text and any(match[1] for match in _ESCAPES.finditer(text)):
        raise ValueError("a lone surrogate")
    value = _DECODER.decode(text)
    # Counting is nearly free, and nearly no message needs more than that.
    return _not_too_deep(value) if text.count("[") + text.count("{") > MAX_DEPTH else value


def _read_int(text: str) -> int:
    if len(text) > 20:  # also keeps int() from its own limit of digits
        raise ValueError("a whole number beyond 64 bits")
    return _checked_int(int(text))


def _read_float(text: str) -> float:
    return _checked_float(float(text))


def _read_constant(text: str) -> Never:
    raise ValueError(f"{text} is not a JSON number")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_int=_read_int, parse_float=_read_float, parse_constant=_read_constant)

_STDLIB = JsonText("json", _stdlib_encode, _stdlib_decode)


@cache
def _orjson() -> JsonText | None:
    """orjson's implementation if it is installed; loaded when first asked for, not with the package."""
    try:
        import orjson
    except ImportError:
        return None

    loads = orjson.loads

    def decode(data: bytes) -> Any:
        looks = data.translate(_LOOKS)
        # orjson would silently read a larger integer as a float.
        if _MANY_DIGITS in looks:
            return _stdlib_decode(data)
        value = loads(data)
        return _not_too_deep(value) if looks.count(b"[") > MAX_DEPTH else value

    return JsonText("orjson", orjson.dumps, decode)


def select(name: Literal["json", "orjson"] | None = None) -> JsonText:
    """An implementation by name; ``None`` is orjson where it is installed, else the standard library.

    Raises:
        ImportError: orjson is asked for and not installed.
    """
    if name == "json":
        return _STDLIB
    if name == "orjson" and _orjson() is None:
        raise ImportError("orjson is not installed: pip install 'incident-messaging[speed]'")
    return _orjson() or _STDLIB


def dumps(value: Any) -> bytes:
    """`JsonText.dumps` of the implementation that is used here."""
    return select().dumps(value)


def loads(data: bytes) -> Any:
    """`JsonText.loads` of the implementation that is used here."""
    return select().loads(data)
