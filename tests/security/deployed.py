"""What docs/deployment has three nodes of, started for real: its configurations with the places of here."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nkeys
from certificates import Kit
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from waiting import until

from incident_messaging import MessagingConfig
from incident_messaging.brokers import KafkaBroker, KafkaCluster, NatsCluster, NatsServer
from incident_messaging.brokers.compose import COMPOSE_FILE
from incident_messaging.brokers.kafka_files import random_uuid
from incident_messaging.brokers.ports import HOST, free_port

DEPLOYMENT = COMPOSE_FILE.parent / "docs" / "deployment"
#: Seconds for one answer of a broker.
PATIENCE = 20.0
#: Whom the page lets in to Kafka.
USER, PASSWORD = "incidents", "of the test's own"

_LISTENERS = ("CLIENTS", "INTERNAL", "CONTROLLER")
#: A topic by which a user sees that it has its rights.
_SEEN = "llm-im.let-in"


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


# NATS ---------------------------------------------------------------------------------------------------------------


class DeployedNats(NatsCluster):
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


# Kafka --------------------------------------------------------------------------------------------------------------


def properties() -> dict[str, str]:
    """The nodes' common properties, as Kafka reads them."""
    lines = (DEPLOYMENT / "kafka.properties").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


class _Node(KafkaBroker):
    """A node that nobody gets into in plain text; the harness comes as the administrator, as the health check does."""

    def __init__(self, administrator: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self._administrator = administrator

    def _way_in(self) -> dict[str, str]:
        return dict(self._administrator)


class DeployedKafka(KafkaCluster):
    """Nodes by kafka.properties at other places, with a certificate each, and the user whom the page makes."""

    def __init__(self, kit: Kit, folder: Path) -> None:
        shown = kit.authority.issue("kafka-admin", hosts=())
        self._administrator = {
            "security.protocol": "ssl",
            "ssl.ca.location": str(kit.ca_file),
            "ssl.certificate.location": str(shown.cert_file),
            "ssl.key.location": str(shown.key_file),
        }
        at = {number: {name: f"{HOST}:{free_port()}" for name in _LISTENERS} for number in (1, 2, 3)}
        self.internal = [places["INTERNAL"] for places in at.values()]
        controllers = {f"kafka-{number}:9095": places["CONTROLLER"] for number, places in at.items()}
        common = properties()
        common["controller.quorum.voters"] = replaced(common["controller.quorum.voters"], controllers)
        common["ssl.truststore.location"] = str(kit.ca_file)
        del common["log.dirs"]
        cluster_id, nodes = random_uuid(), []
        for number, places in at.items():
            store = folder / f"kafka-{number}.pem"
            store.write_text(kit.authority.issue(f"kafka-{number}").pem)
            own = {
                "listeners": replaced(common["listeners"], _moved(places)),
                # The environment has it in the Compose file.
                "advertised.listeners": ",".join(f"{name}://{places[name]}" for name in ("CLIENTS", "INTERNAL")),
                "ssl.keystore.location": str(store),
            }
            way_in = self._administrator | {"bootstrap.servers": places["INTERNAL"]}
            nodes.append(_Node(way_in, config=common | own, node_id=number, cluster_id=cluster_id, **_ports(places)))
        super(KafkaCluster, self).__init__(nodes)

    @property
    def admin(self) -> AdminClient:
        """As the administrator; keep it until its answers are there."""
        return AdminClient({**self._administrator, "bootstrap.servers": ",".join(self.internal), "log_level": 0})

    def let_in(self) -> None:
        """What docs/deployment.rst has an administrator do: a user, and its rules."""
        admin = self.admin
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        made = UserScramCredentialUpsertion(USER, scram, PASSWORD.encode(), None)
        admin.alter_user_scram_credentials([made])[USER].result(PATIENCE)
        for answer in admin.create_acls(list(_rights("llm-im"))).values():
            answer.result(PATIENCE)
        admin.create_topics([NewTopic(_SEEN)])[_SEEN].result(PATIENCE)
        assert until(lambda: all(map(self._lets_in, self.nodes)), 3 * PATIENCE), "each takes it over in its own time"

    def _lets_in(self, node: KafkaBroker) -> bool:
        """Whether a node knows the user's password, and shows it what its rules are about."""
        login = {"sasl.mechanisms": "SCRAM-SHA-512", "sasl.username": USER, "sasl.password": PASSWORD}
        login |= {"security.protocol": "sasl_ssl", "ssl.ca.location": self._administrator["ssl.ca.location"]}
        user = AdminClient({**login, "bootstrap.servers": node.address, "log_level": 0})
        try:
            return _SEEN in user.list_topics(timeout=2.0).topics
        except KafkaException:
            return False

    def replicas(self, topic: str) -> set[int]:
        """How many copies each partition has."""
        admin = self.admin
        return {
            len(one.replicas) for one in admin.list_topics(topic, timeout=PATIENCE).topics[topic].partitions.values()
        }


def _moved(places: Mapping[str, str]) -> dict[str, str]:
    return {
        f"{name}://:{port}": f"{name}://{places[name]}"
        for name, port in zip(_LISTENERS, (9093, 9094, 9095), strict=True)
    }


def _ports(places: Mapping[str, str]) -> dict[str, int]:
    port = {name: int(address.rpartition(":")[2]) for name, address in places.items()}
    return {"port": port["CLIENTS"], "controller_port": port["CONTROLLER"]}


def _rights(prefix: str) -> Iterator[AclBinding]:
    """The rules that docs/deployment.rst makes: all topics of a prefix, made where they are missing, and one group."""
    allowed = {
        (ResourceType.TOPIC, f"{prefix}."): ("WRITE", "READ", "CREATE"),
        (ResourceType.GROUP, "incident-manager-group"): ("READ",),
    }
    for (kind, name), operations in allowed.items():
        for operation in operations:
            yield AclBinding(
                kind, name, ResourcePatternType.PREFIXED, f"User:{USER}", "*", AclOperation[operation],
                AclPermissionType.ALLOW,
            )  # fmt: skip
