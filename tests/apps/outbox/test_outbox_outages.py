"""The relay over outages of broker and database, and hand-overs between relays."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from outbox_kit import PATIENCE, Lab, Writer, require_all_in_order
from postgres_server import PostgresServer
from waiting import until

from incident_messaging.brokers import KafkaBroker, NatsServer

NewLab = Callable[..., Lab]

pytestmark = pytest.mark.slow


def test_a_nats_server_that_is_killed_and_comes_back(
    new_lab: NewLab, nats_server_factory: Callable[..., NatsServer]
) -> None:
    broker = nats_server_factory()
    broker_comes_back(new_lab("django", "postgres", "nats", servers=[broker.url]), broker)


def test_a_kafka_broker_that_is_killed_and_comes_back(
    new_lab: NewLab, kafka_broker_factory: Callable[..., KafkaBroker]
) -> None:
    broker = kafka_broker_factory()
    broker_comes_back(new_lab("sqlalchemy", "sqlite", "kafka", bootstrap_servers=broker.bootstrap_servers), broker)


def broker_comes_back(lab: Lab, broker: NatsServer | KafkaBroker) -> None:
    writer = Writer(lab)
    relay = lab.start("relay_on", publish_timeout_ms=2_000)
    writer.write(10)
    assert lab.empties(), lab.said()
    broker.kill()
    writer.write(10)
    assert not until(lambda: lab.waiting() < 10, 3.0)
    broker.start()
    writer.write(10)

    assert lab.empties(), lab.said()
    assert lab.end(relay) == 0, lab.said()
    assert lab.parked() == 0
    require_all_in_order(lab.arrived(), writer.written)


def test_a_topic_that_is_denied_waits_until_it_is_allowed(
    new_lab: NewLab, nats_server_factory: Callable[..., NatsServer], tmp_path: Path
) -> None:
    rights = tmp_path / "rights.conf"
    users = 'authorization {{ users = [ {{ user: "u", password: "p", permissions: {{ publish: {{ {} }} }} }} ] }}\n'
    rights.write_text(users.format('deny: "*.orders"'))
    to_root = "../" * 20  # a path of an include begins at the folder of the configuration
    broker = nats_server_factory(config=f'include "{to_root}{rights}"')
    lab = new_lab("sqlalchemy", "sqlite", "nats", servers=[broker.url], user="u", password="p")
    writer = Writer(lab)
    relay = lab.start("relay_on")
    writer.write(10)
    assert until(lambda: "waits, and tries again: NATS denies" in lab.said(), PATIENCE), lab.said()
    writer.write(10)
    assert (lab.waiting(), lab.parked()) == (20, 0)

    rights.write_text(users.format('allow: ">"'))
    broker.reload()
    assert lab.empties(), lab.said()
    assert lab.end(relay) == 0, lab.said()
    assert lab.parked() == 0
    require_all_in_order(lab.arrived(), writer.written)


def test_a_database_that_is_restarted(new_lab: NewLab, own_postgres: PostgresServer) -> None:
    labs = [new_lab(framework, own_postgres, "nats") for framework in ("django", "sqlalchemy")]
    writers = [Writer(lab) for lab in labs]
    running = [(lab, lab.start(task)) for lab in labs for task in ("relay_on", "consume")]
    for lab, writer in zip(labs, writers, strict=True):
        writer.write(10)
        assert until(lambda lab=lab: len(lab.effects()) == 10, PATIENCE), lab.said()
        assert lab.empties(), lab.said()
    own_postgres.stop()
    for lab in labs:
        assert until(lambda lab=lab: "waits, and tries again" in lab.said(), PATIENCE), lab.said()
    own_postgres.start()

    for lab, writer in zip(labs, writers, strict=True):
        writer.write(10)
        assert until(lambda lab=lab: len(lab.effects()) == 20, PATIENCE), lab.said()
        assert lab.empties(), lab.said()
        require_all_in_order(lab.arrived(), writer.written)
    assert [lab.end(pid) for lab, pid in running] == [0, 0, 0, 0]


@pytest.mark.parametrize(("framework", "database"), [("django", "sqlite"), ("sqlalchemy", "postgres")])
def test_a_relay_that_is_asked_to_end_hands_over_at_once(new_lab: NewLab, framework: str, database: str) -> None:
    """The lease would last an hour."""
    lab = new_lab(framework, database, "nats")
    writer = Writer(lab)
    first = lab.start("relay_on", lease_secs=3_600.0)
    writer.write()
    assert lab.empties(), lab.said()
    second = lab.start("relay_on", lease_secs=3_600.0)
    lab.freeze(first)
    writer.write()
    assert not until(lambda: lab.waiting() < 4, 1.0), "only one is active"

    os.kill(first, signal.SIGCONT)
    assert lab.end(first) == 0, lab.said()
    writer.write()
    assert lab.empties(), lab.said()
    assert lab.end(second) == 0, lab.said()
    require_all_in_order(lab.arrived(), writer.written)


@pytest.mark.parametrize(("framework", "database"), [("django", "postgres"), ("sqlalchemy", "sqlite")])
def test_a_message_that_is_refused_is_put_aside_until_it_is_asked_for(
    new_lab: NewLab, framework: str, database: str
) -> None:
    """The relay's limit is below that of the writers."""
    lab = new_lab(framework, database, "nats")
    orders = [{"key": "a", "n": number, "text": "x" * (3_000 if number == 1 else 0)} for number in range(3)]
    lab.do("write", messages=orders)
    relay = lab.start("relay_on", max_message_size=2_000)
    assert lab.empties(), lab.said()
    assert lab.end(relay) == 0, lab.said()
    assert "is put aside" in lab.said()
    assert (lab.parked(), lab.arrived()) == (1, [("a", 0), ("a", 2)])

    lab.do("retry_failed", expected=1)
    lab.do("relay")
    assert (lab.parked(), lab.arrived()) == (0, [("a", 0), ("a", 2), ("a", 1)])
