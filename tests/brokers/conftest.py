from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from broker_waits import ROOT

from incident_messaging.brokers.fixtures import (
    kafka_broker,
    kafka_broker_factory,
    nats_server,
    nats_server_factory,
)

__all__ = ["kafka_broker", "kafka_broker_factory", "nats_server", "nats_server_factory"]


@pytest.fixture
def python() -> Callable[..., subprocess.Popen[str]]:
    """Start a Python of its own on a script or module, with this checkout and the given environment."""

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )

    return start
