"""Real brokers as pytest fixtures, here and in the test suites of the SDK's users.

``nats_server`` and ``kafka_broker`` are shared by a whole session, started when first asked for, and not to
be killed; the two factories make brokers that belong to one test. In a checkout where a Docker engine answers
the shared ones are the containers of ``docker-compose.yml``, else local processes (those of the factories
always are); the header of the run says which. A broker that cannot be had is an error of the test, never a
skip: a suite that passes has met real brokers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from incident_messaging.brokers import KafkaBroker, NatsServer
    from incident_messaging.brokers.compose import ComposeKafka, ComposeNats

__all__ = [
    "kafka_broker",
    "kafka_broker_factory",
    "nats_server",
    "nats_server_factory",
    "pytest_report_header",
]

#: As in docker-compose.yml's nats.conf: ten times the SDK's own limit.
SHARED_MAX_PAYLOAD = 10 * 1024 * 1024


def pytest_report_header() -> str:
    """Say in the head of the run where its brokers come from."""
    from incident_messaging.brokers.compose import COMPOSE_FILE, engine_answers

    if engine_answers():
        return f"brokers: Docker Compose ({COMPOSE_FILE.name})"
    return "brokers: local processes (no Docker Compose here)"


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer | ComposeNats]:
    """A NATS server with JetStream for the whole session; ``.url``, ``.address``, ``.monitor_url``."""
    from incident_messaging.brokers import NatsServer
    from incident_messaging.brokers.compose import compose_nats, engine_answers

    with compose_nats() if engine_answers() else NatsServer(max_payload=SHARED_MAX_PAYLOAD) as server:
        yield server


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker | ComposeKafka]:
    """A Kafka broker for the whole session; ``.bootstrap_servers``, ``.address``."""
    from incident_messaging.brokers import KafkaBroker
    from incident_messaging.brokers.compose import compose_kafka, engine_answers

    with compose_kafka() if engine_answers() else KafkaBroker() as broker:
        yield broker


@pytest.fixture
def nats_server_factory() -> Iterator[Callable[..., NatsServer]]:
    """Start NATS servers of the test's own (arguments of ``NatsServer``), to kill, freeze and restart."""
    from incident_messaging.brokers import NatsServer

    with contextlib.ExitStack() as servers:
        yield lambda **options: servers.enter_context(NatsServer(**options))


@pytest.fixture
def kafka_broker_factory() -> Iterator[Callable[..., KafkaBroker]]:
    """Start Kafka brokers of the test's own (arguments of ``KafkaBroker``), to kill, freeze and restart."""
    from incident_messaging.brokers import KafkaBroker

    with contextlib.ExitStack() as brokers:
        yield lambda **options: brokers.enter_context(KafkaBroker(**options))
