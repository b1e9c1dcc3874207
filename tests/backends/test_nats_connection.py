"""Connecting, staying connected, and saying what is wrong."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nats_kit import SLACK, Outcomes, Reader, api, fails, in_time, publish, record
from waiting import takes, until

from incident_messaging.backends.nats.broker import NatsBroker
from incident_messaging.brokers.cluster import NatsCluster
from incident_messaging.errors import BackendUnavailable, ConfigurationError, ConnectionFailed, Timeout

Brokers = Callable[..., NatsBroker]
Servers = Callable[..., Any]
Read = Callable[..., Reader]

PASSWORD = 'authorization { user: "u", password: "right" }'


def refused(broker: NatsBroker, seconds: float = 4 * SLACK) -> ConnectionFailed:
    with pytest.raises(ConnectionFailed) as caught:
        broker.connect(in_time(seconds))
    return caught.value


def test_the_constructor_does_nothing(new_broker: Brokers, free_port: int) -> None:
    before = set(threading.enumerate())
    broker = new_broker(f"nats://127.0.0.1:{free_port}")
    assert set(threading.enumerate()) <= before
    assert broker.status().state == "new"
    assert broker.close(in_time()) == 0
    assert broker.status().state == "closed"


def test_connecting_and_closing_leaves_nothing(broker: NatsBroker) -> None:
    for _ in range(2):
        broker.connect(in_time())
    assert broker.status().state == "connected"
    assert [t.name for t in threading.enumerate()].count("incident-messaging-loop") == 1
    broker.close(in_time())
    assert "incident-messaging-loop" not in [t.name for t in threading.enumerate()]


def test_every_address_is_named(new_broker: Brokers, free_port: int) -> None:
    broker = new_broker(f"nats://127.0.0.1:{free_port},nats://127.0.0.1:1")
    with takes(at_most=SLACK):
        error = refused(broker)
    assert error.code == "unreachable"
    assert f"(nats://127.0.0.1:{free_port})" in str(error)
    assert "(nats://127.0.0.1:1)" in str(error)
    assert isinstance(error.__cause__, OSError)


def test_a_dead_port_is_logged_once(new_broker: Brokers, free_port: int, caplog: Any) -> None:
    broker = new_broker(f"nats://127.0.0.1:{free_port}")
    for _ in range(3):
        fails(broker, record("t.orders"))
    assert [each.levelno for each in caplog.records] == [logging.ERROR]


def test_one_good_address_is_enough(nats_server: Any, new_broker: Brokers, free_port: int) -> None:
    for _ in range(4):
        new_broker(f"nats://127.0.0.1:{free_port},{nats_server.url}").connect(in_time())


def test_a_name_that_is_not_known(new_broker: Brokers) -> None:
    assert "host name not known" in str(refused(new_broker("nats://no-such-host.invalid:4222")))


def test_a_port_that_says_nothing(new_broker: Brokers, silent_port: int) -> None:
    broker = new_broker(f"nats://127.0.0.1:{silent_port}")
    with takes(at_most=0.5 + SLACK, at_least=0.4):
        error = refused(broker, 0.5)
    assert error.code == "unreachable"
    assert "no answer" in str(error)


def test_a_server_that_comes_up_meanwhile_is_not_waited_for_but_found_by_the_next_call(
    nats_server_factory: Servers, new_broker: Brokers
) -> None:
    server = nats_server_factory()
    server.kill()
    broker = new_broker(server.url)
    refused(broker)
    server.start()
    broker.connect(in_time())
    assert broker.status().state == "connected"


def test_a_wrong_password_is_said_at_once_and_never_shown(
    nats_server_factory: Servers, new_broker: Brokers, caplog: Any
) -> None:
    broker = new_broker(nats_server_factory(config=PASSWORD).url, user="u", password="the-wrong-one")
    with takes(at_most=2 * SLACK):
        error = refused(broker)
    assert error.code == "unauthorized"
    assert "authorization violation" in str(error)
    assert "the-wrong-one" not in str(error) + caplog.text + str(broker.status())
    assert fails(broker, record("t.orders")).code == "unauthorized"


def test_a_password_changed_while_connected(nats_server_factory: Servers, new_broker: Brokers, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("right")
    server = nats_server_factory(config=PASSWORD)
    broker = new_broker(server.url, user="u", password_file=secret, reconnect_delay_ms=50)
    publish(broker, "t.orders", ["0"])
    server.stop()
    server._config = PASSWORD.replace("right", "rotated")
    server.start()
    assert until(lambda: "authorization" in (broker.status().error or ""))
    assert isinstance(fails(broker, record("t.orders"), 0.3), Timeout)
    secret.write_text("rotated")
    with takes(at_most=2 * SLACK):
        publish(broker, "t.orders", ["1"])


def test_a_server_that_is_too_old(new_broker: Brokers, fake_server: Callable[..., int]) -> None:
    port = fake_server(version="2.9.25")
    with pytest.raises(ConfigurationError, match=r"2\.9\.25.*2\.10"):
        new_broker(f"nats://127.0.0.1:{port}").connect(in_time())


def test_credentials_that_cannot_be_read(nats_server: Any, new_broker: Brokers, tmp_path: Path) -> None:
    broker = new_broker(nats_server.url, credentials=tmp_path / "missing.creds")
    with pytest.raises(ConfigurationError, match=r"missing\.creds"):
        broker.connect(in_time())


# -- TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture
def tls_server(nats_server_factory: Servers, certificate: tuple[Path, Path]) -> Any:
    cert, key = certificate
    return nats_server_factory(config=f'tls {{ cert_file: "{cert}", key_file: "{key}" }}')


def test_tls(tls_server: Any, new_broker: Brokers, certificate: tuple[Path, Path], read: Read) -> None:
    broker = new_broker(tls_server.url, enable_tls=True, tls_ca_file=certificate[0])
    reader = read(broker, "t.orders")
    publish(broker, "t.orders", ["0"])
    assert reader.wait(1) == ["0"]
    tls_server.restart()
    publish(broker, "t.orders", ["1"])
    assert reader.wait(2) == ["0", "1"]


def test_an_unknown_authority(tls_server: Any, new_broker: Brokers) -> None:
    broker = new_broker(tls_server.url, enable_tls=True)
    with takes(at_most=2 * SLACK):
        error = refused(broker)
    assert error.code == "tls"
    assert "self-signed certificate" in str(error)


def test_tls_and_a_server_without(nats_server: Any, new_broker: Brokers) -> None:
    error = refused(new_broker(nats_server.url, enable_tls=True, user="u", password="p"))
    assert error.code == "tls"
    assert "offers none" in str(error)


def test_tls_files_that_cannot_be_used(nats_server: Any, new_broker: Brokers, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    broker = new_broker(nats_server.url, enable_tls=True, tls_ca_file=tmp_path / "ca.pem")
    with pytest.raises(ConfigurationError, match="TLS files"):
        broker.connect(in_time())


# -- staying connected --------------------------------------------------------------------------------


def test_usable_again_soon_after_a_restart(nats_server_factory: Servers, new_broker: Brokers) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, reconnect_delay_ms=60_000)
    publish(broker, "t.orders", ["0"])
    server.kill()
    server.start()
    with takes(at_most=2 * SLACK):  # the first pauses between two attempts are far shorter than the longest
        publish(broker, "t.orders", ["1"])


def test_a_long_outage_is_logged_once_per_change(
    nats_server_factory: Servers, new_broker: Brokers, caplog: Any, capfd: Any
) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, reconnect_delay_ms=30)
    broker.connect(in_time())
    server.kill()
    assert until(lambda: "connection refused" in (broker.status().error or ""))
    assert isinstance(fails(broker, record("t.orders"), 0.5), Timeout)
    server.start()
    assert until(lambda: broker.status().state == "connected")
    lines = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(lines) == 2, [each.message for each in lines]
    assert {each.name for each in lines} == {"incident_messaging.nats"}
    assert capfd.readouterr().err == ""


def test_a_client_that_closed_for_good_is_replaced(
    nats_server: Any, broker: NatsBroker, prefix: str, read: Read
) -> None:
    reader = read(broker, f"{prefix}.orders")
    publish(broker, f"{prefix}.orders", ["0"])
    reader.wait(1)  # what is on its way then comes again after the ack time-out
    client = broker._connection._client
    assert client is not None
    broker._loop.run(client.close, in_time(), "closing it behind the broker's back")
    publish(broker, f"{prefix}.orders", ["1"])
    assert reader.wait(2) == ["0", "1"]


def test_a_client_whose_reader_died_is_replaced(nats_server: Any, new_broker: Brokers, prefix: str, read: Read) -> None:
    # What the server has sent to the dead one comes again after the ack time-out.
    broker = new_broker(nats_server.url, prefix=prefix, ack_wait_ms=1000)
    reader = read(broker, f"{prefix}.orders")
    publish(broker, f"{prefix}.orders", ["0"])
    reader.wait(1)
    task = broker._connection._client._reading_task  # type: ignore[union-attr]
    assert task is not None
    broker._loop.call(task.cancel)  # type: ignore[arg-type]
    outcomes = Outcomes()
    outcomes.send(broker, record(f"{prefix}.orders", "1"))
    assert outcomes.wait(seconds=2 * SLACK) == [None]
    assert reader.wait(2) == ["0", "1"]


@pytest.mark.parametrize("attempts", [0, 2])
def test_when_attempts_are_counted_the_end_is_told(
    nats_server_factory: Servers, new_broker: Brokers, read: Read, attempts: int
) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, max_reconnect_attempts=attempts, reconnect_delay_ms=20)
    reader = read(broker, "t.orders")
    publish(broker, "t.orders", ["0"])
    server.kill()
    error = reader.wait_ended()
    assert isinstance(error, BackendUnavailable)
    assert error.code == "down"
    assert f"max_reconnect_attempts={attempts}" in str(error)
    server.start()
    publish(broker, "t.orders", ["1"])  # the next use tries again


def test_a_cut_connection_is_made_again(nats_server: Any, broker: NatsBroker, prefix: str, read: Read) -> None:
    reader = read(broker, f"{prefix}.orders")
    for number in range(20):
        client = broker._connection._client
        assert client is not None
        broker._loop.call(client.abort)
        publish(broker, f"{prefix}.orders", [number])
        reader.wait(number + 1)  # what is on its way when it is cut comes again after the ack time-out
    assert reader.wait(20) == [str(number) for number in range(20)]


@pytest.mark.slow
def test_a_server_that_is_about_to_leave_is_left(new_broker: Brokers, read: Read) -> None:
    with NatsCluster(3) as cluster:
        # What the server has sent when it leaves comes again after the ack time-out.
        broker = new_broker(",".join(cluster.urls), prefix="t", ack_wait_ms=2000)
        reader = read(broker, "t.orders")
        publish(broker, "t.orders", ["0"])
        reader.wait(1)
        server = next(node for node in cluster.nodes if node.url == broker._connection._where())
        assert server.pid is not None
        os.kill(server.pid, signal.SIGUSR2)  # lame duck mode; its own time is 10 s
        assert until(lambda: broker._connection._where() != server.url and broker.status().state == "connected", 9.0)
        publish(broker, "t.orders", ["1"])
        assert reader.wait(2) == ["0", "1"]
        assert api(broker._connection._where(), "STREAM.INFO.T")["config"]["num_replicas"] == 3


def test_a_child_process_makes_a_new_one_and_harms_no_other(nats_server: Any, new_broker: Brokers, prefix: str) -> None:
    # By name: the threads that look it up are not in the child either.
    broker = new_broker(nats_server.url.replace("127.0.0.1", "localhost"), prefix=prefix)
    publish(broker, f"{prefix}.orders", ["parent"])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ours = NatsBroker(broker._config)
            publish(ours, f"{prefix}.orders", ["child"])
            ours.close(in_time(1.0))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with takes(at_most=2 * SLACK):
        publish(broker, f"{prefix}.orders", ["parent again"])
    assert broker.status().state == "connected"


def test_many_connections_leave_nothing(nats_server: Any, new_broker: Brokers, prefix: str) -> None:
    for number in range(20):
        broker = new_broker(nats_server.url, prefix=prefix)
        publish(broker, f"{prefix}.orders", [number])
        broker.close(in_time())
