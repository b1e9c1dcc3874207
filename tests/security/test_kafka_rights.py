"""The smallest rights, as docs/kafka_security.rst lists them: each list suffices, and none is longer than needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType
from kafka_secured import USER, USER_PASSWORD, SecuredKafka

from incident_messaging import MessagingService, PublishFailed, SubscribeFailed

Make = Callable[..., MessagingService]

PAGE = Path(__file__).parents[2] / "docs" / "kafka_security.rst"
_ROLE = re.compile(
    r"^\*\*(?P<role>.+):\*\*\n\n\.\. code-block:: console\n\n(?P<commands>(?:   \$ .+\n)+)", re.MULTILINE
)
_RULE = re.compile(
    r"kafka-acls --add --allow-principal (?P<user>\S+) --operation (?P<operation>\w+) "
    r"--(?P<kind>topic|group) (?P<name>\S+)(?P<prefixed> --resource-pattern-type prefixed)?$"
)
DEAD_LETTERS = "operations.dead-letter"


def rule(command: str) -> AclBinding:
    found = _RULE.search(command)
    assert found is not None, command
    pattern = ResourcePatternType.PREFIXED if found["prefixed"] else ResourcePatternType.LITERAL
    return AclBinding(
        ResourceType[found["kind"].upper()],
        found["name"],
        pattern,
        found["user"],
        "*",
        AclOperation[found["operation"].upper()],
        AclPermissionType.ALLOW,
    )


ROLES = {
    found["role"]: [rule(command) for command in found["commands"].splitlines()]
    for found in _ROLE.finditer(PAGE.read_text())
}


def publishes(service: MessagingService) -> None:
    service.publish("audit", {"n": 1})


def consumes(service: MessagingService) -> None:
    """One is handled, one goes to the dead letters."""
    with service.subscribe("audit", start="earliest", timeout=10.0) as subscription:
        for settle in ("ack", "reject"):
            delivery = subscription.next(10.0)
            assert delivery is not None
            getattr(delivery, settle)()
    assert service.health().ok


def broadcasts(service: MessagingService) -> None:
    with service.subscribe("audit", broadcast=True, start="earliest", timeout=10.0) as subscription:
        assert subscription.next(10.0) is not None


def does_both(service: MessagingService) -> None:
    publishes(service)
    publishes(service)
    consumes(service)


def redrives(service: MessagingService) -> None:
    assert len(list(service.dead_letters.list())) == 1
    assert service.dead_letters.redrive().done == 1
    assert list(service.dead_letters.list()) == []


def comes_up(service: MessagingService) -> None:
    """Both topics are made at a subscription; who may not write to one has nothing to handle."""
    service.subscribe("audit", timeout=10.0).close()


WORK = {
    "A publisher": publishes,
    "A publisher that makes topics": publishes,
    "A consumer": consumes,
    "A consumer that makes topics": comes_up,
    "Both": does_both,
    "Both, and makes topics": does_both,
    "A broadcast": broadcasts,
    "Who looks into the dead letters and puts them back": redrives,
}


@pytest.fixture
def set_up(secured_kafka: SecuredKafka, on_kafka: Make) -> Callable[[str], MessagingService]:
    """A role's service, with topics as it finds them: none, or with two messages and, for who looks, a dead letter."""

    def prepare(role: str) -> MessagingService:
        secured_kafka.remove("operations.")
        makes_topics = "makes topics" in role
        if not makes_topics:
            secured_kafka.make("operations.audit", DEAD_LETTERS)
            with on_kafka("PLAINTEXT", service={"topic_prefix": "operations"}) as insider:
                publishes(insider)
                publishes(insider)
                if role.startswith("Who looks"):
                    consumes(insider)
        limits = {"topic_prefix": "operations", "publish_timeout_ms": 5000, "subscribe_timeout_ms": 5000}
        login = {"sasl_username": USER, "sasl_password": USER_PASSWORD}
        return on_kafka("SASL_BARE", service=limits, create_topics=makes_topics, **login)

    return prepare


def test_the_page_lists_every_role() -> None:
    assert ROLES.keys() == WORK.keys()


@pytest.mark.parametrize("role", WORK)
def test_the_rights_suffice(set_up: Callable[[str], MessagingService], secured_kafka: SecuredKafka, role: str) -> None:
    with set_up(role) as service:
        secured_kafka.allow(ROLES[role])
        WORK[role](service)


def denied(role: str, missing: int, names: str) -> Any:
    return pytest.param(role, missing, names, id=f"{role}-{missing}")


@pytest.mark.parametrize(
    ("role", "missing", "names"),
    [
        denied("A publisher", 0, "operations.audit"),
        denied("A publisher that makes topics", 0, "operations.audit"),
        denied("A publisher that makes topics", 1, "operations.audit"),
        denied("A consumer", 0, "operations.audit"),
        denied("A consumer", 1, "group incident-manager-group:operations.audit"),
        denied("A consumer that makes topics", 3, DEAD_LETTERS),
        denied("A broadcast", 1, "group broadcast-"),
    ],
)
def test_none_can_be_left_out_and_the_error_names_it(
    set_up: Callable[[str], MessagingService], secured_kafka: SecuredKafka, role: str, missing: int, names: str
) -> None:
    with set_up(role) as service:
        rights = ROLES[role]
        secured_kafka.allow(rights[:missing] + rights[missing + 1 :])
        with pytest.raises((PublishFailed, SubscribeFailed)) as caught:
            WORK[role](service)
    assert caught.value.code == "denied"
    assert names in str(caught.value)
    assert rights[missing].operation.name.capitalize() in str(caught.value), "the right is named, too"
