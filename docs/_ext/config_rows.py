"""The reference of a configuration class, made of the class itself. Pure, and without Sphinx.

What a field takes is read off its annotation, what it means off "Attributes:" in the class's docstring.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

import attrs

_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


class Row(NamedTuple):
    """One field, as the reference shows it."""

    field: str
    takes: str
    default: str
    meaning: str


def meanings(cls: type) -> dict[str, str]:
    """What each field means: the "Attributes:" section of a Google style docstring."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}


def rows(cls: type) -> list[Row]:
    """The reference of a configuration class, in the order of its fields."""
    told = meanings(cls)
    return [
        Row(field.name, field.metadata["kind"].words, _default(field.default), told[field.name])
        for field in attrs.fields(cls)
    ]


def _default(value: Any) -> str:
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        return "{}" if value.factory is dict else f"{value.factory.__name__}()"
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(getattr(item, '__name__', repr(item)) for item in value)}]"
    return f"{value:_}" if type(value) is int else repr(value)


def table(cls: type) -> Iterator[str]:
    """The lines of a reStructuredText table of `rows`."""
    yield from (".. list-table::", "   :header-rows: 1", "   :widths: 20 25 20 35", "")
    yield from _line("Field", "Takes", "Default", "Meaning")
    for row in rows(cls):
        takes = re.sub(r"([\\*])", r"\\\1", row.takes)
        yield from _line(f"``{row.field}``", takes, f"``{row.default}``", row.meaning)


def _line(first: str, *others: str) -> Iterator[str]:
    yield f"   * - {first}"
    yield from (f"     - {cell}" for cell in others)
