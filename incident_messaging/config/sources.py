"""Where settings come from: environment variables, files, keyword arguments. Layers of plain mappings.

A layer is a mapping as `MessagingConfig` takes it; ``nats``, ``kafka`` and ``retry`` are its sections.
Unknown names of a file or of keyword arguments are met when the configuration is built.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from incident_messaging.config.values import Kind, unknown
from incident_messaging.errors import ConfigurationError

_READERS = {".toml": tomllib.loads, ".json": json.loads}

#: What Kubernetes puts into every container for a service named ``incident-messaging[-...]``
#: (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
_SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


def from_environment(cls: type, prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The layer of all variables with the prefix.

    Raises:
        ConfigurationError: A variable is unknown, or its text cannot be read as its field's type.
    """
    ours = (
        name for name in sorted(environ) if name.startswith(prefix) and not _SERVICE_LINK.fullmatch(name, len(prefix))
    )
    return _layer(_variables(cls, prefix), {name: environ[name] for name in ours})


def from_texts(cls: type, texts: Mapping[str, str]) -> dict[str, Any]:
    """The layer of settings that are named as in a file (``kafka.group_id``) and have texts as in the environment.

    Raises:
        ConfigurationError: A name is unknown, or its text cannot be read as its field's type.
    """
    return _layer({name.lower().replace("__", "."): found for name, found in _variables(cls, "").items()}, texts)


def _layer(known: Mapping[str, tuple[str, Kind]], texts: Mapping[str, str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in known:
            raise unknown(name, known)
        key, kind = known[name]
        layer[key] = _read(name, kind, text)
    return nested(layer)


def _variables(cls: type, prefix: str) -> dict[str, tuple[str, Kind]]:
    """Every variable's name, with its key as `nested` takes it and its kind."""
    found: dict[str, tuple[str, Kind]] = {}
    for field in attrs.fields(cls):
        if attrs.has(field.type):
            inner = _variables(field.type, f"{prefix}{field.name.upper()}__")
            found |= {name: (f"{field.name}__{key}", kind) for name, (key, kind) in inner.items()}
        else:
            found[f"{prefix}{field.name.upper()}"] = field.name, field.metadata["kind"]
    return found


def _read(name: str, kind: Kind, text: str) -> Any:
    try:
        return kind.read(text)
    except ValueError:  # its text may hold the value
        raise kind.complaint(name, text) from None


def from_file(path: str | PathLike[str]) -> dict[str, Any]:
    """The layer of a TOML or JSON file.

    Raises:
        ConfigurationError: The file cannot be read, or is not what its name says.
    """
    file = Path(path)
    if file.suffix.lower() not in _READERS:
        raise ConfigurationError(f"configuration file {file} must end in one of {', '.join(_READERS)}")
    try:
        layer = _READERS[file.suffix.lower()](file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"configuration file {file} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        # The parsers' errors carry the whole text, secrets included: only the words travel.
        raise ConfigurationError(f"configuration file {file} is not valid {file.suffix[1:]}: {exc}") from None
    if not isinstance(layer, dict):
        raise ConfigurationError(f"configuration file {file} must hold a mapping, not {type(layer).__name__}")
    return layer


def nested(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer with its ``section__field`` keys put into their sections, where they win."""
    flat = {key: value for key, value in layer.items() if "__" not in key}
    dotted = (key.partition("__") for key in layer if "__" in key)
    return merged(flat, *({section: {field: layer[f"{section}__{field}"]}} for section, _, field in dotted))


class Given(NamedTuple):
    """A value that a source gave.

    Attributes:
        value: What it gave.
        where: Which source.
    """

    value: Any
    where: str


def traced(layer: Mapping[str, Any], where: Callable[[str], str], field: str = "") -> dict[str, Any]:
    """A layer whose values know where they came from; `merged` tells then which of them counts.

    Args:
        layer: The layer.
        where: The source of a field, by its full name (``kafka.group_id``).
        field: The field that the layer is inside of.
    """
    traced_layer: dict[str, Any] = {}
    for key, value in layer.items():
        name = key if not field else field if "." in field else f"{field}.{key}"  # within a field: of the field
        traced_layer[key] = traced(value, where, name) if isinstance(value, Mapping) else Given(value, where(name))
    return traced_layer


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of several; later ones win, field by field."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            # A secret given anew replaces the earlier one, whichever of its two fields gave that.
            twin = key.removesuffix("_file") if key.endswith("_file") else f"{key}_file"
            if twin not in layer:
                result.pop(twin, None)
            below, above = _section(result.get(key)), _section(value)
            result[key] = value if below is None or above is None else merged(below, above)
    return result


def _section(value: object) -> Mapping[str, Any] | None:
    """A section as a mapping: a whole object names every field, so it replaces what was below."""
    if isinstance(value, Mapping):
        return value
    return attrs.asdict(value, recurse=False) if attrs.has(type(value)) else None  # type: ignore[arg-type]
