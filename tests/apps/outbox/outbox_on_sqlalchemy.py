"""What the programs of these tests do, with SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.contrib.sqlalchemy import Inbox, Outbox


class Tables:
    def __init__(self, database: dict[str, Any], messaging: dict[str, Any]) -> None:
        self._database = database
        self._metadata = MetaData()
        self._outbox = Outbox(self._metadata, MessagingService(MessagingConfig.from_mapping(messaging)))
        self._inbox = Inbox(self._metadata)
        create_engine(**database)  # loads the driver, connects to nothing

    @cached_property
    def _engine(self) -> Engine:
        """Made in the process that uses it."""
        return create_engine(**self._database)

    def create(self) -> None:
        self._metadata.create_all(self._engine)
        with self._engine.begin() as connection:
            connection.execute(text("CREATE TABLE effects (message_id varchar(100))"))

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., Any]]:
        with Session(self._engine) as session, session.begin():
            yield partial(self._outbox.add, session)

    def store(self) -> Any:
        return self._outbox.store(self._engine)

    def once(self, effect: Callable[[Any, Any], None]) -> Callable[[Any], Any]:
        @self._inbox.once(sessionmaker(self._engine))
        def handle(session: Session, delivery: Any) -> None:
            effect(delivery, lambda statement: session.execute(text(statement)))

        return handle

    def retry_failed(self) -> int:
        with self._engine.begin() as connection:
            return self._outbox.retry_failed(connection)
