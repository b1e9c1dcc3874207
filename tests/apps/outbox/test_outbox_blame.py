"""What the relay puts aside, what it waits for, and what ends it: by whose fault a message is not published."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from outbox_reluctant import Reluctant, payloads
from sqlalchemy import Engine, update

from incident_messaging import (
    ConfigurationError,
    ConnectionFailed,
    MessagingBackend,
    MessagingConfig,
    MessagingError,
    MessagingService,
    PublishFailed,
)
from incident_messaging.contrib.outbox import Relay
from incident_messaging.contrib.sqlalchemy import Outbox
from incident_messaging.publishing.publication import BrokerResult

AWAY = ConnectionFailed("nobody is there", code="unreachable")
LARGE = PublishFailed("more than the broker takes", code="too_large")
WRONG = ConfigurationError("no such file")
OLD = ConfigurationError("the broker is too old", backend="nats")
NOWHERE = {"servers": ["nats://127.0.0.1:1"]}

Rows = Callable[[], list[Any]]


@pytest.mark.parametrize(
    ("spoilt", "error"),
    [
        ({"body": b"{"}, "SerializationError (decode)"),
        ({"headers": "{"}, "SerializationError (decode)"),
        ({"headers": "7"}, "SerializationError (decode)"),
        ({"headers": '{"x-key": "ours"}'}, "ConfigurationError (invalid)"),
        ({"topic": "no blanks"}, "ConfigurationError (invalid)"),
    ],
)
def test_what_cannot_be_read_or_sent_is_put_aside(
    outbox: Outbox, engine: Engine, add: Callable[..., None], relay: Relay, rows: Rows,
    service: Reluctant, spoilt: dict[str, Any], error: str, caplog: Any,
) -> None:  # fmt: skip
    add(1, 2, key="a")
    with engine.begin() as connection:
        connection.execute(update(outbox.messages).where(outbox.messages.c.id == 1).values(**spoilt))
    assert relay.run_once() == 1
    assert payloads(service) == [2]
    assert "is put aside" in caplog.text
    (row,) = rows()
    assert row.failed_at is not None
    assert row.error.startswith(error)


@pytest.mark.parametrize(
    "error",
    [
        *(PublishFailed("not now", code=code) for code in ("denied", "no_stream", "rejected", "stream_full")),
        ConnectionFailed("who are you", code="unauthorized"),
    ],
    ids=lambda error: error.code,
)
def test_what_is_not_a_messages_fault_holds_its_key_up_and_puts_nothing_aside(
    add: Callable[..., None], relay: Relay, rows: Rows, service: Reluctant, error: MessagingError
) -> None:
    add(1, 2, key="a")
    service.answers = {"a": error}
    assert relay.run_once() == 0
    assert [row.failed_at for row in rows()] == [None, None]
    service.answers = {}
    assert relay.run_once() == 2
    assert payloads(service) == [1, 2]


@pytest.mark.parametrize(
    ("first", "second", "parked"),
    [(LARGE, LARGE, 1), (LARGE, None, 1), (LARGE, AWAY, 0), (AWAY, LARGE, 0)],
    ids=["both refuse", "the other has it", "the other is away", "the first is away"],
)
def test_of_two_brokers_each_that_fails_has_to_blame_the_message(
    add: Callable[..., None], relay: Relay, rows: Rows, service: Reluctant,
    first: MessagingError, second: MessagingError | None, parked: int,
) -> None:  # fmt: skip
    add(1, key="a")
    service.answers = {"a": of_two(first, second)}
    assert relay.run_once() == 0
    assert len([row for row in rows() if row.failed_at is not None]) == parked


@pytest.mark.parametrize("error", [WRONG, OLD], ids=["a file", "the broker"])
def test_a_configuration_that_is_wrong_for_every_message_ends_the_relay_behind_what_was_acknowledged(
    add: Callable[..., None], relay: Relay, rows: Rows, service: Reluctant, error: MessagingError
) -> None:
    add(1, key="a")
    add(2, key="b")
    service.answers = {"a": of_two(AWAY, error)}
    with pytest.raises(ConfigurationError, match=str(error)):
        relay.run(threading.Event())
    assert [(row.key, row.failed_at) for row in rows()] == [("a", None)]


def of_two(first: MessagingError, second: MessagingError | None) -> MessagingError:
    state = "failed" if second else "ok"
    results = {
        MessagingBackend.NATS: BrokerResult(state="failed", error=first),
        MessagingBackend.KAFKA: BrokerResult(state=state, error=second),
    }
    return type(first)("over two brokers", code=first.code, results=results)


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "nats", "nats": {**NOWHERE, "enable_tls": True, "tls_ca_file": "/nowhere/ca.pem"}},
        {
            "backend": "both",
            "nats": NOWHERE,
            "kafka": {"bootstrap_servers": "127.0.0.1:1", "enable_ssl": True, "ssl_ca_file": "/nowhere/ca.pem"},
        },
    ],
    ids=["nats", "kafka beside a NATS that is away"],
)
def test_a_file_that_is_missing_puts_nothing_aside(
    outbox: Outbox, engine: Engine, add: Callable[..., None], rows: Rows, settings: dict[str, Any]
) -> None:
    add(1, 2, key="a")
    service = MessagingService(MessagingConfig.from_mapping(settings))
    with pytest.raises(ConfigurationError):
        Relay(outbox.store(engine), service).run_once()
    service.close(1.0)
    assert [row.failed_at for row in rows()] == [None, None]
