"""The directive ``config-reference``: a table of a configuration class, made of the class itself.

``.. config-reference:: KafkaConfig`` renders each field's name, what it takes (from its annotation),
its default, and its meaning (from "Attributes:" in the class's docstring).
"""

from __future__ import annotations

import inspect
import re
from enum import Enum
from typing import Any, NamedTuple

import attrs
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from incident_messaging import config

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


class ConfigReference(SphinxDirective):
    """Render `rows` as a table."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the table as if it stood in the page."""
        cells = [("Field", "Takes", "Default", "Meaning")]
        for row in rows(getattr(config, self.arguments[0])):
            takes = re.sub(r"([\\*])", r"\\\1", row.takes)
            cells.append((f"``{row.field}``", takes, f"``{row.default}``", row.meaning))
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 20 25 20 35", ""]
        for first, *others in cells:
            lines += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
        table = nodes.Element()
        self.state.nested_parse(StringList(lines, source=self.get_source_info()[0]), 0, table)
        return table.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("config-reference", ConfigReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
