"""Brokers for the versions of the SDK that meet on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
sys.path.insert(0, str(Path(__file__).parents[1] / "monitoring"))

from wire_raw import Raw, RawKafka, RawNats


@pytest.fixture(scope="session", params=["nats", "kafka"])
def raw(request: pytest.FixtureRequest) -> Raw:
    """A broker by its own client."""
    if request.param == "nats":
        return RawNats(request.getfixturevalue("nats_server").url)
    return RawKafka(request.getfixturevalue("kafka_broker").bootstrap_servers)


@pytest.fixture(scope="session")
def settings(raw: Raw) -> dict[str, Any]:
    return raw.settings
