"""``incident-messaging config``: what the settings are, and which source each came from."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import attrs
import click
from rich.console import Console
from rich.text import Text

from incident_messaging.commands.common import WRONG_USAGE, Sources, configured, json_flag, printable
from incident_messaging.config import ENV_PREFIX, MessagingConfig
from incident_messaging.config.extra import masked
from incident_messaging.config.sources import Given, from_environment, from_file, merged, traced
from incident_messaging.errors import ConfigurationError

__all__ = ["config"]

_HIDDEN = "***"
_DEFAULT = "default"


def _fields(cls: type, section: str = "") -> Iterator[tuple[str, attrs.Attribute[Any]]]:
    for field in attrs.fields(cls):
        if field.type is not None and attrs.has(field.type):
            yield from _fields(field.type, f"{field.name}.")
        else:
            yield f"{section}{field.name}", field


#: Every setting by its full name.
_FIELDS = dict(_fields(MessagingConfig))
_SECTIONS = frozenset(name.partition(".")[0] for name in _FIELDS if "." in name)


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@configured
@json_flag
def show(sources: Sources, as_json: bool) -> None:
    """Show every setting, its value and where that came from.

    That is a default, the file, a variable of the environment, or --set. Secrets are masked. No broker is asked, and
    no file of a secret or a certificate is read. Of a configuration that is not allowed the settings are shown that
    were given, and what is wrong.

    Exit code: 0; 2 for wrong usage, and if the configuration is not allowed.
    """
    given: dict[str, Given] = {}
    error = None
    try:
        given = _given(sources)
        rows = list(_all(sources.load(), given))
    except ConfigurationError as wrong:
        rows, error = list(_given_alone(given)), str(wrong)
    if as_json:
        settings = {name: {"value": found.value, "source": found.where} for name, found in rows}
        click.echo(json.dumps({"settings": settings, "error": error}))
    else:
        _print(rows)
    if error is not None:
        click.echo(f"Error: {printable(error)}", err=True)
        sys.exit(WRONG_USAGE)


def _given(sources: Sources) -> dict[str, Given]:
    """What the sources gave, by the setting's full name, whether it is allowed or not.

    Raises:
        ConfigurationError: A source cannot be read.
    """
    file = {} if sources.file is None else from_file(sources.file)
    layers = merged(
        traced(file, lambda _name: f"file {sources.file}"),
        traced(from_environment(MessagingConfig, ENV_PREFIX, os.environ), _variable),
        traced(sources.overrides(), lambda _name: "--set"),
    )
    return dict(_flat(layers))


def _variable(name: str) -> str:
    return f"{ENV_PREFIX}{name.upper().replace('.', '__')}"


def _flat(layer: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Given]]:
    for key, value in layer.items():
        name = f"{section}.{key}" if section else key
        if isinstance(value, Given):
            yield name, value
        elif name in _SECTIONS:
            yield from _flat(value, name)
        else:  # properties, which the sources may have given together
            inner = dict(_flat(value))
            where = dict.fromkeys(found.where for found in inner.values())
            values = {property_: found.value for property_, found in inner.items()}
            yield name, Given(values, ", ".join(where) or _DEFAULT)


def _all(config: MessagingConfig, given: Mapping[str, Given]) -> Iterator[tuple[str, Given]]:
    """Every setting, with its value as it may be shown."""
    for name, field in _FIELDS.items():
        section, _, _ = name.rpartition(".")
        value = getattr(getattr(config, section) if section else config, field.name)
        yield name, Given(_shown(field, value), given[name].where if name in given else _DEFAULT)


def _given_alone(given: Mapping[str, Given]) -> Iterator[tuple[str, Given]]:
    """What was given: of a name that does not exist nobody knows whether it holds a secret."""
    for name, found in given.items():
        field = _FIELDS.get(name)
        # Addresses may have been written with a password in them.
        conceal = field is None or "@" in str(found.value)
        yield name, Given(_HIDDEN if field is None or conceal else _shown(field, found.value), found.where)


def _shown(field: attrs.Attribute[Any], value: Any) -> Any:
    """A value as JSON, its secrets masked."""
    if field.name == "extra" and isinstance(value, Mapping):
        return {name: _plain(item) for name, item in masked(value).items()}
    if field.metadata["kind"].secret:
        return None if value is None else _HIDDEN
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | int | float):
        return value
    return value.__name__ if isinstance(value, type) else f"<{type(value).__name__}>"


def _print(rows: list[tuple[str, Given]]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for name, found in rows:
        line = f"{printable(name)} = {json.dumps(found.value)}  ({printable(found.where)})"
        console.print(Text(line, style="dim" if found.where == _DEFAULT else ""))
