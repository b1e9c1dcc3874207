"""Real workers: `incident-messaging worker` as a process of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_kit import Start, Worker


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers over a module of these lines."""
    workers: list[Worker] = []

    def begin(lines: str, *arguments: str, target: str = "app:service") -> Worker:
        (tmp_path / "app.py").write_text(lines)
        workers.append(Worker(tmp_path, target, *arguments))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.close()


@pytest.fixture
def prefix() -> str:
    return f"w-{uuid.uuid4().hex[:10]}"


@pytest.fixture(params=["nats", "kafka"])
def settings(request: pytest.FixtureRequest, prefix: str, nats_server: Any, kafka_broker: Any) -> dict[str, Any]:
    """The configuration of either broker."""
    return {
        "backend": request.param,
        "topic_prefix": prefix,
        "nats": {"servers": [nats_server.url]},
        "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers},
    }
