"""What the doctor makes of brokers' answers: clusters, accounts, rights and durables that few tests can start."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException

from incident_messaging import MessagingConfig
from incident_messaging.backends.kafka import checkup as kafka_checkup
from incident_messaging.backends.kafka import findings as kafka
from incident_messaging.backends.kafka.findings import Topic
from incident_messaging.backends.nats import findings as nats
from incident_messaging.backends.nats import group_findings
from incident_messaging.doctor import Finding, Scope, Severity

OK, WARNING, BROKEN, _ = Severity


def severities(found: Iterable[Finding]) -> list[Severity]:
    return [each.severity for each in found]


def topic(**fields: Any) -> Topic:
    return Topic(**{"name": "t", "partitions": 1, "copies": 3, "in_sync": 3} | fields)


@pytest.mark.parametrize(
    ("fields", "replication_factor", "brokers", "expected"),
    [
        ({}, None, 3, [OK]),
        ({"in_sync": 2}, None, 3, [WARNING, OK]),
        ({"leaderless": 1, "in_sync": 0}, None, 3, [BROKEN, OK]),
        ({"copies": 1, "in_sync": 1}, None, 3, [WARNING]),
        ({"copies": 1, "in_sync": 1}, 1, 3, [OK]),
        ({"copies": 2, "in_sync": 2}, 3, 3, [WARNING]),
    ],
)
def test_copies_on_a_kafka_cluster(
    fields: dict[str, Any], replication_factor: int | None, brokers: int, expected: list[Severity]
) -> None:
    config = MessagingConfig.from_mapping({"kafka": {"replication_factor": replication_factor}})
    cluster = SimpleNamespace(brokers=dict.fromkeys(range(brokers)))
    found = list(kafka.replicas(config, topic(**fields), cluster))
    assert severities(found) == expected
    plans = [re.search(r"PLAN.json: ([^;]+)", each.remedy) for each in found if "copies, configured" in each.what]
    assert [json.loads(plan[1])["partitions"][0]["replicas"] for plan in plans if plan] == [[0, 1, 2]] * len(plans)


def test_copies_that_a_cluster_cannot_have() -> None:
    config = MessagingConfig.from_mapping({"kafka": {"replication_factor": 3}})
    [found] = kafka.replicas(config, topic(copies=1, in_sync=1), SimpleNamespace(brokers={1: ("h", 1)}))
    assert found.remedy.startswith("a cluster of 3 brokers, of which there is 1; or kafka.replication_factor = 1")


@pytest.mark.parametrize(
    ("fields", "least", "severity", "says"),
    [
        ({}, 2, OK, ""),
        ({}, 1, WARNING, "what a single broker has"),
        ({}, 3, WARNING, "when one broker is away"),
        ({"in_sync": 1}, 2, BROKEN, "every publish is refused"),
        ({"copies": 1, "in_sync": 1}, 1, OK, ""),
        ({"copies": 2, "in_sync": 2}, 3, BROKEN, "before Kafka 4"),
    ],
)
def test_copies_that_acknowledge(fields: dict[str, Any], least: int, severity: Severity, says: str) -> None:
    one = topic(**fields, settings={"min.insync.replicas": str(least)})
    [found] = kafka.in_sync(MessagingConfig(), one, SimpleNamespace(brokers={1: ("h", 1)}))
    assert found.severity is severity
    assert says in found.what


@pytest.mark.parametrize("least", [1, 2])
def test_with_two_copies_a_third_one_is_what_mends_it(least: int) -> None:
    two = topic(copies=2, in_sync=2, settings={"min.insync.replicas": str(least)})
    [found] = kafka.in_sync(MessagingConfig(), two, SimpleNamespace(brokers=dict.fromkeys(range(3))))
    assert found.severity is WARNING
    assert found.remedy.startswith("a third copy: kafka-reassign-partitions.sh ")
    assert ("; then kafka-configs.sh " in found.remedy, "min.insync.replicas=2" in found.remedy) == (least == 1,) * 2
    assert "min.insync.replicas=1" not in found.remedy


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, OK),
        ({"message.timestamp.before.max.ms": "9223372036854775807", "message.timestamp.after.max.ms": "3600000"}, OK),
        ({"message.timestamp.difference.max.ms": "1"}, BROKEN),
        ({"message.timestamp.before.max.ms": "1", "message.timestamp.type": "LogAppendTime"}, OK),
    ],
    ids=["unknown", "as Kafka 4 has it", "as Kafka 3.5 has it", "the broker's own time"],
)
def test_times_that_a_topic_takes(settings: dict[str, str], expected: Severity) -> None:
    assert severities(kafka.times(MessagingConfig(), topic(settings=settings), None))[0] is expected


def test_lag_that_nobody_may_look_at() -> None:
    config = MessagingConfig().kafka
    assert severities(kafka.lag(config, "g", {}, {}, {})) == [OK]
    assert severities(kafka.lag(config, "g", {"t": 3}, {}, {})) == [WARNING]


def test_lag_is_counted_by_topic() -> None:
    there = {"x": topic(name="x"), "y": topic(name="y")}
    found = kafka.lag(MessagingConfig().kafka, "g", {"x": 3, "y": 1}, dict.fromkeys(there, time.time()), there)
    assert [each.what.split(" is ")[0] for each in found] == [
        "g: 3 unread, the oldest of x", "g: 1 unread, the oldest of y",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "settings", "remedy"),
    [
        (
            KafkaError.INVALID_REPLICATION_FACTOR,
            {"replication_factor": 3},
            "kafka.replication_factor = 1; or 3 brokers",
        ),
        (KafkaError.INVALID_REPLICATION_FACTOR, {}, "kafka.replication_factor = 1; or default.replication.factor in"),
        (KafkaError.INVALID_PARTITIONS, {"partitions": 100_000}, "kafka.partitions = 1"),
        (KafkaError.POLICY_VIOLATION, {}, "what the text names; or a topic that is made by who may"),
    ],
)
def test_what_lets_a_topic_be_made(code: int, settings: dict[str, Any], remedy: str) -> None:
    config = MessagingConfig.from_mapping({"kafka": settings})
    found = kafka.not_made(config, KafkaError(code, "no"), "t", 1, needed=True)
    assert (found.severity, found.remedy[: len(remedy)]) == (BROKEN, remedy)


def examined() -> kafka_checkup.Checkup:
    """Nothing is asked, but what a test puts in the place of a question."""
    made = kafka_checkup.Checkup(MessagingConfig.from_mapping({"backend": "kafka"}), Scope())
    made.topics = {name: topic(name=name) for name in ("x", "y")}
    made.brokers = {1: ("h", 1)}
    return made


def denied(code: int = KafkaError.TOPIC_AUTHORIZATION_FAILED) -> KafkaException:
    return KafkaException(KafkaError(code, "not allowed"))


def test_a_topic_whose_settings_may_not_be_read_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def configured(_self: Any, _kind: Any, name: str) -> dict[str, str]:
        if name == "x":
            raise denied()
        return {"retention.ms": "1"}

    monkeypatch.setattr(kafka_checkup.Checkup, "configured", configured)
    made = examined()
    found = list(made.look_at_settings())
    assert severities(found) == [WARNING, OK]
    assert "--topic x" in found[0].remedy
    assert made.topics["y"].settings == {"retention.ms": "1"}


def test_groups_that_may_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> Any:
        raise denied(KafkaError.CLUSTER_AUTHORIZATION_FAILED)

    monkeypatch.setattr(kafka_checkup.Checkup, "admin", Mock())
    monkeypatch.setattr(kafka_checkup.Checkup, "asked", asked)
    [found] = examined().look_at_lag()
    assert (found.severity, "--operation Describe --cluster" in found.remedy) == (WARNING, True)


@pytest.mark.parametrize(
    ("copies", "cluster", "wanted", "expected"),
    [
        (3, {"name": "c", "leader": "a", "replicas": [{"name": "b", "current": True}]}, None, [OK]),
        (3, {"name": "c", "leader": "a", "replicas": [{"name": "b", "offline": True}]}, None, [WARNING, OK]),
        (3, {"name": "c", "leader": "a", "replicas": [{"name": "b", "current": False}]}, None, [WARNING, OK]),
        (3, {"name": "c", "replicas": []}, None, [BROKEN, OK]),
        (1, {"name": "c", "leader": "a"}, None, [WARNING]),
        (1, {"name": "c", "leader": "a"}, 1, [OK]),
    ],
)
def test_copies_on_a_nats_cluster(
    copies: int, cluster: dict[str, Any], wanted: int | None, expected: list[Severity]
) -> None:
    config = MessagingConfig.from_mapping({"nats": {"stream_replicas": wanted}})
    info = {"config": {"num_replicas": copies}, "cluster": cluster}
    assert severities(nats.replicas(config, "S", info, {"cluster": "c"})) == expected


def test_copies_that_a_single_server_cannot_have() -> None:
    config = MessagingConfig.from_mapping({"nats": {"stream_replicas": 3}})
    [found] = nats.replicas(config, "S", {"config": {"num_replicas": 1}}, {})
    assert found.remedy.startswith("a cluster of 3 servers, then: nats stream edit S --replicas 3 -f")
    [found] = nats.replicas(config, "S", {"config": {"num_replicas": 1}}, {"cluster": "c"})
    assert found.remedy == "nats stream edit S --replicas 3 -f"


def durable(stream: str = "S", **config: Any) -> dict[str, Any]:
    """A group's, as the SDK makes it, but for what is given."""
    usual = {"ack_policy": "explicit", "ack_wait": 30 * 10**9, "filter_subject": "llm-im.orders"}
    return {"name": f"g-{stream}", "stream_name": stream, "config": usual | config}


@pytest.mark.parametrize(
    ("config", "stream", "expected"),
    [
        ({"num_replicas": 1}, {"num_replicas": 3, "storage": "file"}, WARNING),
        ({"num_replicas": 0}, {"num_replicas": 3, "storage": "file"}, OK),
        ({"mem_storage": True}, {"num_replicas": 1, "storage": "memory"}, OK),
        ({"inactive_threshold": 8 * 10**9}, {"num_replicas": 1, "storage": "file", "max_age": 7 * 10**9}, OK),
        ({"inactive_threshold": 6 * 10**9}, {"num_replicas": 1, "storage": "file", "max_age": 7 * 10**9}, BROKEN),
    ],
    ids=["fewer copies", "the stream's copies", "all in memory", "outlives what is kept", "does not"],
)
def test_a_durable_and_its_stream(config: dict[str, Any], stream: dict[str, Any], expected: Severity) -> None:
    [found] = group_findings.group(MessagingConfig(), durable(**config), {"config": stream})
    assert found.severity is expected
    if "num_replicas" in config and expected is WARNING:
        assert found.remedy == "nats consumer edit S g-S --replicas 3 -f"


def test_handlers_that_are_slow_for_each_of_their_durables() -> None:
    """Each durable is named with its own stream, and those that wait long enough are not."""
    durables = [durable("A", ack_wait=60 * 10**9), durable("B"), durable("C", ack_wait=20 * 10**9)]
    [found] = group_findings.handlers(MessagingConfig(), {"orders": 40.0}, durables)
    assert re.findall(r"edit (\S+ \S+)", found.remedy) == ["B g-B", "C g-C"]
    assert "ack_wait is 20 s (g-C)" in found.what


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"storage": 10, "streams": 1, "consumers": 1, "limits": {"max_storage": -1, "max_streams": -1}}, [OK]),
        ({"storage": 100, "limits": {"max_storage": 100}}, [BROKEN]),
        ({"storage": 85, "consumers": 9, "limits": {"max_storage": 100, "max_consumers": 9}}, [WARNING, BROKEN]),
        ({"tiers": {"R1": {"streams": 4, "limits": {"max_streams": 4}}, "R3": {"limits": {}}}}, [WARNING, OK]),
    ],
    ids=["unlimited", "full", "nearly", "tiers"],
)
def test_the_limits_of_an_account(told: dict[str, Any], expected: list[Severity]) -> None:
    assert severities(nats.account(told)) == expected


def test_whose_a_durable_is() -> None:
    def ours(name: str, subject: str) -> bool:
        return group_findings.is_ours({"config": {"durable_name": name, "filter_subject": subject}})

    assert ours("pager-llm-im-orders-0123abcd", "llm-im.orders")
    assert ours("on-call-llm-im-any-all-0123abcd", "llm-im.*.>")
    assert not ours("pager-llm-im-orders", "llm-im.orders")
    assert not ours("pager-llm-im-bills-0123abcd", "llm-im.orders")
    assert not ours("pager", "")
