"""Services over two real brokers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from two_brokers import settings

from incident_messaging import MessagingConfig, MessagingService

Make = Callable[..., MessagingService]


@pytest.fixture
def new_service(nats_server: Any, kafka_broker: Any, nothing_left_behind: None) -> Iterator[Make]:
    """Makes services on both shared brokers under one prefix; they are closed when the test is over."""
    given = settings(nats_server, kafka_broker)
    with ExitStack() as stack:

        def make(**overrides: Any) -> MessagingService:
            service = MessagingService(MessagingConfig.from_mapping({**given, **overrides}))
            stack.callback(service.close)
            return service

        yield make


@pytest.fixture
def service(new_service: Make) -> MessagingService:
    return new_service()
