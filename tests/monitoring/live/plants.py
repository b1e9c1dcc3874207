"""Two workers on real brokers, and a real Prometheus that reads them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import queries
from prometheus_server import Prometheus

from incident_messaging.brokers.ports import free_port

#: Where each worker finds its broker.
Addresses = Mapping[str, str]

VARIABLES = {"nats": "INCIDENT_MESSAGING_NATS__SERVERS", "kafka": "INCIDENT_MESSAGING_KAFKA__BOOTSTRAP_SERVERS"}

#: Seconds that a worker may take to end.
END_SECS = 30.0


@contextmanager
def observed(brokers: Addresses, *, scrape_ms: int) -> Iterator[Prometheus]:
    """A Prometheus over a worker for each broker, until the end of the block."""
    targets = {f"worker-{backend}": free_port() for backend in brokers}
    with ExitStack() as open_things:
        folder = Path(open_things.enter_context(tempfile.TemporaryDirectory()))
        for (backend, address), port in zip(brokers.items(), targets.values(), strict=True):
            open_things.enter_context(_worker(backend, address, port, folder))
        yield open_things.enter_context(Prometheus(targets, queries.ALERTS, scrape_ms=scrape_ms))


@contextmanager
def _worker(backend: str, address: str, port: int, folder: Path) -> Iterator[None]:
    environment = os.environ | {
        "INCIDENT_MESSAGING_BACKEND": backend,
        "INCIDENT_MESSAGING_TOPIC_PREFIX": f"plant-{uuid.uuid4().hex[:8]}",
        "INCIDENT_MESSAGING_KAFKA__PARTITIONS": "2",
        VARIABLES[backend]: address,
        "PLANT_DATABASE": str(folder / f"{backend}.sqlite"),
    }
    command = [sys.executable, "-m", "incident_messaging.cli", "worker", "plant:service", "--port", str(port)]
    with (folder / f"{backend}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=Path(__file__).parent, env=environment, stdout=log, stderr=log)
    try:
        yield
        assert process.poll() is None, (folder / f"{backend}.log").read_text("utf-8")[-4000:]
    finally:
        process.terminate()
        try:
            process.wait(END_SECS)
        finally:
            process.kill()
