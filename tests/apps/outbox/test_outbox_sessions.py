"""What happens in an SQLAlchemy session: messages that are written, handlers that take effect once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from outbox_reluctant import Reluctant
from sqlalchemy import Engine, MetaData, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from waiting import until

from incident_messaging import MessageEnvelope
from incident_messaging.contrib.sqlalchemy import Inbox, Outbox


class Base(DeclarativeBase):
    pass


class Incident(Base):
    __tablename__ = "incidents"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_a_session_is_flushed_before_its_message_has_a_place(outbox: Outbox, engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Incident(id=1))
        outbox.add(session, {"n": 1}, topic="t")
        assert not session.new


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
