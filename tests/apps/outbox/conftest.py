"""Real databases and brokers for the outbox's programs; a file of SQLite and the memory broker for the relay alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from outbox_kit import Lab, on_postgres, on_sqlite
from outbox_reluctant import Reluctant
from postgres_server import PostgresServer
from sqlalchemy import Engine, MetaData, create_engine, select

from incident_messaging import MessagingConfig, RetryPolicy
from incident_messaging.brokers import KafkaBroker, NatsServer
from incident_messaging.contrib.outbox import Relay
from incident_messaging.contrib.sqlalchemy import Outbox

NewLab = Callable[..., Lab]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole session."""
    with PostgresServer(None, None) as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, to be stopped and started."""
    with PostgresServer(None, None) as server:
        yield server


@pytest.fixture
def new_lab(nats_server: NatsServer, kafka_broker: KafkaBroker, postgres: PostgresServer, tmp_path: Path):
    """Make labs of a framework, a database and a broker; closed with the test."""
    brokers = {
        "nats": {"servers": [nats_server.url], "ack_wait_ms": 1_000},
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap_servers,
            "partitions": 1,
            "session_timeout_ms": 6_000,
        },
    }
    with ExitStack() as labs:

        def make(framework: str, database: str | PostgresServer, broker: str, **settings: Any) -> Lab:
            server = postgres if database == "postgres" else database
            place = on_postgres(server) if isinstance(server, PostgresServer) else on_sqlite(tmp_path)
            messaging = {
                "backend": broker,
                "topic_prefix": f"t-{uuid4().hex[:10]}",
                "retry": {"initial_delay_secs": 0.05},
                broker: brokers[broker] | settings,
            }
            return labs.enter_context(Lab(framework, place, messaging, tmp_path))

        yield make


@pytest.fixture
def service() -> Iterator[Reluctant]:
    quick = RetryPolicy(initial_delay_secs=0.01, jitter=False)
    with Reluctant(MessagingConfig(backend="memory", topic_prefix=f"t-{uuid4().hex[:10]}", retry=quick)) as made:
        yield made


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'db'}", connect_args={"timeout": 20})
    yield made
    made.dispose()


@pytest.fixture
def outbox(service: Reluctant, engine: Engine) -> Outbox:
    metadata = MetaData()
    made = Outbox(metadata, lambda: service)
    metadata.create_all(engine)
    return made


@pytest.fixture
def add(outbox: Outbox, engine: Engine) -> Callable[..., None]:
    def write(*payloads: Any, key: str | None = None, topic: str = "t") -> None:
        with engine.begin() as connection:
            for payload in payloads:
                outbox.add(connection, payload, topic=topic, key=key)

    return write


@pytest.fixture
def relay(outbox: Outbox, engine: Engine, service: Reluctant) -> Relay:
    return Relay(outbox.store(engine), service, poll_interval=0.05)


@pytest.fixture
def rows(outbox: Outbox, engine: Engine) -> Callable[[], list[Any]]:
    """All that is in the outbox."""

    def read() -> list[Any]:
        with engine.connect() as connection:
            return list(connection.execute(select(outbox.messages)))

    return read
