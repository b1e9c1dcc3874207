"""Real databases and brokers for the outbox's programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from outbox_kit import Lab, on_postgres, on_sqlite
from postgres_server import PostgresServer

from incident_messaging.brokers import KafkaBroker, NatsServer

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
