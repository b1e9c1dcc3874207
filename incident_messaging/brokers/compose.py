"""NATS and Kafka by ``docker-compose.yml``, where a Docker engine answers."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from incident_messaging.brokers.ports import HOST, free_port

__all__ = ["COMPOSE_FILE", "ComposeKafka", "ComposeNats", "compose_kafka", "compose_nats", "engine_answers"]

COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"
"""Part of a checkout; an installed package has none and uses local processes."""


@dataclass(frozen=True)
class ComposeNats:
    """Where the NATS container is reached, in the words of ``NatsServer``."""

    address: str
    monitor_url: str

    @property
    def url(self) -> str:
        """Where clients connect, as ``nats://127.0.0.1:PORT``."""
        return f"nats://{self.address}"


@dataclass(frozen=True)
class ComposeKafka:
    """Where the Kafka container is reached, in the words of ``KafkaBroker``."""

    address: str

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect, as ``127.0.0.1:PORT``."""
        return self.address


@functools.cache
def engine_answers() -> bool:
    """Whether Compose works here: our file, pytest-docker, Docker's Compose plugin and an engine."""
    if not COMPOSE_FILE.is_file() or importlib.util.find_spec("pytest_docker") is None:
        return False
    docker = shutil.which("docker")
    return docker is not None and _succeeds(docker, "compose", "version") and _succeeds(docker, "info")


@contextlib.contextmanager
def compose_nats() -> Iterator[ComposeNats]:
    """The NATS container, healthy on entry, removed with its data on exit; errors are pytest-docker's."""
    port, monitor_port = free_port(), free_port()
    with _service("nats", NATS_PORT=port, NATS_MONITOR_PORT=monitor_port):
        yield ComposeNats(f"{HOST}:{port}", f"http://{HOST}:{monitor_port}")


@contextlib.contextmanager
def compose_kafka() -> Iterator[ComposeKafka]:
    """The Kafka container, healthy on entry, removed with its data on exit; errors are pytest-docker's."""
    port = free_port()
    with _service("kafka", KAFKA_PORT=port):
        yield ComposeKafka(f"{HOST}:{port}")


@contextlib.contextmanager
def _service(name: str, **ports: int) -> Iterator[None]:
    from pytest_docker.plugin import DockerComposeExecutor

    settings = " ".join(f"{key}={port}" for key, port in ports.items())
    project = f"incident-messaging-{name}-{os.getpid()}"
    compose = DockerComposeExecutor(f"{settings} docker compose", str(COMPOSE_FILE), project)
    try:  # not pytest-docker's get_docker_services: it leaves containers behind that never got healthy
        compose.execute(f"up --wait {name}")
        yield
    finally:
        compose.execute("down -v")


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
