"""A transactional outbox and an inbox as SQLAlchemy tables, for Flask and plain SQLAlchemy."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Concatenate, TypeVar, cast

from sqlalchemy import (
    BigInteger,
    Column,
    CursorResult,
    DateTime,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Row,
    String,
    Table,
    Text,
    delete,
    exc,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from incident_messaging.consuming.delivery import Delivery
from incident_messaging.contrib.outbox import Entry
from incident_messaging.contrib.outbox_rows import columns, mark
from incident_messaging.service import MessagingService

__all__ = ["Inbox", "Outbox", "OutboxStore"]

T = TypeVar("T")

Executor = Session | scoped_session[Any] | Connection

_LEASE = "relay"

#: SQLite counts only a plain INTEGER up by itself.
_BIG = BigInteger().with_variant(Integer, "sqlite")


class Outbox:
    """Tables for messages that are written in the application's own transactions.

    They are registered in ``metadata``, where ``create_all`` and Alembic find them.

    Args:
        metadata: The application's own, as ``Base.metadata`` or ``db.metadata``.
        service: Whose configuration checks and encodes messages, or a callable that finds it.
        table: The name of the table; that of the relays' lease is ``<table>_lease``.
        schema: Where both are; ``None`` is the metadata's own.
    """

    def __init__(
        self,
        metadata: MetaData,
        service: MessagingService | Callable[[], MessagingService],
        *,
        table: str = "incident_outbox",
        schema: str | None = None,
    ) -> None:
        self._service = service
        self.messages = Table(
            table,
            metadata,
            Column("id", _BIG, primary_key=True, autoincrement=True),
            Column("message_id", String(200), nullable=False),
            Column("topic", String(255), nullable=False),
            Column("key", Text),
            Column("body", LargeBinary, nullable=False),
            Column("headers", Text, nullable=False),
            Column("created_at", DateTime(timezone=True), nullable=False),
            Column("failed_at", DateTime(timezone=True)),
            Column("error", Text, nullable=False),
            schema=schema,
            sqlite_autoincrement=True,  # an id that comes back would let a relay that slept delete the wrong message
        )
        self.lease = Table(
            f"{table}_lease",
            metadata,
            Column("name", String(50), primary_key=True),
            Column("owner", String(150), nullable=False),
            Column("until", Float(53), nullable=False),
            schema=schema,
        )

    def add(
        self,
        executor: Executor,
        message: Any,
        *,
        topic: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        correlation_id: str | None = None,
    ) -> str:
        """Write a message into the outbox, and return its id; the caller commits.

        A session is flushed first, so that locks on what it changes are taken before the message has its place
        in the order. While messaging is disabled nothing is written.

        Args:
            executor: A ``Session`` or ``Connection`` in whose transaction it is written.
            message: An `IncidentEvent`, or anything that ``publish`` takes.
            topic: Without the prefix; ``None`` is the event's own.
            key: Messages with one key keep their order; ``None`` is the incident's id of an event.
            headers: Text by name.
            correlation_id: ``None`` is that of the context.

        Raises:
            ConfigurationError: Topic, key, header or correlation id is missing or not allowed.
            SerializationError: The message cannot be written.
            PublishFailed: It is too large.
        """
        service = self._service() if callable(self._service) else self._service
        message_id, row = columns(
            service, message, topic=topic, key=key, headers=headers, correlation_id=correlation_id
        )
        if service.config.enabled:
            if not isinstance(executor, Connection):
                executor.flush()
            executor.execute(insert(self.messages).values(created_at=datetime.now(UTC), **row))
        return message_id

    def retry_failed(self, executor: Executor) -> int:
        """Let the relay try again what it has put aside, and return how many that is; the caller commits."""
        waiting = self.messages.c.failed_at
        again = update(self.messages).where(waiting.is_not(None)).values(failed_at=None, error="")
        return _count(executor.execute(again))

    def store(self, engine: Engine) -> OutboxStore:
        """What a `~incident_messaging.contrib.outbox.Relay` works on; ``engine`` is used by the relay alone."""
        return OutboxStore(self, engine)


class OutboxStore:
    """The outbox as a relay sees it (`incident_messaging.contrib.outbox.Store`)."""

    errors: tuple[type[Exception], ...] = (exc.DBAPIError, exc.TimeoutError)

    def __init__(self, outbox: Outbox, engine: Engine) -> None:
        self._messages = outbox.messages
        self._lease = outbox.lease
        self._engine = engine

    def acquire(self, owner: str, seconds: float) -> bool:
        """Make or keep ``owner`` the active relay."""
        lease, at = self._lease, time.time()
        mine = or_(lease.c.owner == owner, lease.c.until < at)
        values = {"owner": owner, "until": at + seconds}
        with self._engine.begin() as connection:
            if _count(connection.execute(update(lease).where(lease.c.name == _LEASE, mine).values(values))):
                return True
            if connection.scalar(select(lease.c.name).where(lease.c.name == _LEASE)) is not None:
                return False
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(lease).values(name=_LEASE, **values))
        except exc.IntegrityError:  # another was first
            return False
        return True

    def release(self, owner: str) -> None:
        """End the lease, if it is the owner's."""
        with self._engine.begin() as connection:
            connection.execute(update(self._lease).where(self._lease.c.owner == owner).values(until=0.0))

    def oldest(self, limit: int) -> Sequence[Entry]:
        """The messages that wait, in order."""
        messages = self._messages
        waiting = select(messages).where(messages.c.failed_at.is_(None)).order_by(messages.c.id).limit(limit)
        with self._engine.connect() as connection:
            return [_entry(row) for row in connection.execute(waiting)]

    def delete(self, ids: Sequence[int]) -> None:
        """Delete messages in one statement."""
        with self._engine.begin() as connection:
            connection.execute(delete(self._messages).where(self._messages.c.id.in_(ids)))

    def park(self, entry_id: int, error: str) -> None:
        """Put a message aside."""
        aside = update(self._messages).where(self._messages.c.id == entry_id)
        with self._engine.begin() as connection:
            connection.execute(aside.values(failed_at=datetime.now(UTC), error=error))

    def rest(self) -> None:
        """Nothing: the engine's pool drops what is broken."""


class Inbox:
    """A table that remembers which handler has had which message.

    Args:
        metadata: The application's own, as ``Base.metadata`` or ``db.metadata``.
        table: The name of the table.
        schema: Where it is; ``None`` is the metadata's own.
    """

    def __init__(self, metadata: MetaData, *, table: str = "incident_inbox", schema: str | None = None) -> None:
        self.marks = Table(
            table,
            metadata,
            Column("handler", String(255), nullable=False),
            Column("message_id", String(200), nullable=False),
            Column("handled_at", DateTime(timezone=True), nullable=False, index=True),
            PrimaryKeyConstraint("handler", "message_id"),
            schema=schema,
        )

    def once(
        self, sessions: Callable[[], Session], *, name: str | None = None
    ) -> Callable[[Callable[Concatenate[Session, Delivery[Any], ...], T]], Callable[[Delivery[Any]], T | None]]:
        """Make a handler ``handle(session, delivery)`` of which each message takes effect once.

        The message is marked as handled in the transaction in which the handler works, which is committed when it
        returns and rolled back, mark and all, when it raises. The handler does not commit itself. A message that
        is marked already is settled without a call.

        Args:
            sessions: What makes a session, as a ``sessionmaker``.
            name: Under which the marks are kept, 255 characters at most; ``None`` is the function's module and
                name. One that changes makes old messages new.
        """

        def decorate(
            function: Callable[Concatenate[Session, Delivery[Any], ...], T],
        ) -> Callable[[Delivery[Any]], T | None]:
            handler = name or f"{function.__module__}.{function.__qualname__}"

            @functools.wraps(function)
            def handle(delivery: Delivery[Any]) -> T | None:
                with sessions() as session:
                    try:
                        session.execute(self._marking(handler, delivery))
                    except exc.IntegrityError:  # nothing else is in the transaction yet
                        session.rollback()
                        return None
                    result = function(session, delivery)
                    session.commit()
                    return result

            return handle

        return decorate

    def purge(self, executor: Executor, before: datetime) -> int:
        """Forget what was handled before an aware time, and return how many that is; the caller commits."""
        old = self.marks.c.handled_at < before.astimezone(UTC)
        return _count(executor.execute(delete(self.marks).where(old)))

    def _marking(self, handler: str, delivery: Delivery[Any]) -> Any:
        message_id = mark(delivery.metadata.message_id)
        return insert(self.marks).values(handler=handler, message_id=message_id, handled_at=datetime.now(UTC))


def _count(result: Any) -> int:
    return cast("CursorResult[Any]", result).rowcount


def _entry(row: Row[Any]) -> Entry:
    created = row.created_at
    return Entry.of(row, created if created.tzinfo else created.replace(tzinfo=UTC))  # SQLite keeps no zone
