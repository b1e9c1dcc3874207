"""The examples of the documentation run as they are, against real brokers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from incident_messaging import MessagingBackend, MessagingConfig, MessagingService, NatsConfig
from incident_messaging.brokers import KafkaBroker, NatsServer

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def prefix() -> str:
    return f"example-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def nats(nats_server: NatsServer, prefix: str) -> dict[str, str]:
    """What an example finds in its environment."""
    return {"INCIDENT_MESSAGING_NATS__SERVERS": nats_server.url, "INCIDENT_MESSAGING_TOPIC_PREFIX": prefix}


@pytest.fixture
def kafka(kafka_broker: KafkaBroker, prefix: str) -> dict[str, str]:
    return {
        "INCIDENT_MESSAGING_KAFKA__BOOTSTRAP_SERVERS": kafka_broker.bootstrap_servers,
        "INCIDENT_MESSAGING_TOPIC_PREFIX": prefix,
    }


@pytest.fixture
def worker(nats: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = start("worker.py", nats)
    with process:
        yield process
        process.kill()


def start(name: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(EXAMPLES / name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def outcome(name: str, environment: dict[str, str]) -> tuple[int, str, str]:
    with start(name, environment) as process:
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors


def test_quickstart(nats: dict[str, str]) -> None:
    assert outcome("quickstart.py", nats) == (0, "INC-1: it is down (high)\n", "")


def test_quickstart_is_ten_lines() -> None:
    code = (EXAMPLES / "quickstart.py").read_text("utf-8").split('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_quickstart_on_kafka(kafka: dict[str, str]) -> None:
    assert outcome("quickstart_kafka.py", kafka) == (0, "INC-1: it is down (high)\n", "")


def test_batch_on_nats(nats: dict[str, str]) -> None:
    assert outcome("batch.py", nats) == (0, "published 2000 events\nconsumed 2000 events\n", "")


def test_batch_on_kafka(kafka: dict[str, str]) -> None:
    environment = kafka | {"INCIDENT_MESSAGING_BACKEND": "kafka"}
    assert outcome("batch.py", environment) == (0, "published 2000 events\nconsumed 2000 events\n", "")


def test_worker_handles_until_sigterm(
    worker: subprocess.Popen[str], nats: dict[str, str], nats_server: NatsServer, prefix: str
) -> None:
    config = MessagingConfig(
        backend=MessagingBackend.NATS, topic_prefix=prefix, nats=NatsConfig(servers=[nats_server.url])
    )
    with MessagingService(config) as service:
        service.publish_incident_resolved("INC-1", 0)
        service.publish_incident_resolved("INC-2", 7_200)

        assert worker.stderr is not None
        ours = (line.strip().removeprefix("INFO:worker:") for line in worker.stderr if ":worker:" in line)
        assert set(islice(ours, 3)) == {
            "audit: Resolved of INC-1",
            "audit: Resolved of INC-2",
            "statistics: INC-2 took 120 minutes",
        }
        dead = next(service.consume("dead-letter", timeout=60, limit=1))
        assert dead.headers["x-dlq-exception-message"] == "resolved in no time"

    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
