"""The helpers for users' tests: callbacks run when the test says so, delays pass at once, errors surface."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from incident_messaging import Delivery, IncidentCreated, MessagingConfig, MessagingService, Reject, Retry
from incident_messaging.testing import memory_service, reset, run_until_idle


def publish(service: MessagingService, *numbers: int, topic: str = "orders") -> None:
    service.publish_batch(topic, [{"n": number} for number in numbers], key="k")


def test_callbacks_run_in_the_tests_own_thread_and_only_when_asked(messaging: MessagingService) -> None:
    seen: list[tuple[str, str]] = []
    messaging.subscribe(
        "incidents.created", IncidentCreated,
        callback=lambda d: seen.append((d.payload.incident_id, threading.current_thread().name)),
    )  # fmt: skip
    messaging.publish_incident_created("INC-1", "high", "db", "down")
    assert seen == []
    assert run_until_idle(messaging) == 1
    assert seen == [("INC-1", threading.current_thread().name)]
    assert run_until_idle(messaging) == 0


def test_what_callbacks_publish_is_handled_too(messaging: MessagingService) -> None:
    seen: list[int] = []
    messaging.subscribe("orders", callback=lambda d: publish(messaging, d.payload["n"] * 2, topic="doubled"))
    messaging.subscribe("doubled", callback=lambda d: seen.append(d.payload["n"]))
    publish(messaging, 1, 2)
    assert run_until_idle(messaging) == 4
    assert seen == [2, 4]


def test_delays_are_jumped_over(messaging: MessagingService) -> None:
    attempts: list[int] = []

    def act(delivery: Delivery[Any]) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt < 4:
            raise Retry(3600)

    messaging.subscribe("orders", callback=act)
    publish(messaging, 1)
    begun = time.monotonic()
    assert run_until_idle(messaging) == 4
    assert attempts == [1, 2, 3, 4]
    assert time.monotonic() - begun < 5.0


def test_what_a_callback_raises_is_raised_again(messaging: MessagingService) -> None:
    seen: list[int] = []

    def act(delivery: Delivery[Any]) -> None:
        seen.append(delivery.payload["n"])
        assert delivery.payload["n"] != 2, "two is not allowed"

    messaging.subscribe("orders", callback=act)
    publish(messaging, 1, 2)
    with pytest.raises(AssertionError, match="two is not allowed"):
        run_until_idle(messaging)
    assert seen == [1, 2]
    with pytest.raises(AssertionError):  # the second attempt
        run_until_idle(messaging)
    assert seen == [1, 2, 2]


def test_without_reraise_a_failing_message_ends_in_the_dead_letters(messaging: MessagingService) -> None:
    def act(delivery: Delivery[Any]) -> None:
        raise Reject("no") if delivery.payload["n"] == 1 else ValueError("never")

    messaging.subscribe("orders", callback=act)
    publish(messaging, 1, 2)
    assert run_until_idle(messaging, reraise=False) == 1 + 5
    letters = list(messaging.consume("dead-letter", group="g", timeout=0))
    assert [(d.payload["n"], d.headers["x-dlq-attempts"]) for d in letters] == [(1, "1"), (2, "5")]


def test_retry_and_reject_are_no_errors_of_the_test(messaging: MessagingService) -> None:
    def act(delivery: Delivery[Any]) -> None:
        raise Retry(0) if delivery.attempt == 1 else Reject("enough")

    messaging.subscribe("orders", callback=act)
    publish(messaging, 1)
    assert run_until_idle(messaging) == 2


def test_iterators_stay_the_tests_own(messaging: MessagingService) -> None:
    seen: list[int] = []
    reading = messaging.subscribe("orders", group="reader")
    messaging.subscribe("orders", callback=lambda d: seen.append(d.payload["n"]))
    publish(messaging, 1, 2)
    assert run_until_idle(messaging) == 2
    assert seen == [1, 2]
    first = reading.next(0)
    assert first is not None
    first.nack(60)  # waits for the test, which is not jumped over for it
    assert run_until_idle(messaging) == 0
    second = reading.next(0)
    assert second is None  # its key waits


def test_a_circle_is_noticed(messaging: MessagingService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("incident_messaging.testing.STEPS", 50)
    messaging.subscribe("orders", callback=lambda d: publish(messaging, 1))
    publish(messaging, 1)
    with pytest.raises(RuntimeError, match="own topic"):
        run_until_idle(messaging)


def test_a_fresh_broker_for_each_test_and_after_reset() -> None:
    config = MessagingConfig(backend="memory", topic_prefix="kept")
    with memory_service(config) as service:
        publish(service, 1)
    with memory_service(config) as service:
        assert [d.payload["n"] for d in service.consume("orders", group="a", timeout=0)] == [1]
    reset()
    with memory_service(config) as service:
        assert list(service.consume("orders", group="b", timeout=0)) == []


PLUGIN_USER = """
from incident_messaging.testing import run_until_idle

def test_one(messaging):
    seen = []
    messaging.subscribe("orders", callback=seen.append)
    messaging.publish("orders", {"n": 1})
    run_until_idle(messaging)
    assert len(seen) == 1

def test_two(messaging):
    assert messaging.consume_one("orders", timeout=0) is None
"""


def test_the_plugin_gives_its_fixture_to_other_suites(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PLUGIN_USER)
    pytester.runpytest_subprocess().assert_outcomes(passed=2)
