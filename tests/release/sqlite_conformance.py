"""A plugin of pytest that holds the documentation's example of a backend to the conformance suite.

``PYTHONPATH=docs/examples:tests/release:tests/conformance:tests pytest -p sqlite_conformance tests/conformance``
runs the suite's cases on that backend alone, as an entry in the suite's table would beside the others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import features
import pytest
from features import Features, No
from foreign import Write
from sqlite_backend import File, SqliteBroker, insert

from incident_messaging import MessagingBackend, MessagingConfig, backends
from incident_messaging.record import Record

_folder = tempfile.TemporaryDirectory()  # gone with the process
os.environ["SQLITE_BACKEND_FILE"] = str(Path(_folder.name) / "incidents.sqlite")


class InPlaceOfMemory(SqliteBroker):
    """Under a name that is there; a backend of the package gets one of its own."""

    name = MessagingBackend.MEMORY.value
    made = 0

    def __init__(self, config: MessagingConfig) -> None:
        super().__init__(config)
        InPlaceOfMemory.made += 1


backends._CLASSES[MessagingBackend.MEMORY] = (__name__, InPlaceOfMemory.__name__)


def to_sqlite(fixture: Callable[[str], Any]) -> Write:
    """Another program that writes into the file."""

    def write(topic: str, body: bytes | None, key: str | None, headers: Mapping[str, str]) -> None:
        file = File()
        with file.writing() as db:
            insert(db, Record(topic=topic, body=body or b"", key=key, headers=headers, dedup_id=""))
        file.close()

    return write


features.BACKENDS = (
    Features(
        name="sqlite",
        label="memory",
        settings=lambda fixture: {"backend": "memory"},
        foreign=to_sqlite,
        stores_an_id_once=No("keeps what it is given"),
        order_across_members=No("each message goes to the next member that asks"),
        crosses_processes=No("the programs of these cases start without this plugin"),
        tombstones=No("a body of no bytes is a body"),
    ),
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the cases really ran on."""
    terminalreporter.line(f"on SQLite: {InPlaceOfMemory.made} services")
