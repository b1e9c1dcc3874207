"""What the relay counts."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from outbox_reluctant import UNKNOWN, Reluctant
from sqlalchemy import Engine, update
from waiting import until

from incident_messaging import MessagingConfig, MessagingService, metrics
from incident_messaging.contrib import outbox as relaying
from incident_messaging.contrib.outbox import Relay
from incident_messaging.contrib.sqlalchemy import Outbox


def test_the_age_of_the_oldest_is_told_by_a_relay_that_is_active(
    outbox: Outbox, engine: Engine, add: Callable[..., None], service: Reluctant,
    later: Callable[..., threading.Thread],
) -> None:  # fmt: skip
    store = outbox.store(engine)
    relay = Relay(store, service, poll_interval=0.05, lease_secs=0.2)
    service.answers = {"a": UNKNOWN}
    add(1, key="a")
    relay.run_once()
    assert age() > 0
    assert until(lambda: store.acquire("another", 3_600.0))
    assert until(lambda: relay.run_once() == age() == 0)

    store.release("another")
    relay.run_once()
    assert age() > 0
    outbox.lease.drop(engine)
    stop = threading.Event()
    later(lambda: relay.run(stop))
    assert until(lambda: age() == 0), "the database cannot be had"
    stop.set()


def age() -> float:
    return relaying.AGE._value.get()


@pytest.mark.parametrize("counted", [True, False])
def test_messages_are_counted_unless_metrics_are_off(
    outbox: Outbox, engine: Engine, add: Callable[..., None], counted: bool
) -> None:
    before = counts()
    relaying.AGE.set(0.0)
    add(1, 2, 3)
    with engine.begin() as connection:
        connection.execute(update(outbox.messages).where(outbox.messages.c.id == 1).values(body=b"{"))
    with MessagingService(MessagingConfig(backend="memory", enable_metrics=counted)) as service:
        relay = Relay(outbox.store(engine), service)
        assert relay.run_once() == 2
        assert (age() > 0) is counted
        relay.release()
    expected = {"relayed": 2, "parked": 1} if counted else {"relayed": 0, "parked": 0}
    assert {name: count - before[name] for name, count in counts().items()} == expected


def counts() -> dict[str, float]:
    return {"relayed": relaying.RELAYED._value.get(), "parked": relaying.PARKED._value.get()}


def test_a_lock_that_a_fork_has_replaced_is_not_waited_for(
    add: Callable[..., None], relay: Relay, later: Callable[..., threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited, taken, over = metrics.LOCK, threading.Event(), threading.Event()

    def hold() -> None:
        with inherited:
            taken.set()
            over.wait(20.0)

    holder = later(hold)
    assert taken.wait(10.0)
    monkeypatch.setattr(metrics, "LOCK", threading.RLock())
    add(1)
    assert relay.run_once() == 1
    assert holder.is_alive()
    over.set()
