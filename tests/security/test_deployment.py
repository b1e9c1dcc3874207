"""What the documentation deploys: its Compose files are what they say, and their configurations make real brokers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import nkeys
import pytest
import yaml
from certificates import Authority, Kit
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from waiting import until

from incident_messaging import ConnectionFailed, MessagingConfig, MessagingService, PublishFailed, SubscribeFailed
from incident_messaging.brokers import KafkaBroker, NatsCluster, NatsServer
from incident_messaging.brokers.compose import COMPOSE_FILE, engine_answers
from incident_messaging.brokers.kafka_files import random_uuid
from incident_messaging.brokers.ports import HOST, free_port

DEPLOYMENT = COMPOSE_FILE.parent / "docs" / "deployment"
HARDENED = {"nats": DEPLOYMENT / "compose.nats.yml", "kafka": DEPLOYMENT / "compose.kafka.yml"}
#: What answers to whom: the ports that are published, and no others.
CLIENTS = {"nats": {"4222"}, "kafka": {"9093"}}
PATIENCE = 20.0


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


def properties() -> dict[str, str]:
    """The nodes' common properties, as Kafka reads them."""
    lines = (DEPLOYMENT / "kafka.properties").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


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


# What they make -----------------------------------------------------------------------------------------------------


class Deployed(NatsCluster):
    """Servers by nats.conf at other places, with an NKey for each of its users."""

    def __init__(self, kit: Kit, folder: Path) -> None:
        self.seeds = seeds()
        routes = {f"nats-{number}:6222": f"{HOST}:{free_port()}" for number in (1, 2, 3)}
        text = replaced((DEPLOYMENT / "nats.conf").read_text("utf-8"), routes | self._places(kit))
        nodes = []
        for number, route in enumerate(routes.values()):
            port = free_port()
            own = {"port: 4222": "", "port: 6222": f'listen: "{route}"', "$SERVER_NAME": f"nats-{number}",
                   "$CLIENT_ADVERTISE": f'"{HOST}:{port}"', "/data": str(folder / str(number)),
                   'http: "127.0.0.1:8222"': ""}  # fmt: skip
            nodes.append(NatsServer(port=port, jetstream=False, config=replaced(text, own)))
        super(NatsCluster, self).__init__(nodes)

    def _places(self, kit: Kit) -> dict[str, str]:
        places = {
            "/run/secrets/server.pem": str(kit.server.cert_file),
            "/run/secrets/server.key": str(kit.server.key_file),
            "/run/secrets/ca.pem": str(kit.ca_file),
        }
        return places | {f"${name}_NKEY": public_key(seed) for name, seed in self.seeds.items()}

    @property
    def copies(self) -> list[int]:
        """How many copies the stream has, as each server says that has one."""
        return [
            stream["config"]["num_replicas"]
            for node in self.nodes
            for account in node.monitor("/jsz?streams=true&config=true&accounts=true").get("account_details", ())
            for stream in account["stream_detail"]
            if stream["name"] == "LLM-IM"
        ]


def seeds() -> dict[str, bytes]:
    """An NKey for each user of nats.conf."""
    names = ("PUBLISHER", "CONSUMER", "ADMIN")
    return {name: bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)) for name in names}


def public_key(seed: bytes) -> str:
    public: bytes = nkeys.from_seed(bytearray(seed)).public_key
    return public.decode()


def replaced(text: str, places: Mapping[str, str]) -> str:
    for before, after in places.items():
        assert before in text, f"{before} is not there"
        text = text.replace(before, after)
    return text


def config_of(file: str, section: str, **places: object) -> MessagingConfig:
    """An application's configuration from the documentation, with the places of here."""
    given: dict[str, Any] = tomllib.loads((DEPLOYMENT / file).read_text("utf-8"))
    assert places.keys() <= given[section].keys()
    given[section] |= places
    return MessagingConfig.from_mapping(given)


def test_three_servers_of_nats_conf_keep_three_copies_for_who_may(certificates: Kit, tmp_path: Path) -> None:
    (tmp_path / "seed").write_bytes(b"")
    with Deployed(certificates, tmp_path) as cluster:
        servers = [f"nats://{node.address}" for node in cluster.nodes]
        config = config_of("nats.toml", "nats", servers=servers, tls_ca_file=str(certificates.ca_file),
                           nkey_seed_file=str(tmp_path / "seed"))  # fmt: skip
        (tmp_path / "seed").write_bytes(cluster.seeds["CONSUMER"])
        with MessagingService(config) as service:
            receipt = service.publish("deployed", {"n": 1})
            assert next(service.consume("deployed", timeout=PATIENCE)).payload == {"n": 1}
            assert receipt.results
        assert until(lambda: cluster.copies == [3, 3, 3], PATIENCE), cluster.copies
        (tmp_path / "seed").write_bytes(cluster.seeds["PUBLISHER"])
        with MessagingService(config) as service:
            service.publish("deployed", {"n": 2})
            with pytest.raises(SubscribeFailed, match="permission"):
                service.subscribe("deployed")
        anonymous = MessagingConfig(nats={"servers": servers, "enable_tls": True, "tls_ca_file": certificates.ca_file})
        with pytest.raises(ConnectionFailed), MessagingService(anonymous):
            pass


@pytest.fixture
def kafka(certificates: Kit, tmp_path: Path) -> Iterator[tuple[KafkaBroker, dict[str, str]]]:
    """A node by kafka.properties, alone and at other places (a plain listener is the harness's), and its addresses."""
    names = ("PLAINTEXT", "CLIENTS", "INTERNAL", "CONTROLLER")
    at = {name: f"{HOST}:{free_port()}" for name in names}
    (tmp_path / "node.pem").write_text(certificates.server.pem)
    found = properties()
    del found["log.dirs"]
    alone = {name: "1" for name in found if name.endswith(("replication.factor", "min.isr", "insync.replicas"))}
    found |= alone | {
        "num.partitions": "1",
        "controller.quorum.voters": f"1@{at['CONTROLLER']}",
        "listeners": ",".join(f"{name}://{address}" for name, address in at.items()),
        "advertised.listeners": ",".join(f"{name}://{at[name]}" for name in names[:3]),
        "listener.security.protocol.map": f"{found['listener.security.protocol.map']},PLAINTEXT:PLAINTEXT",
        "ssl.keystore.location": str(tmp_path / "node.pem"),
        "ssl.truststore.location": str(certificates.ca_file),
        "super.users": "User:CN=server;User:CN=client",
    }
    port = {name: int(address.rpartition(":")[2]) for name, address in at.items()}
    with KafkaBroker(port=port["PLAINTEXT"], controller_port=port["CONTROLLER"], config=found) as broker:
        yield broker, at


def let_in(address: str, kit: Kit, password: str) -> None:
    """What docs/deployment.rst has an administrator do: a user, and its rules."""
    admin = AdminClient(
        {
            "bootstrap.servers": address, "security.protocol": "ssl", "ssl.ca.location": str(kit.ca_file),
            "ssl.certificate.location": str(kit.client.cert_file), "ssl.key.location": str(kit.client.key_file),
        }
    )  # fmt: skip
    scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    made = UserScramCredentialUpsertion("incidents", scram, password.encode(), None)
    admin.alter_user_scram_credentials([made])["incidents"].result(PATIENCE)
    for answer in admin.create_acls(list(rights("incidents", "llm-im"))).values():
        answer.result(PATIENCE)


def test_a_node_of_kafka_properties_lets_in_whom_it_knows(
    kafka: tuple[KafkaBroker, dict[str, str]], certificates: Kit, tmp_path: Path
) -> None:
    _, at = kafka
    let_in(at["INTERNAL"], certificates, "of the test's own")
    (tmp_path / "password").write_text("of the test's own")
    config = config_of("kafka.toml", "kafka", bootstrap_servers=at["CLIENTS"], ssl_ca_file=str(certificates.ca_file),
                       sasl_password_file=str(tmp_path / "password"))  # fmt: skip
    with MessagingService(config) as service:
        service.publish("deployed", {"n": 1})
        assert next(service.consume("deployed", timeout=PATIENCE)).payload == {"n": 1}
    with (
        MessagingService(attrs.evolve(config, topic_prefix="other")) as service,
        pytest.raises(PublishFailed) as caught,
    ):
        service.publish("deployed", {"n": 1})
    assert caught.value.code == "denied"
    without = {"bootstrap_servers": at["CLIENTS"], "enable_ssl": True, "ssl_ca_file": certificates.ca_file}
    with pytest.raises(ConnectionFailed), MessagingService(MessagingConfig(backend="kafka", kafka=without)):
        pass


def rights(user: str, prefix: str) -> Iterator[AclBinding]:
    """The rules that docs/deployment.rst makes: all topics of a prefix, made where they are missing, and one group."""
    allowed = {
        (ResourceType.TOPIC, f"{prefix}."): ("WRITE", "READ", "CREATE"),
        (ResourceType.GROUP, "incident-manager-group"): ("READ",),
    }
    for (kind, name), operations in allowed.items():
        for operation in operations:
            yield AclBinding(
                kind, name, ResourcePatternType.PREFIXED, f"User:{user}", "*", AclOperation[operation],
                AclPermissionType.ALLOW,
            )  # fmt: skip


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
