"""The command ``incident-messaging doctor`` where not everybody is let in: rights on Kafka, TLS and logins on both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import doctor_kit
import pytest
from certificates import Kit
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType
from kafka_secured import USER, USER_PASSWORD, SecuredKafka
from nats_secured import tls
from test_kafka_rights import DEAD_LETTERS, ROLES, rule

from incident_messaging.brokers import NatsServer

TOPIC = "operations.audit"


def ask(secured: SecuredKafka, listener: str, *options: str, **kafka: Any) -> doctor_kit.Answer:
    """Have the doctor look by a listener, with fields of ``KafkaConfig`` that win over what the listener wants."""
    settings = {f"kafka.{name}": value for name, value in secured.settings(listener, **kafka).items()}
    base = {"backend": "kafka", "topic_prefix": "operations", "kafka.replication_factor": 1}
    return doctor_kit.ask(base | settings, *options)


def as_user(secured: SecuredKafka, role: str) -> doctor_kit.Answer:
    options = ["--topic", "audit"]
    if not role.startswith("Both"):
        options += ["--role", "publisher" if role.startswith("A publisher") else "consumer"]
    creates = "makes topics" in role
    login = {"sasl_username": USER, "sasl_password": USER_PASSWORD, "create_topics": creates}
    return ask(secured, "SASL_BARE", *options, **login)


def granted(remedy: str) -> AclBinding:
    """The access rule that the command of a remedy makes."""
    command = remedy.split("; ")[0]
    assert command.startswith("kafka-acls.sh --bootstrap-server "), remedy
    return rule(f"kafka-acls {command[command.index('--add') :]}")


@pytest.fixture
def topics(secured_kafka: SecuredKafka) -> None:
    secured_kafka.remove("operations.")
    secured_kafka.make(TOPIC, DEAD_LETTERS)


@pytest.mark.parametrize("role", ["A publisher", "A consumer", "Both"])
def test_the_smallest_rights_are_enough_for_the_doctor(secured_kafka: SecuredKafka, topics: None, role: str) -> None:
    """It finds nothing but that it may not read settings, and says which right shows them."""
    secured_kafka.allow(ROLES[role])
    answer = as_user(secured_kafka, role)
    assert answer.bad == {("settings", "warning")}
    assert answer.exit_code == 1
    remedies = [each["remedy"] for each in answer.of("settings")]
    assert all("--operation DescribeConfigs" in remedy for remedy in remedies), remedies
    assert answer.worst("retention")["severity"] == "not done"


def denied(role: str, missing: int, check: str, says: str) -> Any:
    return pytest.param(role, missing, check, says, id=f"{role}-{missing}")


@pytest.mark.parametrize(
    ("role", "missing", "check", "says"),
    [
        denied("A publisher", 0, "topic", f"Kafka shows the user no topic {TOPIC}"),
        denied("A consumer", 0, "topic", f"Kafka shows the user no topic {TOPIC}"),
        denied("A consumer", 1, "right to subscribe", "keep a place as group incident-manager-group:operations.audit"),
        denied("A consumer", 2, "right to subscribe", f"may not write {DEAD_LETTERS}"),
        denied("Both", 0, "right to subscribe", f"may not read {TOPIC}"),
        denied("Both", 1, "right to publish", f"may not write {TOPIC}"),
    ],
)
def test_a_right_that_is_missing_and_the_rule_that_grants_it(
    secured_kafka: SecuredKafka, topics: None, role: str, missing: int, check: str, says: str
) -> None:
    rights = ROLES[role][:missing] + ROLES[role][missing + 1 :]
    secured_kafka.allow(rights)
    answer = as_user(secured_kafka, role)
    found = [each for each in answer.findings if each["severity"] == "broken"]
    assert any(says in each["what"] and each["check"] == check for each in found), found
    assert answer.exit_code == 2
    for _ in range(3):  # what was hidden before comes to light: a topic, then the right to read it
        if not found:
            break
        rights = rights + [granted(each["remedy"]) for each in found]
        secured_kafka.allow(rights)
        found = [each for each in as_user(secured_kafka, role).findings if each["severity"] == "broken"]
    assert found == []


def test_a_right_to_make_topics(secured_kafka: SecuredKafka) -> None:
    secured_kafka.remove("operations.")
    role = "Both, and makes topics"
    secured_kafka.allow(ROLES[role])
    assert as_user(secured_kafka, role).worst("right to create")["severity"] == "ok"
    secured_kafka.allow([each for each in ROLES[role] if each.operation is not AclOperation.CREATE])
    finding = as_user(secured_kafka, role).worst("right to create")
    assert finding["severity"] == "broken", finding
    assert granted(finding["remedy"]).operation is AclOperation.CREATE
    assert not [name for name in secured_kafka.admin.list_topics(timeout=10).topics if name.startswith("operations.")]


def test_a_probe_without_the_right_to_it_leaves_nothing(secured_kafka: SecuredKafka, topics: None) -> None:
    secured_kafka.allow(ROLES["Both"])
    login = {"sasl_username": USER, "sasl_password": USER_PASSWORD, "create_topics": False}
    refused = ask(secured_kafka, "SASL_BARE", "--topic", "audit", "--probe", **login)
    [finding] = refused.of("clock")
    assert (finding["severity"], "--operation Create" in finding["remedy"]) == ("warning", True)
    own = "_incident-messaging-doctor-"
    may = [
        AclBinding(
            ResourceType.TOPIC, own, ResourcePatternType.PREFIXED, f"User:{USER}", "*", each, AclPermissionType.ALLOW
        )
        for each in (AclOperation.CREATE, AclOperation.WRITE)
    ]
    secured_kafka.allow(ROLES["Both"] + may)
    left = ask(secured_kafka, "SASL_BARE", "--topic", "audit", "--probe", **login)
    assert [each["severity"] for each in left.of("clock")] == ["ok", "warning"]
    assert f"--delete --topic {own}" in left.worst("clock")["remedy"], "what it could not delete it names"
    secured_kafka.remove(own)


def test_settings_are_read_by_who_may(secured_kafka: SecuredKafka, topics: None) -> None:
    shown = [(ResourceType.TOPIC, "operations."), (ResourceType.BROKER, "kafka-cluster")]
    rules = [
        AclBinding(
            kind, name, ResourcePatternType.PREFIXED if kind is ResourceType.TOPIC else ResourcePatternType.LITERAL,
            f"User:{USER}", "*", AclOperation.DESCRIBE_CONFIGS, AclPermissionType.ALLOW,
        )
        for kind, name in shown
    ]  # fmt: skip
    secured_kafka.allow(ROLES["Both"] + rules)
    answer = as_user(secured_kafka, "Both")
    assert answer.bad == set()
    assert answer.exit_code == 0


@pytest.mark.parametrize("listener", ["TLS", "MTLS", "SASL_TLS"])
def test_the_ways_in_are_those_of_the_configuration(
    secured_kafka: SecuredKafka, certificates: Kit, topics: None, listener: str
) -> None:
    shown = {"ssl_cert_file": certificates.client.cert_file, "ssl_key_file": certificates.client.key_file}
    options = ["--probe"] if listener == "SASL_TLS" else []
    answer = ask(secured_kafka, listener, *options, **(shown if listener == "MTLS" else {}))
    assert answer.bad == set(), answer
    assert answer.worst("clock")["severity"] == ("ok" if options else "not done")


@pytest.mark.parametrize(
    ("listener", "kafka", "says"),
    [
        ("SASL_BARE", {"sasl_password": "wrong"}, "Kafka login failed: "),
        ("TLS", {"enable_ssl": False, "ssl_ca_file": ""}, "the server speaks TLS, and kafka.enable_ssl is not set"),
        ("TLS", {"ssl_ca_file": ""}, "the broker's certificate is refused: "),
        ("EXPIRED", {}, "certificate has expired"),
    ],
    ids=["password", "plain", "authority", "expired"],
)
def test_no_way_in_to_kafka(secured_kafka: SecuredKafka, listener: str, kafka: dict[str, Any], says: str) -> None:
    answer = ask(secured_kafka, listener, **kafka)
    finding = answer.worst("server")
    assert (finding["severity"], answer.exit_code) == ("broken", 2)
    assert says in finding["what"]
    assert "wrong" not in str(answer)


@pytest.fixture(scope="module")
def nats_with_tls(certificates: Kit) -> Iterator[NatsServer]:
    with NatsServer(config=tls(certificates.server)) as server:
        yield server


@pytest.mark.parametrize(
    ("nats", "says"),
    [
        ({"nats.enable_tls": "true", "nats.tls_ca_file": "{ca}"}, ""),
        ({"nats.enable_tls": "true"}, "TLS failed: unable to get local issuer certificate"),
        ({}, "the server wants TLS, so see nats.enable_tls and nats.tls_ca_file"),
    ],
    ids=["good", "authority", "plain"],
)
def test_tls_on_nats(nats_with_tls: NatsServer, certificates: Kit, nats: dict[str, str], says: str) -> None:
    settings = {name: value.format(ca=certificates.ca_file) for name, value in nats.items()}
    answer = doctor_kit.ask({"nats.servers": nats_with_tls.url, **settings})
    finding = answer.worst("server")
    assert finding["severity"] == ("broken" if says else "ok"), finding
    assert says in finding["what"]
    assert answer.exit_code == (2 if says else 0)
