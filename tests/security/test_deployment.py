"""What the documentation deploys: its files say what the page does, and an engine starts them (see `deployed`, too)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import Authority
from deployed import DEPLOYMENT, properties, public_key, seeds

from incident_messaging.brokers.compose import COMPOSE_FILE, engine_answers
from incident_messaging.brokers.kafka_files import random_uuid
from incident_messaging.brokers.ports import HOST

HARDENED = {"nats": DEPLOYMENT / "compose.nats.yml", "kafka": DEPLOYMENT / "compose.kafka.yml"}
#: What answers to whom: the ports that are published, and no others.
CLIENTS = {"nats": {"4222"}, "kafka": {"9093"}}


@pytest.fixture(params=HARDENED)
def broker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def compose(broker: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(HARDENED[broker].read_text("utf-8"))
    return found


@pytest.fixture
def services(compose: dict[str, Any]) -> list[dict[str, Any]]:
    return list(compose["services"].values())


# What the files say -------------------------------------------------------------------------------------------------


def test_three_of_a_pinned_version_the_same_as_for_development(broker: str, services: list[dict[str, Any]]) -> None:
    development = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))["services"]
    assert [service["image"] for service in services] == [development[broker]["image"]] * 3
    assert re.search(r":\d+\.\d+\.\d+", services[0]["image"])


def test_only_what_clients_log_in_to_is_published(broker: str, services: list[dict[str, Any]]) -> None:
    ports = [port.split(":") for service in services for port in service["ports"]]
    assert {inside for _, inside in ports} == CLIENTS[broker]
    assert len({outside for outside, _ in ports}) == 3


def test_each_keeps_its_data_and_is_bounded_looked_after_and_without_rights(
    compose: dict[str, Any], services: list[dict[str, Any]]
) -> None:
    kept = [
        volume for service in services for volume in service["volumes"] if volume.split(":")[0] in compose["volumes"]
    ]
    assert len(set(kept)) == len(compose["volumes"]) == 3
    assert compose["networks"]["cluster"] == {"internal": True}
    for service in services:
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() == {"cpus", "memory", "pids"}
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}
        mounted = [volume for volume in service["volumes"] if volume.startswith("./")]
        assert all(volume.endswith(":ro") and (DEPLOYMENT / volume.split(":")[0]).is_file() for volume in mounted)


def test_secrets_are_files_and_in_no_environment(compose: dict[str, Any], services: list[dict[str, Any]]) -> None:
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    for number, service in enumerate(services, 1):
        sources = {secret["source"] for secret in service["secrets"]}
        assert all(source in compose["secrets"] for source in sources)
        assert all(source == "ca.pem" or f"-{number}." in source for source in sources), "a node has its own keys alone"
        assert not re.search(r"(?i)password|secret|seed|token", str(service["environment"]))


def test_no_listener_of_kafka_is_plain_and_nobody_is_let_in_by_default() -> None:
    found = properties()
    protocols = dict(each.split(":") for each in found["listener.security.protocol.map"].split(","))
    names = [each.split(":")[0] for each in found["listeners"].split(",")]
    assert {name: protocols[name] for name in names} == {"CLIENTS": "SASL_SSL", "INTERNAL": "SSL", "CONTROLLER": "SSL"}
    for name in ("internal", "controller"):
        assert found[f"listener.name.{name}.ssl.client.auth"] == "required"
    assert found["authorizer.class.name"].endswith("StandardAuthorizer")
    assert found["allow.everyone.if.no.acl.found"] == "false"
    assert "ANONYMOUS" not in found["super.users"]
    assert found["sasl.enabled.mechanisms"] == "SCRAM-SHA-512"
    assert (found["default.replication.factor"], found["min.insync.replicas"]) == ("3", "2")


@pytest.mark.parametrize("name", ["nats.toml", "kafka.toml"])
def test_the_page_shows_the_configuration_that_is_tested(name: str) -> None:
    shown = textwrap.indent((DEPLOYMENT / name).read_text("utf-8"), "   ")
    assert shown in (DEPLOYMENT.parent / "deployment.rst").read_text("utf-8")


# What they start ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
@pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here: the containers were not started")
def test_an_engine_starts_them(broker: str, compose: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(DEPLOYMENT, tmp_path / "deployment")
    secrets = tmp_path / "deployment" / "secrets"
    secrets.mkdir()
    authority = Authority(secrets, "made")
    shutil.copyfile(authority.ca_file, secrets / "ca.pem")
    for name in compose["services"]:
        issued = authority.issue(name, hosts=(name, "localhost", HOST))
        (secrets / f"{name}.key").write_bytes(issued.key_file.read_bytes())
        (secrets / f"{name}.pem").write_text(issued.cert_file.read_text() if broker == "nats" else issued.pem)
    for file in secrets.iterdir():
        file.chmod(0o644)  # the users in the containers are others
    environment = os.environ | {"NATS_HOST": "localhost", "KAFKA_HOST": "localhost", "KAFKA_CLUSTER_ID": random_uuid()}
    environment |= {f"{name}_NKEY": public_key(seed) for name, seed in seeds().items()}
    file = tmp_path / "deployment" / HARDENED[broker].name
    command = ["docker", "compose", "-p", f"incident-messaging-{os.getpid()}", "-f", str(file)]
    try:
        subprocess.run([*command, "up", "--wait"], check=True, env=environment, timeout=170)
    finally:
        subprocess.run([*command, "down", "-v"], check=True, env=environment, timeout=60)
