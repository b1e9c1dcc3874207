"""What the tests of the commands start from."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from messages_kit import Cli


@pytest.fixture(scope="session", params=["nats", "kafka"])
def broker_ways(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """One of the brokers, and the section of a configuration that says where it is."""
    if request.param == "nats":
        return "nats", {"servers": [request.getfixturevalue("nats_server").url], "ack_wait_ms": 1500}
    return "kafka", {"bootstrap_servers": request.getfixturevalue("kafka_broker").bootstrap_servers}


@pytest.fixture
def settings(broker_ways: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The configuration for that broker."""
    name, section = broker_ways
    return {"backend": name, name: section}


@pytest.fixture
def cli(broker_ways: tuple[str, dict[str, Any]], tmp_path: Path, nothing_left_behind: None) -> Iterator[Cli]:
    made = Cli(*broker_ways, tmp_path)
    yield made
    made.close()


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Makes a program of a test's own, and says how to run it."""

    def make(*lines: str) -> str:
        path = tmp_path / f"{uuid.uuid4().hex[:8]}.sh"
        path.write_text(os.linesep.join(("#!/bin/sh", *lines, "")))
        path.chmod(0o755)
        return str(path)

    return make
