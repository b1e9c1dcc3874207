"""A broker that is killed, frozen, cut off, while messages are published and handled: nothing acknowledged is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from history import History, judge
from load import Publishers, all_handled, flows, handlers, last
from rigs import Rig
from waiting import takes, until

from incident_messaging import BackendUnavailable, MessagingError, MessagingService, Timeout

NewService = Callable[..., MessagingService]

#: Seconds until a case gives up on what should have come.
PATIENCE = 90.0
#: Seconds that a machine of two cores, which brokers and tests share, may add to the end of a call.
SLACK = 5.0

pytestmark = pytest.mark.slow


def test_a_killed_broker_loses_and_repeats_nothing(rig: Rig, new_service: NewService) -> None:
    history, service = History(), new_service()
    kills = 3
    with handlers(service, history, concurrency=2), Publishers(service, history, timeout=30.0):
        for _ in range(kills):
            flows(history, 200, PATIENCE)
            rig.broker.kill()
            rig.broker.start()
        flows(history, 200, PATIENCE)
    # The subscription was closed with the load; whoever comes next has the rest.
    with handlers(service, history):
        assert until(all_handled(history), PATIENCE)
    judge(history, rig.stored("load")).require(again=kills * rig.again_per_kill, order=rig.order_survives_losses)


def test_a_frozen_broker_is_ridden_out(rig: Rig, new_service: NewService) -> None:
    history, service = History(), new_service()
    with handlers(service, history), Publishers(service, history, timeout=20.0):
        flows(history, 100, PATIENCE)
        rig.broker.freeze()
        last(2.0)
        rig.broker.thaw()
        flows(history, 100, PATIENCE)
    with handlers(service, history):
        assert until(all_handled(history), PATIENCE)
    judge(history, rig.stored("load")).require(again=rig.again_per_kill, order=rig.order_survives_losses)


def test_a_frozen_broker_is_an_unknown_outcome_in_time(rig: Rig, new_service: NewService) -> None:
    service = new_service()
    service.publish("load", {"key": "k", "n": 0})
    rig.broker.freeze()
    with takes(at_most=1.0 + SLACK), pytest.raises(Timeout) as caught:
        service.publish("load", {"key": "k", "n": 1}, timeout=1.0)
    assert caught.value.maybe_delivered
    with takes(at_most=1.0 + SLACK):
        service.close(1.0)
    rig.broker.thaw()


@pytest.mark.parametrize("side", ["drop_up", "drop_down"])
def test_a_line_that_swallows_one_direction(rig: Rig, new_service: NewService, side: str) -> None:
    history, service = History(), new_service()
    with handlers(service, history), Publishers(service, history, timeout=40.0, threads=2):
        flows(history, 100, PATIENCE)
        setattr(rig.proxy, side, True)
        last(4.0)
        rig.proxy.heal()
        flows(history, 100, PATIENCE)
    with handlers(service, history):
        assert until(all_handled(history), PATIENCE)
    judge(history, rig.stored("load")).require(again=rig.again_per_kill, order=rig.order_survives_losses)


def test_a_line_that_is_reset_again_and_again(rig: Rig, new_service: NewService) -> None:
    history, service = History(), new_service()
    resets = 0
    with handlers(service, history), Publishers(service, history, timeout=30.0, threads=2):
        flows(history, 50, PATIENCE)
        ends = time.monotonic() + 4.0
        while time.monotonic() < ends:
            resets += rig.proxy.reset()
            last(0.2)
        flows(history, 50, PATIENCE)
    assert resets > 5
    with handlers(service, history):
        assert until(all_handled(history), PATIENCE)
    judge(history, rig.stored("load")).require(again=resets * rig.again_per_kill, order=rig.order_survives_losses)


def test_a_slow_line_only_costs_time(rig: Rig, new_service: NewService) -> None:
    history, service = History(), new_service()
    rig.proxy.delay = 0.05
    with handlers(service, history), Publishers(service, history, timeout=20.0, threads=2):
        flows(history, 20, PATIENCE)
    rig.proxy.delay = 0.0
    with handlers(service, history):
        assert until(all_handled(history), PATIENCE)
    verdict = judge(history, rig.stored("load"))
    verdict.require(again=0)
    assert not history.of("failed", "unknown")


def test_somebody_who_accepts_and_stays_silent(rig: Rig, new_service: NewService) -> None:
    rig.proxy.silent = True
    service = new_service()
    with takes(at_most=1.0 + SLACK), pytest.raises(MessagingError) as caught:
        service.publish("load", {"key": "k", "n": 0}, timeout=1.0)
    assert caught.value.retryable
    rig.proxy.heal()
    assert until(lambda: _published(service), PATIENCE)


def _published(service: MessagingService) -> bool:
    try:
        service.publish("load", {"key": "k", "n": 1}, timeout=5.0)
    except MessagingError:
        return False
    return True


def test_futures_end_whatever_happens(rig: Rig, new_service: NewService) -> None:
    service = new_service(publish_timeout_ms=3_000)
    service.publish("load", {"key": "k", "n": -1})
    futures: list[Any] = []
    for number in range(300):
        futures.append(service.publish_nowait("load", {"key": "k", "n": number}))
        if number == 100:
            rig.broker.kill()
    with takes(at_most=3.0 + SLACK):
        outcomes = [future.exception(20.0) for future in futures]
    assert all(outcome is None or isinstance(outcome, MessagingError) for outcome in outcomes)
    rig.broker.start()
    stored = set(rig.stored("load"))
    assert {f"k/{number}" for number, outcome in enumerate(outcomes) if outcome is None} <= stored
    certainly_not = {
        f"k/{number}"
        for number, outcome in enumerate(outcomes)
        if isinstance(outcome, Timeout) and not outcome.maybe_delivered
    }
    assert not certainly_not & stored, "said not to be delivered, and it was"


def _hand_over(service: MessagingService, futures: list[Any]) -> None:
    for number in range(1_000):
        futures.append(service.publish_nowait("load", {"key": "k", "n": number, "body": "x" * 10_000}))


@pytest.mark.parametrize("bound", [{"max_in_flight": 100}, {"max_in_flight_bytes": 300_000}])
def test_a_producer_faster_than_its_broker_is_held_up(rig: Rig, new_service: NewService, bound: dict[str, int]) -> None:
    service = new_service(publish_timeout_ms=20_000, **bound)
    service.publish("load", {"key": "k", "n": -1, "body": ""})
    rig.broker.freeze()
    futures: list[Any] = []
    with pytest.raises(BackendUnavailable) as full:
        _hand_over(service, futures)
    assert full.value.code == "window_full"
    assert len(futures) == (100 if "max_in_flight" in bound else 29), "10,000 bytes and their envelope, 29 times"
    with takes(at_least=0.3, at_most=0.3 + SLACK), pytest.raises(BackendUnavailable):
        service.publish_nowait("load", {"key": "k", "n": -2, "body": "x" * 10_000}, block=0.3)
    rig.broker.thaw()
    assert all(future.result(25.0) for future in futures)
    service.flush(25.0)
    assert set(rig.stored("load")) == {f"k/{number}" for number in range(-1, len(futures))}
