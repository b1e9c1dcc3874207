"""The service's own decisions, on the memory broker: what is chosen, what is refused, what is said."""

from __future__ import annotations

import gc
import logging
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import attrs
import cattrs
import pytest
from waiting import takes, until

from incident_messaging import (
    BackendUnavailable,
    ConfigurationError,
    Delivery,
    IncidentCreated,
    IncidentStateChanged,
    MessageEnvelope,
    MessagingBackend,
    MessagingConfig,
    MessagingService,
    Retry,
)
from incident_messaging.consuming.workers import Workers
from incident_messaging.testing import reset


@pytest.fixture
def service() -> Iterator[MessagingService]:
    reset()
    with MessagingService(MessagingConfig(backend="memory")) as service:
        yield service


def test_a_disabled_service_publishes_nothing_and_succeeds() -> None:
    with MessagingService(MessagingConfig(backend="memory", enabled=False)) as service:
        receipt = service.publish("orders", {"n": 1})
        batch = service.publish_batch("orders", [{"n": 1}, {"n": 2}], receipts=True)
        future = service.publish_nowait("orders", {"n": 1})
        service.flush(0)
        assert (receipt.results, receipt.topic, bool(receipt.message_id)) == ({}, "orders", True)
        assert future.result(0).results == {}
        assert batch.failures == {}
        assert batch.receipts is not None
        assert [entry.results for entry in batch.receipts if entry] == [{}, {}]
        assert service.publish_incident_created("INC-1", "high", "db", "down").results == {}
        assert service.health().ok


@pytest.mark.parametrize("call", ["subscribe", "consume", "consume_one"])
def test_a_disabled_service_refuses_to_subscribe(call: str) -> None:
    service = MessagingService(MessagingConfig(backend="memory", enabled=False))
    with pytest.raises(BackendUnavailable, match="Messaging disabled") as caught:
        getattr(service, call)("orders")
    assert caught.value.code == "disabled"


def test_a_disabled_service_still_says_what_is_wrong() -> None:
    service = MessagingService(MessagingConfig(backend="memory", enabled=False))
    with pytest.raises(ConfigurationError):
        service.publish("not a topic", {})


def test_the_configuration_is_a_messaging_config() -> None:
    with pytest.raises(ConfigurationError, match=r"MessagingConfig\.from_mapping"):
        MessagingService({"backend": "memory"})  # type: ignore[arg-type]
    assert MessagingService().config == MessagingConfig()


def test_a_backend_that_is_not_configured_is_refused(service: MessagingService) -> None:
    for backend in (MessagingBackend.KAFKA, "nats", "both", "rabbit"):
        with pytest.raises(ConfigurationError, match="backend"):
            service.publish("orders", {}, backend=backend)
        with pytest.raises(ConfigurationError, match="backend"):
            service.subscribe("orders", backend=backend)
    assert list(service.publish("orders", {}, backend="memory").results) == [MessagingBackend.MEMORY]


@pytest.mark.parametrize("topic", ["", "a b", "a..b", ".a", "a.", "a.*", "ä", "x" * 243, None, 7])
def test_a_bad_topic_is_refused_at_once(service: MessagingService, topic: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"topic|characters"):
        service.publish(topic, {})


@pytest.mark.parametrize("topic", ["", "a b", "a.>.b", "a*", "*a", ">.a", "a..*"])
def test_a_bad_pattern_is_refused_at_once(service: MessagingService, topic: str) -> None:
    with pytest.raises(ConfigurationError, match="topic"):
        service.subscribe(topic)


@pytest.mark.parametrize("name", ["x-message-id", "X-Key", "content-type", "traceparent", "x-dlq-group",
                                  "x-redrive-group", "Nats-Msg-Id", "nats-ttl", "a b", "a:b", "", "ä"])  # fmt: skip
def test_reserved_and_impossible_headers_are_refused(service: MessagingService, name: str) -> None:
    with pytest.raises(ConfigurationError, match="header"):
        service.publish("orders", {}, headers={name: "x"})


def test_an_empty_prefix_adds_nothing() -> None:
    with MessagingService(MessagingConfig(backend="memory", topic_prefix="")) as service:
        subscription = service.subscribe("orders", group="g")
        assert subscription.name == "g:orders"
        receipt = service.publish("orders", {})
    position = receipt.results[MessagingBackend.MEMORY].position
    assert position is not None
    assert position.topic == "orders"


def test_the_group_is_the_configured_one_where_none_is_given(service: MessagingService) -> None:
    assert service.subscribe("orders").group == "incident-manager-group"
    assert service.subscribe("orders", group="g").name == "g:llm-im.orders"
    assert service.subscribe("orders", broadcast=True).group is None


def test_shortcuts_publish_events_with_the_incident_as_key(service: MessagingService) -> None:
    service.publish_incident_created("INC-1", "high", "db", "down", correlation_id="c", headers={"tenant": "a"})
    service.publish_incident_state_changed("INC-1", "open", "closed")
    service.publish_incident_resolved("INC-1", 60)
    found = list(service.consume("incidents.*", group="g", timeout=0.1))
    assert [d.topic for d in found] == ["incidents.created", "incidents.statechanged", "incidents.resolved"]
    assert {d.key for d in found} == {"INC-1"}
    assert (found[0].metadata.correlation_id, found[0].headers) == ("c", {"tenant": "a"})
    with pytest.raises(ConfigurationError, match="IncidentEvent"):
        service.publish_incident_event({"type": "Created"})  # type: ignore[arg-type]


@attrs.frozen
class Money:
    cents: int


def test_a_converter_of_the_users_own_is_used_both_ways() -> None:
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Money, lambda money: f"{money.cents} cents")
    converter.register_structure_hook(Money, lambda text, _: Money(int(text.split()[0])))
    config = MessagingConfig(backend="memory", topic_prefix="money")
    with MessagingService(config, converter=converter) as service:
        service.publish("prices", Money(5))
        (delivery,) = service.consume("prices", Money, group="g", timeout=0.1)
        assert delivery.payload == Money(5)
        assert b"5 cents" in delivery.body


def test_an_envelope_given_is_not_changed(service: MessagingService) -> None:
    envelope = MessageEnvelope.new({"n": 1})
    service.publish("orders", envelope, correlation_id="c")
    assert (envelope.metadata.source, envelope.metadata.correlation_id) == ("", None)


def test_consume_that_nobody_reads_leaves_nothing_open(service: MessagingService) -> None:
    unread = service.consume("orders", group="g")
    del unread
    gc.collect()
    assert until(lambda: not service._intakes())


def test_what_a_closed_subscription_left_in_a_hand_holds_nobody_back(service: MessagingService) -> None:
    subscription = service.subscribe("orders", group="g", auto_ack=False)
    service.publish("orders", {"n": 1})
    assert subscription.next(20.0) is not None
    assert subscription._intake.is_busy(besides=0)
    subscription.close()
    assert not subscription._intake.is_busy(besides=0)


def test_a_callback_that_a_closed_subscription_left_running_is_busy(service: MessagingService) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def act(_: Delivery[Any]) -> None:
        begun.set()
        go_on.wait(10.0)

    subscription = service.subscribe("orders", group="g", callback=act)
    service.publish("orders", {"n": 1})
    assert begun.wait(10.0)
    assert len(subscription.close(0.1)) == 1
    try:
        assert subscription.closed
        assert subscription._intake.is_busy(besides=0)
    finally:
        go_on.set()
    assert until(lambda: not subscription._intake.is_busy(besides=0))


def test_what_is_still_being_closed_when_the_time_is_over_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is slow to let go says nothing in time, and by that not that all is well."""
    begun, go_on = threading.Event(), threading.Event()

    def act(_: Delivery[Any]) -> None:
        begun.set()
        go_on.wait(20.0)

    service = MessagingService(MessagingConfig(backend="memory", topic_prefix="slow"))
    busy = service.subscribe("orders", group="g", callback=act)
    idle = service.subscribe("bills", group="g")
    for subscription in (busy, idle):
        monkeypatch.setattr(subscription._intake._consumer, "close", lambda _: go_on.wait(20.0) and None)
    service.publish("orders", {"n": 1})
    assert begun.wait(20.0)
    try:
        callback, other = sorted(service.close(0.1))
    finally:
        go_on.set()
    assert callback.startswith("callback still running in thread incident-messaging-worker-g:slow.orders")
    assert other == "g:slow.bills is still being closed"
    assert until(lambda: busy.closed and idle.closed)


def test_a_callback_that_began_before_a_signal_broke_off_the_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, start = threading.Event(), threading.Event(), Workers.start

    def interrupted(workers: Workers) -> None:
        start(workers)
        assert begun.wait(20.0)
        signal.raise_signal(signal.SIGTERM)

    def act(_: Delivery[Any]) -> None:
        begun.set()
        go_on.wait(20.0)

    monkeypatch.setattr(Workers, "start", interrupted)
    service = MessagingService(MessagingConfig(backend="memory", topic_prefix="begun"))
    service.publish("orders", {"n": 1})
    service.handler("orders", group="g")(act)
    try:
        (left,) = service.run_until_signal(timeout=0.1)
    finally:
        go_on.set()
    assert left.startswith("callback still running in thread incident-messaging-worker-g:begun.orders")
    assert until(lambda: not service._intakes())


def test_a_limit_bounds_the_prefetch(service: MessagingService) -> None:
    service.publish_batch("orders", [{"n": n} for n in range(10)])
    reading = service.consume("orders", group="g", limit=2)
    next(reading)
    other = service.subscribe("orders", group="g")
    rest = [d.payload["n"] for _ in range(8) if (d := other.next(20.0))]
    assert rest == list(range(2, 10))
    assert list(service.consume("orders", group="g", limit=0)) == []
    reading.close()  # type: ignore[attr-defined]


def test_failures_of_futures_that_nobody_asks_for_are_logged(
    service: MessagingService, caplog: pytest.LogCaptureFixture
) -> None:
    ended = MessagingService(MessagingConfig(backend="memory"))
    ended.connect()
    ended._connections.outlets()[0].broker.close(None)  # type: ignore[arg-type]
    future = ended.publish_nowait("orders", {"n": 1})
    del future
    gc.collect()
    ended.close()
    assert [r for r in caplog.records if "nobody asked" in r.message and "orders" in r.message]


def test_a_callback_of_a_future_that_fails_is_logged_and_the_next_runs(
    service: MessagingService, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()
    future = service.publish_nowait("orders", {"n": 1})
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda _: done.set())
    assert done.wait(20.0)
    assert [r for r in caplog.records if r.exc_info and r.exc_info[0] is ZeroDivisionError]


def test_a_failed_callback_is_logged_once_for_each_attempt(
    service: MessagingService, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def act(delivery: Delivery[Any]) -> None:
        calls.append(delivery.attempt)
        if delivery.attempt == 1:
            raise Retry(0)

    with caplog.at_level(logging.WARNING, "incident_messaging"):
        service.subscribe("orders", callback=act)
        service.publish("orders", {"n": 1})
        assert until(lambda: calls == [1, 2])
    assert len([r for r in caplog.records if "attempt 1" in r.message]) == 1


def test_a_handler_is_declared_with_the_function_itself_returned(service: MessagingService) -> None:
    @service.handler("incidents.created", IncidentCreated, group="g")
    def opened(delivery: Delivery[IncidentCreated]) -> str:
        return delivery.payload.title

    @service.handler("incidents.statechanged", IncidentStateChanged, group="g")
    def changed(delivery: Delivery[IncidentStateChanged]) -> None:
        pass

    assert opened.__name__ == "opened"
    assert [s.topic for s in service.start_handlers()] == ["incidents.created", "incidents.statechanged"]


WORKER = """
import os, signal, sys, threading
from incident_messaging import MessagingConfig, MessagingService
service = MessagingService(MessagingConfig(backend="memory"))
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
@service.handler("orders")
def handle(delivery):
    print("handled", delivery.payload["n"], flush=True)
    if delivery.payload["n"] == 3:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
service.publish_batch("orders", [{"n": n} for n in range(4)], key="k")
print("left", service.run_until_signal(timeout=40.0))
assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
assert not [t for t in threading.enumerate() if t.name.startswith("incident-messaging")]
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_run_until_signal_handles_and_ends_by_a_signal(name: str) -> None:
    assert hasattr(signal, name)
    with takes(at_most=25.0):
        result = subprocess.run(
            [sys.executable, "-c", WORKER, name], capture_output=True, text=True, check=False, timeout=60
        )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split("\n") == ["handled 0", "handled 1", "handled 2", "handled 3", "left []", ""]


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e300])
def test_seconds_that_cannot_be_waited_are_refused_at_once(messaging: MessagingService, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match=r"handler_timeout .* is not allowed"):
        messaging.subscribe("orders", callback=print, handler_timeout=seconds)
    for wait in (messaging.run_until_signal, partial(messaging.consume_one, "orders")):
        with pytest.raises(ConfigurationError, match=r"timeout .* is not allowed"):
            wait(timeout=seconds)


SCRIPT = """
from incident_messaging import MessagingConfig, MessagingService
service = MessagingService(MessagingConfig(backend="memory"))
service.subscribe("orders", callback=print)
futures = [service.publish_nowait("orders", {"n": n}) for n in range(10)]
"""


def test_a_script_that_forgets_to_close_ends_by_itself() -> None:
    with takes(at_most=25.0):
        result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"topic": "bad topic"}, "bad topic"),
        ({"topic": "orders", "key": 7}, "key 7"),
        ({"topic": "orders", "headers": {"x-key": "mine"}}, "'x-key' is reserved"),
    ],
)
def test_what_is_wrong_with_a_whole_batch_is_refused_before_anything_is_read(
    messaging: MessagingService, given: dict[str, Any], words: str
) -> None:
    messages = iter([{}])
    with pytest.raises(ConfigurationError, match=words):
        messaging.publish_batch(**{"messages": messages, **given})
    assert next(messages) == {}
