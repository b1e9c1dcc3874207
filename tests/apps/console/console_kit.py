"""The modules of the incident console, and ways to use them without a browser."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from flask import Flask

CONSOLE = Path(__file__).parents[3] / "docs" / "examples" / "console"


def _load() -> dict[str, ModuleType]:
    """Not left in ``sys.modules``: other examples have an ``app``, too."""
    names = [path.stem for path in CONSOLE.glob("*.py")]
    with patch.dict(sys.modules), patch.object(sys, "path", [str(CONSOLE), *sys.path]):
        for name in names:
            sys.modules.pop(name, None)
        return {name: importlib.import_module(name) for name in names}


MODULES = _load()
incidents, feed = MODULES["incidents"], MODULES["feed"]


def create_app(config) -> Flask:
    with patch.dict(sys.modules, app=MODULES["app"]):  # where Flask looks for the folder of the templates
        return MODULES["app"].create_app(config)


def feed_of(app: Flask):
    return app.extensions["console"][0]


def service_of(app: Flask):
    return app.extensions["incident_messaging"][1]


def close(app: Flask) -> None:
    feed_of(app).close()
    assert service_of(app).close() == []


def events(stream: Iterator[str]) -> Iterator[tuple[str, str | None, Any]]:
    """What a page sees of a stream: kind, id and data of each event."""
    for text in stream:
        fields = dict(line.split(": ", 1) for line in text.strip().split("\n"))
        if "event" in fields:
            yield fields["event"], fields.get("id"), json.loads(fields["data"])


def following(stream: Iterator[str], kind: str) -> tuple[str | None, Any]:
    """The next event of a kind: its id and data."""
    return next((event_id, data) for found, event_id, data in events(stream) if found == kind)


def ids(incidents: list[dict[str, Any]]) -> set[str]:
    return {incident["incident_id"] for incident in incidents}
