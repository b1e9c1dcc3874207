"""What the tests of security share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from certificates import Kit
from kafka_secured import SecuredKafka

from incident_messaging import MessagingConfig, MessagingService


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Authorities and certificates, good ones and bad ones."""
    return Kit(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def on_nats(nothing_left_behind: None, nats_server_factory: Any) -> Iterator[Callable[..., MessagingService]]:
    """Make services on a NATS server, with fields of ``NatsConfig``; they are closed before it.

    What is on its way to a subscriber when a server dies comes again after ``ack_wait_ms``: well within
    the time that the tests' traffic gets.
    """
    with ExitStack() as stack:

        def make(server: Any, **nats: Any) -> MessagingService:
            usual = {"servers": [server.url], "reconnect_delay_ms": 100, "ack_wait_ms": 2_000}
            service = MessagingService(MessagingConfig.from_mapping({"topic_prefix": "t", "nats": usual | nats}))
            stack.callback(service.close, 2.0)
            return service

        yield make


@pytest.fixture(scope="session")
def secured_kafka(certificates: Kit) -> Iterator[SecuredKafka]:
    """A Kafka with every way in."""
    secured = SecuredKafka(certificates)
    with secured.broker:
        secured.begin()
        yield secured


@pytest.fixture
def on_kafka(nothing_left_behind: None, secured_kafka: SecuredKafka) -> Iterator[Callable[..., MessagingService]]:
    """Make services on one of its listeners, with fields of ``KafkaConfig`` that win over what the listener wants."""
    with ExitStack() as stack:

        def make(listener: str, *, service: dict[str, Any] | None = None, **kafka: Any) -> MessagingService:
            settings = {"backend": "kafka", "topic_prefix": "secured", "publish_timeout_ms": 20_000, **(service or {})}
            settings["kafka"] = secured_kafka.settings(listener, **kafka)
            made = MessagingService(MessagingConfig.from_mapping(settings))
            stack.callback(made.close, 3.0)
            return made

        yield make
