"""The rules of the relay and of the inbox, in this process: a file of SQLite and the broker in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, MetaData, create_engine, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from waiting import takes, until

from incident_messaging import (
    BackendUnavailable,
    ConfigurationError,
    IncidentCreated,
    MessageEnvelope,
    MessagingConfig,
    MessagingService,
    RetryPolicy,
    Timeout,
)
from incident_messaging.contrib import outbox as relaying
from incident_messaging.contrib.outbox import Relay
from incident_messaging.contrib.sqlalchemy import Inbox, Outbox


class Base(DeclarativeBase):
    pass


class Incident(Base):
    __tablename__ = "incidents"
    id: Mapped[int] = mapped_column(primary_key=True)


class Reluctant(MessagingService):
    """Says of some keys that it does not know what became of their messages."""

    def __init__(self, config: MessagingConfig) -> None:
        super().__init__(config)
        self.unknown: set[str] = set()
        self.tried: list[tuple[str | None, Any]] = []

    def publish_nowait(self, topic: str, message: Any, **options: Any) -> Future[Any]:
        self.tried.append((options["key"], message.payload))
        if options["key"] in self.unknown:
            failed: Future[Any] = Future()
            failed.set_exception(Timeout("no outcome", maybe_delivered=True))
            return failed
        return super().publish_nowait(topic, message, **options)


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


def payloads(service: MessagingService) -> list[Any]:
    return [delivery.payload for delivery in service.consume("t", Any, group=uuid4().hex, timeout=0.1)]


def test_a_key_waits_for_its_first_and_no_other_does(
    add: Callable[..., None], relay: Relay, service: Reluctant
) -> None:
    for number in range(3):
        add({"a": number}, key="a")
        add({"b": number}, key="b")
        add({"none": number})
    service.unknown = {"a"}
    assert relay.run_once() == 6
    assert [payload for key, payload in service.tried if key == "a"] == [{"a": 0}]

    service.unknown = set()
    assert relay.run_once() == 3
    assert [payload for payload in payloads(service) if "a" in payload] == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert relay.run_once() == 0


def test_a_batch_bounds_a_round(outbox: Outbox, engine: Engine, add: Callable[..., None], service: Reluctant) -> None:
    relay = Relay(outbox.store(engine), service, batch_size=2)
    add(*range(5))
    assert [relay.run_once() for _ in range(4)] == [2, 2, 1, 0]
    assert payloads(service) == [0, 1, 2, 3, 4]


def test_one_relay_is_active_until_it_lets_go(
    outbox: Outbox, engine: Engine, add: Callable[..., None], service: Reluctant
) -> None:
    first, second = (Relay(outbox.store(engine), service, lease_secs=3_600.0) for _ in range(2))
    add(1)
    assert first.run_once() == 1
    add(2)
    assert second.run_once() == 0
    first.release()
    assert second.run_once() == 1
    assert first.run_once() == 0


def test_a_lease_that_ran_out_is_taken_over(
    outbox: Outbox, engine: Engine, add: Callable[..., None], service: Reluctant
) -> None:
    store = outbox.store(engine)
    assert store.acquire("one that died", 0.2)
    add(1)
    relay = Relay(store, service)
    assert until(lambda: relay.run_once() == 1)


def test_what_cannot_be_read_is_put_aside_and_counted(
    outbox: Outbox, engine: Engine, add: Callable[..., None], relay: Relay, service: Reluctant, caplog: Any
) -> None:
    before = relaying.PARKED._value.get(), relaying.RELAYED._value.get()
    add(1, 2, key="a")
    with engine.begin() as connection:
        connection.execute(update(outbox.messages).where(outbox.messages.c.id == 1).values(body=b"{"))
    assert relay.run_once() == 1
    assert payloads(service) == [2]
    assert "is put aside" in caplog.text
    assert (relaying.PARKED._value.get(), relaying.RELAYED._value.get()) == (before[0] + 1, before[1] + 1)
    with engine.connect() as connection:
        (row,) = connection.execute(select(outbox.messages))
    assert row.failed_at is not None
    assert row.error.startswith("SerializationError (decode)")


def test_a_broker_that_is_away_is_not_asked_all_the_time(
    add: Callable[..., None], relay: Relay, service: Reluctant, caplog: Any, later: Callable[..., threading.Thread]
) -> None:
    service.unknown = {"a"}
    add(1, key="a")
    stop = threading.Event()
    with caplog.at_level(logging.INFO, "incident_messaging.outbox"):
        running = later(lambda: relay.run(stop))
        assert not until(lambda: len(service.tried) > 8, 2.0), "pauses grow from 0.05 s"
        assert len(service.tried) > 2
        assert caplog.text.count("tries again") == 1
        service.unknown = set()
        assert until(lambda: "goes on" in caplog.text, 30.0)
    stop.set()
    with takes(at_most=10.0):
        running.join()
    assert payloads(service) == [1]


def test_a_closed_service_ends_the_relay(add: Callable[..., None], relay: Relay, service: Reluctant) -> None:
    add(1)
    service.close()
    with pytest.raises(BackendUnavailable):
        relay.run(threading.Event())


def test_while_messaging_is_disabled_nothing_is_written_and_nothing_is_lost(
    outbox: Outbox, engine: Engine, add: Callable[..., None], service: Reluctant
) -> None:
    add(1)
    disabled = MessagingService(MessagingConfig(enabled=False))
    with engine.begin() as connection:
        metadata = MetaData()
        Outbox(metadata, disabled).add(connection, IncidentCreated("INC-1", "low", "database", "slow"))
    with pytest.raises(BackendUnavailable, match="disabled"):
        Relay(outbox.store(engine), disabled).run_once()
    assert len(outbox.store(engine).oldest(10)) == 1


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"poll_interval": 0.0}, {"lease_secs": -1.0}])
def test_numbers_that_make_no_sense_are_refused(
    outbox: Outbox, engine: Engine, service: Reluctant, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        Relay(outbox.store(engine), service, **option)


def test_a_session_is_flushed_before_its_message_has_a_place(outbox: Outbox, engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Incident(id=1))
        outbox.add(session, {"n": 1}, topic="t")
        assert not session.new


def test_an_id_is_never_used_twice(outbox: Outbox, engine: Engine, add: Callable[..., None], relay: Relay) -> None:
    """A relay that slept may delete what it has read long ago."""
    add(1)
    assert relay.run_once() == 1
    add(2)
    assert [entry.id for entry in outbox.store(engine).oldest(10)] == [2]


@pytest.fixture
def inbox(engine: Engine) -> Inbox:
    metadata = MetaData()
    made = Inbox(metadata)
    metadata.create_all(engine)
    Base.metadata.create_all(engine)
    return made


def test_a_handler_that_raises_has_done_nothing_and_is_called_again(
    inbox: Inbox, engine: Engine, service: Reluctant
) -> None:
    calls: list[int] = []

    @inbox.once(sessionmaker(engine))
    def store(session: Session, delivery: Any) -> None:
        number = delivery.payload
        calls.append(number)
        session.add(Incident(id=number))
        session.flush()
        if calls.count(number) == 1:
            raise RuntimeError("the first attempt")

    service.subscribe("t", int, callback=store, group="g")
    again = MessageEnvelope.new(7)
    for message in (again, again, 8):
        service.publish("t", message)

    with Session(engine) as session:
        assert until(lambda: sorted(session.scalars(select(Incident.id))) == [7, 8])
    assert sorted(calls) == [7, 7, 8, 8]


def test_names_tell_handlers_apart_and_old_marks_are_forgotten(
    inbox: Inbox, engine: Engine, service: Reluctant
) -> None:
    seen: list[str] = []
    for name in ("first", "second"):
        handler = inbox.once(sessionmaker(engine), name=name)(lambda _, delivery, name=name: seen.append(name))
        service.subscribe("t", callback=handler, group=name)
    service.publish("t", MessageEnvelope.new({}, message_id="long\0" * 1_000))
    assert until(lambda: sorted(seen) == ["first", "second"])

    def marks() -> int:
        with engine.connect() as connection:
            return len(connection.execute(select(inbox.marks)).all())

    assert until(lambda: marks() == 2)
    at = datetime.now(UTC)
    with engine.begin() as connection:
        assert inbox.purge(connection, at - timedelta(hours=1)) == 0
        assert inbox.purge(connection, at + timedelta(hours=1)) == 2
