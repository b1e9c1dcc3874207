"""Services on the brokers, and the block that has to raise."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import nats
import pytest
from error_kit import GRACE, Make, Met, Provoked
from kafka_rules import GUARDED
from nats.js import JetStreamContext

from incident_messaging import (
    MessagingConfig,
    MessagingError,
    MessagingService,
)
from incident_messaging.brokers import KafkaBroker


@pytest.fixture
def provoked(request: pytest.FixtureRequest) -> Provoked:
    """A block that has to raise the error of the test's row, in time, with these words, and whole when copied."""
    kind, code = request.function.row

    @contextmanager
    def block(*words: str, within: float) -> Iterator[Met]:
        met, begun = Met(), time.monotonic()
        with pytest.raises(MessagingError) as caught:
            yield met
        took = time.monotonic() - begun
        met.error = error = caught.value
        assert (type(error), error.code) == (kind, code), repr(error)
        assert took <= within + GRACE, f"took {took:.2f} s, allowed are {within} s"
        for word in words:
            assert word in str(error)
        for other in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
            assert type(other) is kind
            assert (str(other), other.args) == (str(error), error.args)
            assert vars(other).keys() == vars(error).keys()
            assert (other.code, other.backend, other.topic) == (error.code, error.backend, error.topic)
            assert (getattr(other.envelope, "metadata", None), other.retryable) == (
                getattr(error.envelope, "metadata", None), error.retryable
            )  # fmt: skip

    return block


@pytest.fixture
def prefix() -> str:
    return f"e-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def service_on(prefix: str, nothing_left_behind: None) -> Iterator[Make]:
    """Makes services; they are closed when the test is over, whatever state their broker is in."""
    with ExitStack() as stack:

        def make(**settings: Any) -> MessagingService:
            service = MessagingService(MessagingConfig.from_mapping({"topic_prefix": prefix, **settings}))
            stack.callback(service.close, 2.0)
            return service

        yield make


@pytest.fixture
def on_nats(service_on: Make, nats_server: Any) -> Make:
    def make(*, nats: dict[str, Any] | None = None, **settings: Any) -> MessagingService:
        return service_on(backend="nats", nats={"servers": [nats_server.url], **(nats or {})}, **settings)

    return make


@pytest.fixture
def on_kafka(service_on: Make, kafka_broker: Any) -> Make:
    def make(*, kafka: dict[str, Any] | None = None, **settings: Any) -> MessagingService:
        servers = kafka_broker.bootstrap_servers
        return service_on(backend="kafka", kafka={"bootstrap_servers": servers, **(kafka or {})}, **settings)

    return make


@pytest.fixture
def jetstream(nats_server: Any) -> Callable[[Callable[[JetStreamContext], Awaitable[Any]]], Any]:
    """Do something with a client of another make."""

    def work(what: Callable[[JetStreamContext], Awaitable[Any]], url: str = "") -> Any:
        async def connected() -> Any:
            client = await nats.connect(url or nats_server.url, allow_reconnect=False)
            try:
                return await what(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(connected())

    return work


@pytest.fixture(scope="session")
def guarded_kafka() -> Iterator[KafkaBroker]:
    """A broker that knows access control lists, and lets everybody do what no list speaks of."""
    with KafkaBroker(config=GUARDED) as broker:
        yield broker
