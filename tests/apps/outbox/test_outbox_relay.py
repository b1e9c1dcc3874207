"""The rules of the relay, in this process: a file of SQLite and the broker in memory."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from outbox_reluctant import UNKNOWN, Reluctant, payloads
from sqlalchemy import Engine, MetaData
from waiting import takes, until

from incident_messaging import (
    BackendUnavailable,
    ConfigurationError,
    ConnectionFailed,
    IncidentCreated,
    MessagingConfig,
    MessagingService,
)
from incident_messaging.contrib.outbox import Relay
from incident_messaging.contrib.sqlalchemy import Outbox


def test_a_key_waits_for_its_first_and_no_other_does(
    add: Callable[..., None], relay: Relay, service: Reluctant
) -> None:
    for number in range(3):
        add({"a": number}, key="a")
        add({"b": number}, key="b")
        add({"none": number})
    service.answers = {"a": UNKNOWN}
    assert relay.run_once() == 6
    assert [payload for key, payload in service.tried if key == "a"] == [{"a": 0}]

    service.answers = {}
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


def test_a_broker_that_is_away_is_not_asked_all_the_time(
    add: Callable[..., None], relay: Relay, service: Reluctant, caplog: Any, later: Callable[..., threading.Thread]
) -> None:
    service.answers = {"a": ConnectionFailed("nobody is there", code="unreachable")}
    add(1, key="a")
    stop = threading.Event()
    with caplog.at_level(logging.INFO, "incident_messaging.outbox"):
        running = later(lambda: relay.run(stop))
        assert not until(lambda: len(service.tried) > 8, 2.0), "pauses grow from 0.05 s"
        assert len(service.tried) > 2
        assert caplog.text.count("tries again") == 1
        service.answers = {"a": ConnectionFailed("who are you", code="unauthorized")}
        assert until(lambda: "who are you" in caplog.text, 30.0)
        service.answers = {}
        assert until(lambda: "goes on" in caplog.text, 30.0)
        assert caplog.text.count("tries again") == 2, "a line for each trouble"
    stop.set()
    with takes(at_most=10.0):
        running.join()
    assert payloads(service) == [1]


def test_a_closed_service_ends_the_relay(relay: Relay, service: Reluctant) -> None:
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


def test_a_forked_child_has_no_lease(
    outbox: Outbox, engine: Engine, add: Callable[..., None], service: Reluctant
) -> None:
    relay = Relay(outbox.store(engine), service, lease_secs=3_600.0)
    assert relay.run_once() == 0
    add(1)
    engine.dispose()  # a connection of SQLite does not travel
    child = os.fork()
    if not child:
        relayed = 9
        try:
            relayed = relay.run_once()
        finally:
            os._exit(relayed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert relay.run_once() == 1


def test_the_lease_is_kept_while_a_publish_takes_its_time(
    outbox: Outbox, engine: Engine, add: Callable[..., None], service: Reluctant,
    later: Callable[..., threading.Thread],
) -> None:  # fmt: skip
    store = outbox.store(engine)
    answer: Future[Any] = Future()
    service.answers = {"a": answer}
    add(1, key="a")
    running = later(Relay(store, service, lease_secs=3.0).run_once)
    assert until(lambda: service.tried)
    assert not until(lambda: store.acquire("another", 3.0), 4.5)
    answer.set_result(None)
    running.join(10.0)
    assert store.oldest(1) == []


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"poll_interval": 0.0}, {"lease_secs": -1.0}])
def test_numbers_that_make_no_sense_are_refused(
    outbox: Outbox, engine: Engine, service: Reluctant, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        Relay(outbox.store(engine), service, **option)


def test_an_id_is_never_used_twice(outbox: Outbox, engine: Engine, add: Callable[..., None], relay: Relay) -> None:
    """A relay that slept may delete what it has read long ago."""
    add(1)
    assert relay.run_once() == 1
    add(2)
    assert [entry.id for entry in outbox.store(engine).oldest(10)] == [2]
