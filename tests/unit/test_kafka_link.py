"""The connection's state, told from what librdkafka reports piece by piece."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import KafkaError

from incident_messaging.backends.kafka.link import Link
from incident_messaging.errors import ConfigurationError, ConnectionFailed

REFUSED = "Connect to ipv4#127.0.0.1:1 failed: Connection refused"


def error(server: str, text: str = REFUSED, code: int = KafkaError._TRANSPORT) -> KafkaError:
    return KafkaError(code, f"{server}/bootstrap: {text}")


def test_every_address_has_to_say_no():
    link = Link("127.0.0.1:1,127.0.0.2:1")
    link.error(error("127.0.0.1:1"))
    link.error(error("127.0.0.1:1"))
    assert link.refusals == 0
    link.error(error("127.0.0.2:1"))
    assert link.refusals == 1
    assert isinstance(link.refusal, ConnectionFailed)
    assert str(link.refusal) == "Kafka producer creation failed: broker not available (127.0.0.1:1, 127.0.0.2:1)"
    assert link.refusal.code == "unreachable"


def test_a_name_may_stand_for_two_addresses():
    link = Link("localhost:1")
    link.error(error("localhost:1"))
    assert link.refusals == 0
    link.error(error("localhost:1"))
    assert link.refusals == 1


def test_a_server_that_hangs_up_says_no_too():
    link = Link("127.0.0.1:1")
    link.error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    assert link.refusals == 1


def test_of_several_servers_that_hang_up_each_says_no_in_the_log_alone():
    link = Link("127.0.0.1:1,127.0.0.1:2")
    for port in (1, 1, 2):
        assert link.refusals == 0
        text = f"ssl://127.0.0.1:{port}/bootstrap: Disconnected: SSL connection closed by peer (after 5ms in state UP)"
        link.log(7, "%s", "FAIL", "client", text)
    assert link.refusals == 1
    assert "enable_sasl" in str(link.refusal)


def test_a_no_and_that_all_are_down_is_one_no():
    link = Link("localhost:1")
    link.error(error("localhost:1"))
    link.error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    assert link.refusals == 0
    link.error(error("localhost:1"))
    assert link.refusals == 1


def test_a_name_that_does_not_resolve_is_a_no_at_once():
    link = Link("nowhere.invalid")
    link.error(error("nowhere.invalid:9092", "Failed to resolve", KafkaError._RESOLVE))
    assert link.refusals == 1


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (KafkaError._AUTHENTICATION, "SASL authentication error: Authentication failed", "unauthorized"),
        (KafkaError._SSL, "SSL handshake failed: certificate verify failed", "tls"),
        (KafkaError._TRANSPORT, "Disconnected: verify that security.protocol is correct (SSL listener?)", "tls"),
    ],
)
def test_the_kind_of_the_refusal(code, text, kind):
    link = Link("127.0.0.1:1")
    link.error(error("127.0.0.1:1", text, code))
    assert isinstance(link.refusal, ConnectionFailed)
    assert link.refusal.code == kind
    assert text in str(link.refusal)


def test_state_changes_are_logged_once(caplog):
    link = Link("127.0.0.1:1")
    with caplog.at_level(logging.INFO, "incident_messaging.kafka"):
        for _ in range(50):
            link.error(error("127.0.0.1:1"))
        link.up()
        for _ in range(50):
            link.error(error("127.0.0.1:1"))
            link.error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
        link.up()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "Kafka producer creation failed",
        "Kafka connected (127.0.0.1",
        "Kafka connection lost (127.0.0.1",
        "Kafka connected (127.0.0.1",
    ]
    assert link.state == "connected"
    assert link.trouble is not None
    assert REFUSED in link.trouble


def version_line(link: Link, text: str) -> None:
    link.log(logging.DEBUG, "%s [%s] %s", "APIVERSION", "rdkafka#producer-1", f"[thrd:x]: x/bootstrap: {text}")


def test_a_version_that_is_supported_says_nothing_of_being_let_in():
    link = Link("127.0.0.1:1")
    version_line(link, "Broker API support:")
    version_line(link, "  ApiKey Fetch (1) Versions 4..18")
    assert link.state == "new"
    assert link.hopeless is None


def test_a_broker_before_kafka_3_5_is_refused_for_good():
    link = Link("127.0.0.1:1")
    version_line(link, "Broker API support:")
    version_line(link, "  ApiKey Fetch (1) Versions 0..13")
    assert isinstance(link.hopeless, ConfigurationError)
    assert "older than 3.5" in str(link.hopeless)
    link.up()
    assert link.state == "new"
