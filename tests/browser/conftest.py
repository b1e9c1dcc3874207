"""Two browsers, a server of the incident console, and the broker behind it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from browsing import Server, Window, console, window

from incident_messaging import MessagingConfig, MessagingService


@pytest.fixture(scope="session")
def one() -> Iterator[Window]:
    """A browser."""
    with window() as opened:
        yield opened


@pytest.fixture(scope="session")
def other() -> Iterator[Window]:
    """Another browser."""
    with window() as opened:
        yield opened


@pytest.fixture
def environment() -> dict[str, str]:
    """What all programs of a test find in their environment."""
    return {
        "INCIDENT_MESSAGING_TOPIC_PREFIX": f"browser-{uuid.uuid4().hex[:8]}",
        "INCIDENT_MESSAGING_RETRY__MAX_ATTEMPTS": "1",
        "INCIDENT_MESSAGING_KAFKA__PARTITIONS": "2",
    }


@pytest.fixture(params=["nats", "kafka"])
def shared_broker(request, environment, nats_server, kafka_broker) -> None:
    """The session's brokers, each in its turn."""
    environment["INCIDENT_MESSAGING_BACKEND"] = request.param
    environment["INCIDENT_MESSAGING_SUBSCRIBE_BACKEND"] = "kafka" if request.param == "both" else "nats"
    environment["INCIDENT_MESSAGING_NATS__SERVERS"] = nats_server.url
    environment["INCIDENT_MESSAGING_KAFKA__BOOTSTRAP_SERVERS"] = kafka_broker.bootstrap_servers


@pytest.fixture(params=["nats", "kafka"])
def own_broker(request, environment, nats_server_factory, kafka_broker_factory) -> Any:
    """The test's own broker, to be killed."""
    environment["INCIDENT_MESSAGING_BACKEND"] = request.param
    if request.param == "nats":
        broker = nats_server_factory()
        environment["INCIDENT_MESSAGING_NATS__SERVERS"] = broker.url
    else:
        broker = kafka_broker_factory()
        environment["INCIDENT_MESSAGING_KAFKA__BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
    return broker


@pytest.fixture
def start(environment) -> Iterator[Callable[..., Server]]:
    """Start servers of the console on the environment's broker."""
    with ExitStack() as servers:
        yield lambda by="itself": servers.enter_context(console(environment, by))


@pytest.fixture
def elsewhere(environment) -> Iterator[MessagingService]:
    """Another program on the same topics."""
    service = MessagingService(MessagingConfig.from_env(environ=environment))
    yield service
    assert service.close() == []
