"""The smallest rights, as docs/kafka_security.rst lists them: each list suffices, and none is longer than needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType
from kafka_secured import USER, USER_PASSWORD, SecuredKafka
from waiting import until

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
#: Seconds for a call; what is refused is refused much sooner.
PATIENCE = 20.0


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
    with service.subscribe("audit", start="earliest", timeout=PATIENCE) as subscription:
        for settle in ("ack", "reject"):
            delivery = subscription.next(PATIENCE)
            assert delivery is not None
            getattr(delivery, settle)()
    assert service.health().ok


def broadcasts(service: MessagingService) -> None:
    with service.subscribe("audit", broadcast=True, start="earliest", timeout=PATIENCE) as subscription:
        assert subscription.next(PATIENCE) is not None


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
    with service.subscribe("audit", timeout=PATIENCE) as subscription:
        assert subscription.next(1.0) is None


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
def set_up(secured_kafka: SecuredKafka, on_kafka: Make) -> Callable[..., MessagingService]:
    """A role's service, with topics as it finds them: none, or with two messages and, for who looks, a dead letter.

    Its rights, or others in their place, are given before it connects: what a connection was once allowed, as the
    id of its producer, it keeps.
    """

    def prepare(role: str, rights: Iterable[AclBinding] | None = None) -> MessagingService:
        secured_kafka.remove("operations.")
        makes_topics = "makes topics" in role
        if not makes_topics:
            secured_kafka.make("operations.audit", DEAD_LETTERS)
            with on_kafka("PLAINTEXT", service={"topic_prefix": "operations"}) as insider:
                publishes(insider)
                publishes(insider)
                if role.startswith("Who looks"):
                    consumes(insider)
        limits = {"topic_prefix": "operations", "publish_timeout_ms": 20_000, "subscribe_timeout_ms": 20_000}
        login = {"sasl_username": USER, "sasl_password": USER_PASSWORD}
        secured_kafka.allow(ROLES[role] if rights is None else rights)
        return on_kafka("SASL_BARE", service=limits, create_topics=makes_topics, **login)

    return prepare


def test_the_page_lists_every_role() -> None:
    assert ROLES.keys() == WORK.keys()


@pytest.mark.parametrize("role", WORK)
def test_the_rights_suffice(set_up: Callable[..., MessagingService], role: str) -> None:
    with set_up(role) as service:
        WORK[role](service)


#: Without these, too, a service works, and loses nothing; what it cannot do then is told in another way.
USEFUL = {
    ("A consumer", "operations.dead-letter"): "the dead letter is not stored, and its original stays",
    ("A consumer that makes topics", "operations.dead-letter"): "the same",
    ("A consumer that makes topics", "operations."): "it waits for a topic that Kafka does not show to it",
    ("Who looks into the dead letters and puts them back", "operations."): "the report says which were not put back",
    ("Who looks into the dead letters and puts them back", "operations.dead-letter"): "they are hidden, and stay",
}
#: What the error names, by the kind of resource and what a role begins with.
NAMES = {
    ("TOPIC", "Who looks"): DEAD_LETTERS,
    ("TOPIC", "A consumer that makes"): DEAD_LETTERS,
    ("TOPIC", "A broadcast"): DEAD_LETTERS,
    ("TOPIC", ""): "operations.audit",
    ("GROUP", "Who looks"): "group incident-messaging-look-",
    ("GROUP", "A broadcast"): "group broadcast-",
    ("GROUP", ""): "group incident-manager-group:operations.audit",
}


def is_useful(role: str, right: AclBinding) -> bool:
    """Whether a right is no more than that."""
    needed = {("Who", AclOperation.READ), ("A consumer", AclOperation.CREATE)}
    is_needed = any(role.startswith(begin) and right.operation is operation for begin, operation in needed)
    return (role, right.name) in USEFUL and not is_needed


@pytest.mark.parametrize(
    ("role", "right"),
    [
        pytest.param(role, right, id=f"{role}-{number}")
        for role, rights in ROLES.items()
        for number, right in enumerate(rights)
        if not is_useful(role, right)
    ],
)
def test_none_can_be_left_out_and_the_error_names_it(
    set_up: Callable[..., MessagingService], role: str, right: AclBinding
) -> None:
    with set_up(role, [other for other in ROLES[role] if other is not right]) as service:
        with pytest.raises((PublishFailed, SubscribeFailed)) as caught:
            WORK[role](service)
    assert caught.value.code == "denied"
    names = next(text for (kind, begin), text in NAMES.items() if kind == right.restype.name and role.startswith(begin))
    assert names in str(caught.value)
    assert right.operation.name.capitalize() in str(caught.value), "the right is named, too"


def test_a_consumer_that_may_not_read_what_it_makes(set_up: Callable[..., MessagingService], on_kafka: Make) -> None:
    role = "A consumer that makes topics"
    unreadable = [
        right
        for right in ROLES[role]
        if right.operation is not AclOperation.READ or right.restype is ResourceType.GROUP
    ]
    with set_up(role, unreadable) as service, service.subscribe("audit", timeout=PATIENCE) as subscription:
        publishes(on_kafka("PLAINTEXT", service={"topic_prefix": "operations"}))
        assert subscription.next(1.0) is None


def test_a_user_who_may_write_nothing_is_told_so_once(
    set_up: Callable[..., MessagingService], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        set_up("A broadcast") as service,
        service.subscribe("audit", broadcast=True, start="earliest", timeout=PATIENCE) as subscription,
    ):
        assert until(lambda: "Cluster authorization failed" in caplog.text, PATIENCE)
        delivery = subscription.next(3.0)
        while delivery is not None:  # the producer would come back every second
            delivery = subscription.next(3.0)
    assert caplog.text.count("Cluster authorization failed") == 1


def test_a_consumer_that_may_write_no_dead_letters(
    set_up: Callable[..., MessagingService], caplog: pytest.LogCaptureFixture
) -> None:
    with set_up("A consumer", [right for right in ROLES["A consumer"] if right.name != DEAD_LETTERS]) as service:
        consumes(service)
    assert "a dead letter could not be stored, its original stays" in caplog.text


@pytest.mark.parametrize("missing", [AclOperation.WRITE, AclOperation.DELETE], ids=["Write", "Delete"])
def test_who_may_not_put_back_or_delete(set_up: Callable[..., MessagingService], missing: AclOperation) -> None:
    role = "Who looks into the dead letters and puts them back"
    with set_up(role, [right for right in ROLES[role] if right.operation is not missing]) as service:
        report = service.dead_letters.redrive()
        left = len(list(service.dead_letters.list()))
    if missing is AclOperation.DELETE:
        assert (report.done, left) == (1, 0), "it is hidden"
    else:
        assert (report.failed, left) == (1, 1)
        assert "Write" in str(report.errors[0])
