"""Logging in to a real Kafka, and what it does not allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka_kit import PATIENCE, SLACK, Outcomes, Raw, Reader, fails, in_time, publish, record, spec
from waiting import takes, until

from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.brokers import KafkaBroker as RealKafka
from incident_messaging.brokers.ports import free_port
from incident_messaging.errors import ConnectionFailed, PublishFailed, SubscribeFailed

NewBroker = Callable[..., KafkaBroker]
LOGIN = {"enable_sasl": True, "sasl_mechanism": "PLAIN", "sasl_username": "alice", "sasl_password": "secret"}


class Guarded:
    """A broker with a second listener, where users log in and need an ACL for everything."""

    def __init__(self) -> None:
        port, guarded, controller = free_port(), free_port(), free_port()
        plain = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="secret";'
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        self.real = RealKafka(
            port=port,
            config={
                "controller.quorum.voters": f"1@127.0.0.1:{controller}",
                "listeners": f"PLAINTEXT://127.0.0.1:{port},GUARDED://127.0.0.1:{guarded},CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},GUARDED://127.0.0.1:{guarded}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,GUARDED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
                "inter.broker.listener.name": "PLAINTEXT",
                "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                "listener.name.guarded.plain.sasl.jaas.config": plain,
                "listener.name.guarded.scram-sha-256.sasl.jaas.config": scram,
                "listener.name.guarded.scram-sha-512.sasl.jaas.config": scram,
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
            },
        )
        self.address = f"127.0.0.1:{guarded}"

    def allow(self, raw: Raw, user: str, kind: str, name: str, *operations: str) -> None:
        acls = [
            AclBinding(
                ResourceType[kind],
                name,
                ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                AclOperation[operation],
                AclPermissionType.ALLOW,
            )
            for operation in operations
        ]
        for done in raw.admin.create_acls(acls).values():
            done.result(PATIENCE)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    broker = Guarded()
    with broker.real:
        yield broker


@pytest.fixture
def root(nothing_left_behind: None, guarded: Guarded) -> Iterator[Raw]:
    """The broker from inside, where all is allowed."""
    with Raw(guarded.real.bootstrap_servers) as raw:
        yield raw


def eventually_publishes(broker: KafkaBroker, topic: str) -> bool:
    """ACLs take a moment to be known everywhere."""

    def published() -> bool:
        outcomes = Outcomes()
        outcomes.send(broker, record(topic), 3)
        return outcomes.wait() == [None]

    return until(published, PATIENCE)


def test_a_wrong_password(new_kafka: NewBroker, guarded: Guarded, topic: str) -> None:
    broker = new_kafka(guarded.address, **LOGIN | {"sasl_password": "wrong"})
    with takes(at_most=2 * SLACK), pytest.raises(ConnectionFailed) as caught:
        broker.connect(in_time())
    assert caught.value.code == "unauthorized"
    assert guarded.address in str(caught.value)
    assert "wrong" not in str(caught.value)
    assert isinstance(fails(broker, record(topic)), ConnectionFailed)
    reader = Reader(broker, spec(topic))
    with pytest.raises(ConnectionFailed) as caught:
        reader.open()
    assert caught.value.code == "unauthorized"


def test_no_login_where_one_is_needed(new_kafka: NewBroker, guarded: Guarded) -> None:
    broker = new_kafka(guarded.address)
    with takes(at_most=2 * SLACK), pytest.raises(ConnectionFailed):
        broker.connect(in_time())


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_scram(new_kafka: NewBroker, guarded: Guarded, root: Raw, mechanism: str) -> None:
    kind = ScramMechanism[mechanism.replace("-", "_")]
    change = UserScramCredentialUpsertion("bob", ScramCredentialInfo(kind, 4096), b"geheim", None)
    root.admin.alter_user_scram_credentials([change])["bob"].result(PATIENCE)
    login = {"enable_sasl": True, "sasl_mechanism": mechanism, "sasl_username": "bob", "sasl_password": "geheim"}

    def logs_in() -> bool:
        try:
            new_kafka(guarded.address, **login).connect(in_time(5))
        except ConnectionFailed:
            return False
        return True

    assert until(logs_in, PATIENCE)


def test_publishing_without_any_right(new_kafka: NewBroker, guarded: Guarded, root: Raw, topic: str) -> None:
    root.make(topic)
    broker = new_kafka(guarded.address, **LOGIN)
    broker.connect(in_time())
    for name in (topic, f"{topic}.new"):
        with takes(at_most=2 * SLACK):
            error = fails(broker, record(name))
        assert isinstance(error, PublishFailed)
        assert error.code == "denied"


def test_publishing_where_only_reading_is_allowed(
    new_kafka: NewBroker, guarded: Guarded, root: Raw, topic: str
) -> None:
    mine = f"{topic}.mine"
    root.make(topic)
    root.make(mine)
    guarded.allow(root, "alice", "TOPIC", topic, "READ", "DESCRIBE")
    guarded.allow(root, "alice", "TOPIC", mine, "WRITE", "DESCRIBE")
    broker = new_kafka(guarded.address, **LOGIN)
    assert eventually_publishes(broker, mine)
    error = fails(broker, record(topic))
    assert isinstance(error, PublishFailed)
    assert error.code == "denied"
    publish(broker, mine, ["others are not concerned"])


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_reading_without_the_right(
    new_kafka: NewBroker, guarded: Guarded, root: Raw, topic: str, protocol: str
) -> None:
    root.make(topic)
    guarded.allow(root, "alice", "TOPIC", topic, "DESCRIBE")
    broker = new_kafka(guarded.address, **LOGIN, group_protocol=protocol)
    no_group = Reader(broker, spec(topic))
    with takes(at_most=3 * SLACK), pytest.raises(SubscribeFailed) as caught:
        no_group.open()
    assert caught.value.code == "denied"
    guarded.allow(root, "alice", "GROUP", f"g:{topic}", "READ", "DESCRIBE")

    def refused_by_the_topic() -> bool:
        reader = Reader(broker, spec(topic))
        try:
            reader.open()
        except SubscribeFailed as error:
            return "topic" in str(error).lower() and error.code == "denied"
        else:
            return until(lambda: reader.error is not None, 3)
        finally:
            reader.close()

    assert until(refused_by_the_topic, PATIENCE)
