"""Connections that cannot be had."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from error_kit import LONG, PATIENCE, Make, Provoked, row
from waiting import until

from incident_messaging import (
    ConnectionFailed,
    MessagingService,
)
from incident_messaging.brokers.ports import free_port

CALLS: dict[str, Callable[[MessagingService], object]] = {
    "connect": lambda service: service.connect(LONG),
    "publish": lambda service: service.publish("orders", {"n": 1}, timeout=LONG),
    "publish_nowait": lambda service: service.publish_nowait("orders", {"n": 1}).result(LONG),
    "subscribe": lambda service: service.subscribe("orders", timeout=LONG),
}


@row(ConnectionFailed, "unreachable")
@pytest.mark.parametrize("call", CALLS)
def test_a_dead_port_says_no_at_once_on_nats(provoked: Provoked, service_on: Make, call: str, capfd: Any) -> None:
    port = free_port()
    service = service_on(backend="nats", nats={"servers": [f"nats://127.0.0.1:{port}"]}, publish_timeout_ms=20_000)
    with provoked(f"NATS connection failed: connection refused (nats://127.0.0.1:{port})", within=1.0) as met:
        CALLS[call](service)
    assert (met.error.backend, met.error.retryable, isinstance(met.error, ConnectionError)) == ("nats", True, True)
    assert capfd.readouterr().err == ""


@row(ConnectionFailed, "unreachable")
@pytest.mark.parametrize("call", CALLS)
def test_a_dead_port_says_no_at_once_on_kafka(provoked: Provoked, service_on: Make, call: str, capfd: Any) -> None:
    port = free_port()
    service = service_on(backend="kafka", kafka={"bootstrap_servers": f"127.0.0.1:{port}"}, publish_timeout_ms=20_000)
    words = f"Kafka producer creation failed: broker not available (127.0.0.1:{port})"
    with provoked(words, within=3.0) as met:
        CALLS[call](service)
    assert (met.error.backend, met.error.retryable) == ("kafka", True)
    assert capfd.readouterr().err == ""


@row(ConnectionFailed, "unreachable")
@pytest.mark.parametrize("backend", ["nats", "kafka"])
def test_a_port_that_never_answers_ends_by_the_timeout(provoked: Provoked, service_on: Make, backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        service = service_on(
            backend=backend, nats={"servers": [address]}, kafka={"bootstrap_servers": address}
        )  # fmt: skip
        with provoked(address, within=1.0):
            service.connect(1.0)
        service.close(1.0)


@row(ConnectionFailed, "unauthorized")
def test_nats_does_not_let_in(provoked: Provoked, service_on: Make, nats_server_factory: Any) -> None:
    server = nats_server_factory(config='authorization { user: "app", password: "right" }')
    service = service_on(backend="nats", nats={"servers": [server.url], "user": "app", "password": "wrong-secret"})
    with provoked("NATS", server.address, within=1.0) as met:
        service.connect(LONG)
    assert "wrong-secret" not in str(met.error)


@row(ConnectionFailed, "unauthorized")
def test_kafka_does_not_let_in(provoked: Provoked, service_on: Make, kafka_broker_factory: Any) -> None:
    port, controller, login = free_port(), free_port(), free_port()
    jaas = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_app="right";'
    kafka_broker_factory(
        port=port,
        controller_port=controller,
        config={
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL://127.0.0.1:{login}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{login}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": jaas,
        },
    )
    login_of = {
        "bootstrap_servers": f"127.0.0.1:{login}", "enable_sasl": True, "sasl_mechanism": "PLAIN",
        "sasl_username": "app",
    }  # fmt: skip
    service = service_on(backend="kafka", kafka={**login_of, "sasl_password": "wrong-secret"})
    with provoked("Kafka login failed", f"127.0.0.1:{login}", within=5.0) as met:
        service.connect(LONG)
    assert "wrong-secret" not in str(met.error)
    service_on(backend="kafka", kafka={**login_of, "sasl_password": "right"}).connect(LONG)


@row(ConnectionFailed, "tls")
def test_nats_without_tls_is_refused_and_told_nothing(provoked: Provoked, service_on: Make, later: Any) -> None:
    told: list[bytes] = []

    def serve() -> None:
        peer, _ = plain.accept()
        with peer:
            peer.sendall(b'INFO {"server_id":"x","version":"2.10.0","headers":true,"max_payload":1024}\r\n')
            peer.settimeout(PATIENCE)
            told.append(peer.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as plain:
        address = f"127.0.0.1:{plain.getsockname()[1]}"
        later(serve)
        login = {"servers": [f"nats://{address}"], "enable_tls": True, "user": "app", "password": "secret"}
        service = service_on(backend="nats", nats=login)
        with provoked("TLS", address, within=1.0):
            service.connect(LONG)
        service.close()
        assert until(lambda: told, PATIENCE)
    assert told == [b""]


@row(ConnectionFailed, "tls")
def test_kafka_without_tls_is_refused(provoked: Provoked, service_on: Make, kafka_broker: Any) -> None:
    address = kafka_broker.bootstrap_servers
    service = service_on(backend="kafka", kafka={"bootstrap_servers": address, "enable_ssl": True})
    with provoked("TLS", address, within=5.0):
        service.connect(LONG)


@pytest.mark.parametrize("delivery", ["jetstream", "core"])
def test_health_says_that_nobody_answers(service_on: Make, delivery: str) -> None:
    service = service_on(backend="nats", nats={"servers": [f"nats://127.0.0.1:{free_port()}"], "delivery": delivery})
    assert service.health().ok, "nobody has asked for a connection"
    for call in (lambda: service.publish("orders", {}), lambda: service.subscribe("orders")):
        with pytest.raises(ConnectionFailed):
            call()
    health = service.health()
    assert not health.ok
    assert "connection refused" in str(health.backends["nats"].error)
    assert health.ended == {}, "a subscription that never began has not ended"
