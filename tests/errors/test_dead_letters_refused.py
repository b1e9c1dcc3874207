"""A dead letter that the broker does not take: the original stays, and leaves when it is taken at last."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import pytest
from confluent_kafka.admin import AclOperation, ResourceType
from kafka_rules import GUARDED, allow, deny
from waiting import until

from incident_messaging import MESSAGING_METRICS, MessagingConfig, MessagingService
from incident_messaging.brokers import KafkaBroker

#: Seconds for anything that comes, also for a message that comes again after NATS's `ack_wait`.
PATIENCE = 40.0


@pytest.fixture
def prefix() -> str:
    return f"d-{uuid.uuid4().hex[:10]}"


def numbers(service: MessagingService, topic: str, timeout: float = PATIENCE) -> list[Any]:
    found = service.consume(topic, group="g", timeout=timeout, limit=1)
    return [delivery.payload["n"] for delivery in found]


def buried(backend: str) -> float:
    return MESSAGING_METRICS.value("dead_letters", topic="orders", backend=backend)


def refused(caplog: pytest.LogCaptureFixture) -> bool:
    return any("could not be stored, its original stays" in record.message for record in caplog.records)


def test_on_nats(nats_server_factory: Any, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    # given a user who may do everything but write dead letters
    poor = f'{{ user: "poor", password: "p", permissions: {{ publish: {{ deny: ["{prefix}.dead-letter"] }} }} }}'
    server = nats_server_factory(config=f'authorization {{ users = [ {poor}, {{ user: "rich", password: "p" }} ] }}')

    def service(user: str) -> MessagingService:
        nats = {"servers": [server.url], "user": user, "password": "p"}
        return MessagingService(MessagingConfig(backend="nats", topic_prefix=prefix, nats=nats))

    before = buried("nats")
    with service("poor") as first, caplog.at_level(logging.ERROR):
        subscription = first.subscribe("orders", group="g")
        first.publish("orders", {"n": 1}, key="k")
        delivery = subscription.next(PATIENCE)
        assert delivery is not None

        # when its message is given up
        delivery.reject("bad")

        # then nothing is settled, and it is tried again
        assert until(lambda: refused(caplog), PATIENCE)
        assert first.health().oldest_unsettled_secs is not None
    assert buried("nats") == before
    with service("rich") as second:
        assert numbers(second, "dead-letter", timeout=0.3) == []
        assert numbers(second, "orders") == [1]


def test_on_kafka(prefix: str, caplog: pytest.LogCaptureFixture, kafka_broker_factory: Any) -> None:
    # given a broker that refuses the topic of the dead letters
    broker: KafkaBroker = kafka_broker_factory(config=GUARDED)
    kafka = {"bootstrap_servers": broker.bootstrap_servers}
    with MessagingService(MessagingConfig(backend="kafka", topic_prefix=prefix, kafka=kafka)) as service:
        before = buried("kafka")
        service.subscribe("orders", group="g", callback=lambda delivery: delivery.reject("bad"))
        topic = f"{prefix}.dead-letter"
        deny(broker.bootstrap_servers, ResourceType.TOPIC, topic, AclOperation.WRITE)

        # when a message is given up
        with caplog.at_level(logging.ERROR):
            service.publish("orders", {"n": 1}, key="k")

            # then it stays until the broker takes its dead letter
            assert until(lambda: refused(caplog), PATIENCE)
        assert service.health().oldest_unsettled_secs is not None
        assert buried("kafka") == before
        allow(broker.bootstrap_servers, ResourceType.TOPIC, topic)
        assert until(lambda: buried("kafka") == before + 1, PATIENCE)
        assert until(lambda: service.health().oldest_unsettled_secs is None, PATIENCE)
        assert numbers(service, "dead-letter") == [1]
