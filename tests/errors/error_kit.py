"""What the tests of the errors' table share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    NewTopic,
)

from incident_messaging import (
    MessagingError,
    MessagingService,
)

#: Seconds that a call may take beyond its time-out, or beyond what it needs, on a machine that has much to do.
GRACE = 5.0
#: The time-out of a call that is refused long before: what waits for it takes longer than `GRACE` allows.
LONG = 20.0
PATIENCE = 15.0

Row = tuple[type[MessagingError], str]
Make = Callable[..., MessagingService]
Provoked = Callable[..., AbstractContextManager["Met"]]


#: The rows that some test provokes.
PROVOKED: set[Row] = set()


def row(error: type[MessagingError], code: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The row of the table that a test provokes."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        test.row = (error, code)  # type: ignore[attr-defined]
        PROVOKED.add((error, code))
        return test

    return mark


class Met:
    """The error, once the block is over."""

    error: Any = None


@contextmanager
def frozen(server: Any) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def make_topic(broker: Any, name: str, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic(name, 1, 1, config=config)])[name].result(PATIENCE)


def delete_before(broker: Any, topic: str, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result(PATIENCE)
