"""The command ``incident-messaging doctor`` on real Kafkas that are misconfigured on purpose.

One look sees many topics, each wrong in its own way; the remedies are carried out, and a second look finds all well.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import doctor_kit
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from waiting import until

from incident_messaging import MessagingConfig, MessagingService, PublishFailed
from incident_messaging.backends.kafka import link, sampling
from incident_messaging.brokers import KafkaBroker
from incident_messaging.brokers.ports import HOST, free_port

PATIENCE = 40.0
DAY = 86_400_000

#: The topic, without the prefix; its settings; the check, how bad, and a part of what it says.
TOPICS: dict[str, tuple[dict[str, str], str, str, str]] = {
    "more-in-sync-than-copies": ({"min.insync.replicas": "2"}, "min.insync.replicas", "broken", "is 2, copies 1"),
    "compacted": ({"cleanup.policy": "compact"}, "keeping", "broken", "is compact: a publish without a key is"),
    "both-policies": ({"cleanup.policy": "compact,delete"}, "keeping", "broken", "compact,delete"),
    "bounded": ({"retention.bytes": "1000000"}, "keeping", "warning", "retention.bytes is 1,000,000"),
    "unclean": ({"unclean.leader.election.enable": "true"}, "keeping", "warning", "unclean.leader.election.enable"),
    "small": ({"max.message.bytes": "1000"}, "message size", "broken", "is 1,000, max_message_size 1,048,576"),
    "at-once": ({"message.timestamp.before.max.ms": "1"}, "message time", "broken", "is 0.001 s, and a publish may be"),
    "late": ({"message.timestamp.before.max.ms": "5000"}, "message time", "warning", "is 5 s, and a publish may be 12"),
    "ahead": ({"message.timestamp.after.max.ms": "1"}, "message time", "warning", "after.max.ms is 0.001 s, and a"),
    "dead-letter": ({"max.message.bytes": "500000"}, "message size", "broken", "is 500,000"),
    "brief": ({"retention.ms": "10000"}, "retention", "broken", "10 s, and retries may take 15 s"),
    "short": ({"retention.ms": "3600000"}, "retention", "warning", "60 minutes: a group that stands still"),
}


def admin_of(servers: str) -> AdminClient:
    """Not to be kept by a test: what click's runner leaves of an exit holds the frames of those who called it."""
    return AdminClient({"bootstrap.servers": servers, "log_level": 0})


class Ward:
    """Topics of its own on the session's broker."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.prefix = f"w-{uuid.uuid4().hex[:8]}"

    def make(self, **topics: dict[str, str]) -> None:
        admin = admin_of(self.servers)
        new = [NewTopic(f"{self.prefix}.{name}", 1, 1, config=config) for name, config in topics.items()]
        for answer in admin.create_topics(new).values():
            answer.result(PATIENCE)
        # The controller has made them; the broker tells of them a moment later.
        assert until(lambda: {one.topic for one in new} <= _topics(self.servers), PATIENCE)

    def cut(self, topic: str, offset: int) -> None:
        """Delete what a topic begins with."""
        place, admin = TopicPartition(f"{self.prefix}.{topic}", 0, offset), admin_of(self.servers)
        admin.delete_records([place])[place].result(PATIENCE)

    def publish_old(self, topic: str, count: int, seconds: float) -> None:
        """Publish what was made so long ago."""
        producer = Producer({"bootstrap.servers": self.servers, "log_level": 0})
        for _ in range(count):
            producer.produce(f"{self.prefix}.{topic}", b"{}", timestamp=int((time.time() - seconds) * 1000))
        assert producer.flush(PATIENCE) == 0

    def service(self, **settings: Any) -> MessagingService:
        kafka = {"bootstrap_servers": self.servers}
        return MessagingService(
            MessagingConfig.from_mapping({"backend": "kafka", "topic_prefix": self.prefix, "kafka": kafka} | settings)
        )

    def ask(self, *options: str, **settings: Any) -> doctor_kit.Answer:
        base = {
            "backend": "kafka", "kafka.bootstrap_servers": self.servers, "topic_prefix": self.prefix,
            "kafka.replication_factor": 1,
        }  # fmt: skip
        return doctor_kit.ask(base | settings, *options)


@pytest.fixture
def ward(kafka_broker: Any) -> Ward:
    return Ward(kafka_broker.bootstrap_servers)


def _topics(servers: str) -> set[str]:
    return set(admin_of(servers).list_topics(timeout=PATIENCE).topics)


def test_all_is_well_and_nothing_changes(ward: Ward) -> None:
    """As the SDK itself makes things, no check finds anything; a look leaves no topic and no group."""
    with ward.service() as service:
        service.publish_batch("orders", [{"n": n} for n in range(3)])
        with service.subscribe("orders", group="g", timeout=PATIENCE) as subscription:
            delivery = subscription.next(PATIENCE)
            assert delivery is not None
            delivery.ack(confirm=True)
    before = _topics(ward.servers), _groups(ward), _ends(ward)
    answer = ward.ask("--topic", "orders")
    assert answer.bad == set()
    assert answer.exit_code == 0
    assert [each["check"] for each in answer.findings if each["severity"] == "not done"] == ["clock"]
    assert "2 unread, the oldest of" in answer.worst("lag")["what"]
    assert ward.ask("--probe").worst("clock")["severity"] == "ok"
    topics, groups, ends = before
    # What others have left behind may go meanwhile, but nothing of this ward's.
    left = _groups(ward)
    assert (_topics(ward.servers) - topics, left - groups, _ends(ward)) == (set(), set(), ends)
    assert f"g:{ward.prefix}.orders" in groups & left


def _groups(ward: Ward) -> set[str]:
    admin = admin_of(ward.servers)
    return {each.group_id for each in admin.list_consumer_groups().result(PATIENCE).valid}


def _ends(ward: Ward) -> dict[str, int]:
    client = Consumer({"bootstrap.servers": ward.servers, "group.id": "doctor-test"})
    try:
        names = [name for name in _topics(ward.servers) if name.startswith(ward.prefix)]
        return {name: client.get_watermark_offsets(TopicPartition(name, 0), timeout=PATIENCE)[1] for name in names}
    finally:
        client.close()


@pytest.fixture(scope="module")
def looked(kafka_broker: Any) -> tuple[doctor_kit.Answer, doctor_kit.Answer]:
    """What the doctor says of the wrong topics, and what it says when its remedies have been carried out."""
    ward = Ward(kafka_broker.bootstrap_servers)
    ward.make(**{name: config for name, (config, *_) in TOPICS.items()})
    first = ward.ask()
    admin = admin_of(ward.servers)
    for finding in first.findings:
        if finding["severity"] in ("warning", "broken"):
            doctor_kit.carry_out_on_kafka(finding["remedy"], admin)
    mended: list[doctor_kit.Answer] = []
    until(lambda: mended.append(ward.ask()) or not mended[-1].bad, PATIENCE)  # the broker takes it over a moment later
    return first, mended[-1]


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_that_is_made_otherwise_and_what_mends_it(looked: tuple[Any, Any], topic: str) -> None:
    _, check, severity, says = TOPICS[topic]
    finding = looked[0].worst(check, about=f".{topic}")
    assert finding["severity"] == severity, finding
    assert says in finding["what"]
    assert looked[0].exit_code == 2
    assert looked[1].worst(check, about=f".{topic}")["severity"] == "ok"


def test_when_all_are_mended_nothing_is_found(looked: tuple[Any, Any]) -> None:
    assert looked[1].bad == set()


@pytest.mark.parametrize(
    ("settings", "bad", "says"),
    [
        ({"kafka.replication_factor": 3}, {("replicas", "warning")}, "1 copies, configured are 3"),
        ({"kafka.replication_factor": ""}, {("replicas", "warning")}, "one copy, on one broker"),
        ({"kafka.session_timeout_ms": 100}, {("session time-out", "broken")}, "the brokers allow"),
        ({"retry.max_attempts": 1_000_000}, {("retention", "broken")}, "retries may take 347 days"),
        ({"enabled": "false"}, {("configuration", "warning")}, "enabled is false"),
    ],
    ids=["copies", "one-copy", "session", "retries", "disabled"],
)
def test_a_configuration_that_does_not_fit(ward: Ward, settings: dict[str, Any], bad: Any, says: str) -> None:
    ward.make(**{"orders": {}, "dead-letter": {}})
    answer = ward.ask("--topic", "orders", **settings)
    assert {each for each in answer.bad if each[0] != "right to create"} == bad
    assert says in answer.worst(next(iter(bad))[0])["what"]


def test_batches_that_a_topic_refuses(ward: Ward) -> None:
    """A topic that takes each message, and not all that go together; shown with the SDK itself, before and after."""
    ward.make(orders={"max.message.bytes": "200000"})
    messages = [base64.b64encode(os.urandom(30_000)).decode() for _ in range(100)]
    with ward.service(max_message_size=200_000) as service:
        assert service.publish_batch("orders", messages).published == 100
    assert ward.ask("--topic", "orders", max_message_size=200_000).worst("message size")["severity"] == "ok"
    large = {"max_message_size": 200_000, "kafka.extra": '{"batch.size": 1000000}'}
    extra = {"bootstrap_servers": ward.servers, "extra": {"batch.size": 1_000_000}}
    with ward.service(max_message_size=200_000, kafka=extra) as service:
        with pytest.raises(PublishFailed, match="as too large"):
            service.publish_batch("orders", messages)
        finding = ward.ask("--topic", "orders", **large).worst("message size")
        assert (finding["severity"], "batches of up to 265,536 bytes" in finding["what"]) == ("warning", True)
        doctor_kit.carry_out_on_kafka(finding["remedy"], admin_of(ward.servers))

        def published() -> bool:
            try:
                return service.publish_batch("orders", messages).published == 100
            except PublishFailed:  # the broker has not taken it over yet
                return False

        assert until(published, PATIENCE)
    assert ward.ask("--topic", "orders", **large).worst("message size")["severity"] == "ok"


def test_a_topic_that_is_missing(ward: Ward) -> None:
    ward.make(**{"dead-letter": {}})
    answer = ward.ask("--topic", "orders", **{"kafka.create_topics": "false"})
    finding = answer.worst("topic")
    assert (finding["severity"], answer.exit_code) == ("broken", 2)
    doctor_kit.carry_out_on_kafka(finding["remedy"], admin_of(ward.servers))
    assert until(lambda: ward.ask("--topic", "orders", **{"kafka.create_topics": "false"}).exit_code == 0, PATIENCE)


def test_a_topic_that_would_not_be_made(ward: Ward) -> None:
    finding = ward.ask("--topic", "orders", **{"kafka.replication_factor": 3}).worst("right to create")
    assert (finding["severity"], "replication factor of 3" in finding["what"]) == ("broken", True)
    assert finding["remedy"] == "kafka.replication_factor = 1; or 3 brokers"
    assert not [name for name in _topics(ward.servers) if name.startswith(ward.prefix)], "it was only asked"


def test_what_was_deleted_unread_and_what_will_be(ward: Ward) -> None:
    ward.make(orders={"retention.ms": str(DAY)}, bills={"retention.ms": "600000"})
    with ward.service() as service:
        for topic in ("orders", "bills"):
            service.subscribe(topic, group="g", timeout=PATIENCE).close()
        service.publish_batch("orders", [{"n": n} for n in range(5)])
    ward.publish_old("bills", 5, seconds=400.0)
    ward.cut("orders", 3)
    answer = ward.ask()
    lost = answer.worst("lag", about="orders")
    assert (lost["severity"], f"3 messages of {ward.prefix}.orders-0 were deleted" in lost["what"]) == ("broken", True)

    def late() -> bool:
        finding = ward.ask().worst("lag", about="bills")
        return (finding["severity"], "and is deleted when it is 10 minutes old" in finding["what"]) == ("warning", True)

    assert until(late, PATIENCE)


@pytest.mark.parametrize(("seconds", "says"), [(90.0, "behind"), (-90.0, "ahead of")])
def test_clocks_that_differ(ward: Ward, monkeypatch: pytest.MonkeyPatch, seconds: float, says: str) -> None:
    """It is this machine's clock that is wrong, which for the doctor is the same."""
    monkeypatch.setattr(sampling, "time", SimpleNamespace(time=lambda: time.time() + seconds))
    finding = ward.ask("--probe").worst("clock")
    assert finding["severity"] == "warning"
    assert f"the clock of the Kafka broker is 90 s {says} that of this machine" in finding["what"]


CLOSED = f"{HOST}:{free_port()}"


@pytest.mark.parametrize(
    ("settings", "says", "remedy"),
    [
        ({"kafka.bootstrap_servers": CLOSED}, f"broker not available ({CLOSED})", "kafka-broker-api-versions.sh"),
        ({"kafka.enable_ssl": "true"}, "Kafka TLS session failed", "openssl s_client -connect"),
        (
            {"kafka.enable_sasl": "true", "kafka.sasl_username": "u", "kafka.sasl_password": "p"},
            "Kafka login failed",
            "correct kafka.enable_sasl",
        ),
        (
            {"kafka.enable_ssl": "true", "kafka.ssl_ca_file": "/nowhere"},
            "cannot read /nowhere",
            "the file that the text",
        ),
    ],
    ids=["unreachable", "tls", "login", "file"],
)
def test_no_connection(ward: Ward, settings: dict[str, str], says: str, remedy: str) -> None:
    answer = ward.ask(**settings)
    finding = answer.worst("server")
    assert (finding["severity"], answer.exit_code) == ("broken", 2)
    assert says in finding["what"]
    assert remedy in finding["remedy"]
    others = {each["severity"] for each in answer.findings if each["check"] not in ("server", "client library")}
    assert others == {"not done"}


def test_one_of_two_servers_is_away(ward: Ward) -> None:
    finding = ward.ask(**{"kafka.bootstrap_servers": f"{ward.servers},{CLOSED}"}).worst("server")
    assert (finding["severity"], f"connection refused ({CLOSED})" in finding["what"]) == ("warning", True)


def test_a_broker_that_is_too_old(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_OLDEST_FETCH", 99)
    finding = ward.ask().worst("server")
    assert (finding["severity"], "older than 3.5" in finding["what"]) == ("broken", True)


@pytest.fixture(scope="module")
def wrong_broker() -> Iterator[KafkaBroker]:
    """A broker whose own settings are wrong: it sends clients to where nobody listens, and forgets places."""
    port, elsewhere = free_port(), free_port()
    config = {
        "listeners": f"PLAINTEXT://{HOST}:{port},LOST://{HOST}:{elsewhere},CONTROLLER://{HOST}:{{controller}}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port},LOST://{CLOSED}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,LOST:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "offsets.retention.minutes": "60",
        "group.max.session.timeout.ms": "20000",
        "default.replication.factor": "3",
    }
    controller = free_port()
    config["listeners"] = config["listeners"].format(controller=controller)
    with KafkaBroker(port=port, controller_port=controller, config=config) as broker:
        broker.lost = f"{HOST}:{elsewhere}"  # type: ignore[attr-defined]
        yield broker


def test_a_broker_whose_settings_are_wrong(wrong_broker: KafkaBroker) -> None:
    """On a cluster that has never had a group, too."""
    ward = Ward(wrong_broker.bootstrap_servers)
    ward.make(orders={})
    answer = ward.ask(**{"kafka.replication_factor": ""})
    assert answer.bad >= {("places", "warning"), ("session time-out", "broken"), ("right to create", "broken")}
    assert "places are kept 60 minutes, messages 7 days or longer" in answer.worst("places")["what"]
    assert "kafka.session_timeout_ms = 20000" in answer.worst("session time-out")["remedy"]
    assert answer.worst("right to subscribe", about="group")["severity"] == "ok"


def test_a_broker_that_sends_clients_to_nowhere(wrong_broker: Any) -> None:
    answer = Ward(wrong_broker.lost).ask()
    finding = answer.worst("listeners")
    assert (finding["severity"], f"come by {CLOSED}: connection refused" in finding["what"]) == ("broken", True)
    assert "advertised.listeners" in finding["remedy"]
    assert answer.exit_code == 2
