"""``docker-compose.yml`` and the way to it; no Docker engine is needed to read them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from broker_clients import RawNats

from incident_messaging.brokers import KafkaBroker, NatsServer
from incident_messaging.brokers.compose import COMPOSE_FILE, compose_kafka, compose_nats, engine_answers

NATS_CONFIG = COMPOSE_FILE.parent / "docs" / "examples" / "compose" / "nats.conf"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))["services"]
    return services


def test_one_nats_and_one_kafka_of_a_pinned_version(services: dict[str, Any]) -> None:
    assert set(services) == {"nats", "kafka"}
    for service in services.values():
        assert re.fullmatch(r"(nats|apache/kafka):\d+\.\d+\.\d+(-alpine)?", service["image"])


def test_every_port_is_of_the_loopback_and_every_service_has_a_health_check(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service["ports"]]

    assert len(ports) == 3, "clients and monitoring of NATS, clients of Kafka"
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all(service["healthcheck"]["test"] for service in services.values())


def test_kafka_runs_there_with_the_settings_it_runs_with_here(services: dict[str, Any]) -> None:
    environment = services["kafka"]["environment"]
    there = {key.removeprefix("KAFKA_").lower().replace("_", "."): str(env) for key, env in environment.items()}
    broker = KafkaBroker()
    here = broker._properties()
    broker.close()

    assert set(there) <= set(here)
    places = {"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"}
    assert {key: there[key] for key in set(there) - places} == {key: here[key] for key in set(there) - places}


def test_the_nats_configuration_is_mounted_where_the_command_looks(services: dict[str, Any]) -> None:
    source, target, mode = services["nats"]["volumes"][0].split(":")

    assert (COMPOSE_FILE.parent / source).resolve() == NATS_CONFIG
    assert services["nats"]["command"] == ["--config", target]
    assert mode == "ro"


def test_the_nats_configuration_makes_a_real_server_with_jetstream_and_ten_megabytes(tmp_path: Path) -> None:
    text = NATS_CONFIG.read_text("utf-8").replace("/data", str(tmp_path))
    places = ("server_name:", "port:", "http_port:")  # those are the test server's own
    config = "\n".join(line for line in text.splitlines() if not line.startswith(places))

    with NatsServer(jetstream=False, config=config) as server:
        assert server.monitor("/varz")["max_payload"] == 10 * 1024 * 1024
        RawNats(server.url).write("one")


@pytest.fixture
def docker_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``docker`` that only writes down how it was called, and fails where the file ``fail`` exists."""
    calls = tmp_path / "calls"
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$NATS_PORT $KAFKA_PORT $*" >>{calls}\ncase "$*" in *up*) ! test -e {tmp_path}/fail;; esac\n'
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return calls


def test_compose_brings_one_service_up_on_a_free_port_and_takes_it_down(docker_calls: Path) -> None:
    with compose_kafka() as kafka:
        port = kafka.bootstrap_servers.removeprefix("127.0.0.1:")
    with compose_nats() as nats:
        assert nats.url == f"nats://{nats.address}"

    up, down, *_ = docker_calls.read_text().splitlines()
    assert up.split()[0] == port
    assert up.endswith("up --wait kafka")
    assert down.endswith("down -v")


def test_containers_that_never_get_healthy_are_taken_down_too(docker_calls: Path, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()

    with pytest.raises(Exception, match=r"up --wait nats.*returned 1"), compose_nats():
        pytest.fail("it never came up")

    assert docker_calls.read_text().splitlines()[-1].endswith("down -v")


def test_without_an_engine_the_fixtures_use_local_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine_answers.cache_clear()
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\n[ $1 = compose ] || { echo 'Cannot connect to the Docker daemon' >&2; exit 1; }\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    try:
        assert subprocess.run([docker, "compose", "version"], check=False).returncode == 0
        assert engine_answers() is False
    finally:
        engine_answers.cache_clear()
