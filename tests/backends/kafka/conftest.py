"""The Kafka backend against a real broker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from kafka_kit import Raw, Reader, config, in_time, spec

from incident_messaging.backends.kafka.broker import KafkaBroker


@pytest.fixture
def topic() -> str:
    """A topic of the test's own on the shared broker."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def raw(nothing_left_behind: None, kafka_broker: Any) -> Iterator[Raw]:
    """The shared broker through the client library alone."""
    with Raw(kafka_broker.bootstrap_servers) as raw:
        yield raw


@pytest.fixture
def new_kafka(nothing_left_behind: None) -> Iterator[Callable[..., KafkaBroker]]:
    """Make brokers on an address, closed when the test is over."""
    with ExitStack() as stack:

        def make(servers: str, **options: Any) -> KafkaBroker:
            broker = KafkaBroker(config(servers, **options))
            stack.callback(lambda: broker.close(in_time(3.0)))
            return broker

        yield make


@pytest.fixture
def kafka(new_kafka: Callable[..., KafkaBroker], kafka_broker: Any) -> KafkaBroker:
    """A broker on the shared address."""
    return new_kafka(kafka_broker.bootstrap_servers)


@pytest.fixture
def read(nothing_left_behind: None) -> Iterator[Callable[..., Reader]]:
    """Open readers, closed when the test is over."""
    with ExitStack() as stack:

        def open_one(broker: KafkaBroker, topic: str, *, acks: bool = True, **asked: Any) -> Reader:
            reader = Reader(broker, spec(topic, **asked), acks=acks)
            stack.callback(reader.close, 3.0)
            return reader.open()

        yield open_one
