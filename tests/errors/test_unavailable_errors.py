"""Calls that the service or a broker cannot take now, and values that are not allowed."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from error_kit import LONG, PATIENCE, Make, Provoked, frozen, row

from incident_messaging import (
    BackendUnavailable,
    ConfigurationError,
    MessagingConfig,
)
from incident_messaging.deadline import Deadline
from incident_messaging.record import Record


@row(BackendUnavailable, "disabled")
def test_subscribing_while_disabled(provoked: Provoked, on_nats: Make) -> None:
    with provoked("Messaging disabled", within=0.1):
        on_nats(enabled=False).subscribe("orders")


@row(BackendUnavailable, "closed")
@pytest.mark.parametrize("backend", ["on_nats", "on_kafka"])
def test_a_closed_service(provoked: Provoked, backend: str, request: pytest.FixtureRequest) -> None:
    service = request.getfixturevalue(backend)()
    service.connect()
    service.close()
    with provoked("closed", within=0.1):
        service.publish("orders", {"n": 1})


@row(BackendUnavailable, "window_full")
def test_a_full_window(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    server = nats_server_factory()
    service = service_on(
        backend="nats", nats={"servers": [server.url]}, max_in_flight=2, publish_timeout_ms=20_000
    )  # fmt: skip
    service.publish("orders", {"n": 0})
    with frozen(server):
        waiting = [service.publish_nowait("orders", {"n": n}) for n in (1, 2)]
        with provoked("full", "max_in_flight", within=0.0) as met:
            service.publish_nowait("orders", {"n": 3})
        with provoked("2 messages", within=0.5):
            service.publish_nowait("orders", {"n": 3}, block=0.5)
    assert met.error.retryable
    assert all(future.result(LONG) for future in waiting)


@row(BackendUnavailable, "forked")
def test_an_inherited_subscription(provoked: Provoked, on_nats: Make) -> None:
    subscription = on_nats().subscribe("orders", group="g")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with provoked("inherited", within=0.2):
                subscription.next(LONG)
            status = 0
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    assert status == 0, said
    assert subscription.next(0) is None


@row(BackendUnavailable, "loop_thread")
@pytest.mark.parametrize("backend", ["on_nats", "on_kafka"])
def test_blocking_on_a_thread_of_the_sdk(
    provoked: Provoked, backend: str, prefix: str, request: pytest.FixtureRequest
) -> None:
    service = request.getfixturevalue(backend)()
    service.connect()
    (outlet,) = service._connections.outlets()
    name = "incident-messaging-loop" if backend == "on_nats" else "incident-messaging-kafka-reports"
    met: list[BaseException] = []
    done = threading.Event()

    def call(*_: object) -> None:
        assert threading.current_thread().name == name
        try:
            service.publish("orders", {"n": 1})
        except BaseException as error:
            met.append(error)
        done.set()

    record = Record(topic=f"{prefix}.orders", body=b"{}", dedup_id="1")
    outlet.broker.send(record, Deadline.after(5.0), call)
    assert done.wait(PATIENCE)
    with provoked(name, within=0.1):
        raise met[0]


@row(BackendUnavailable, "down")
def test_nats_was_given_up(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    server = nats_server_factory()
    service = service_on(
        backend="nats", nats={"servers": [server.url], "max_reconnect_attempts": 1, "reconnect_delay_ms": 20}
    )
    subscription = service.subscribe("orders", group="g")
    server.kill()
    with provoked(server.address, within=5.0) as met:
        subscription.join(PATIENCE)
    assert met.error.retryable


@row(ConfigurationError, "invalid")
def test_a_topic_that_is_none(provoked: Provoked, on_nats: Make) -> None:
    with provoked("'not a topic'", "allowed", within=0.1) as met:
        on_nats().publish("not a topic", {})
    assert isinstance(met.error, ValueError)


@row(ConfigurationError, "invalid")
def test_a_value_that_is_not_allowed(provoked: Provoked) -> None:
    with provoked("publish_timeout_ms", "-1", within=0.1):
        MessagingConfig(publish_timeout_ms=-1)
