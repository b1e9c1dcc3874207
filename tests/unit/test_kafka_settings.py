"""From the configuration to librdkafka's properties."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer

from incident_messaging.backends.base import ConsumerSpec
from incident_messaging.backends.kafka import errors, settings
from incident_messaging.backends.kafka.credentials import Credentials
from incident_messaging.backends.kafka.link import DebugLog
from incident_messaging.config import KafkaConfig, MessagingConfig
from incident_messaging.config.values import read_text
from incident_messaging.errors import ConfigurationError

GROUP = ConsumerSpec(topic="t", group="g", name="g:t", start="earliest", prefetch=1, prefetch_bytes=1)
BROADCAST = ConsumerSpec(topic="t", group=None, name="b", start="latest", prefetch=1, prefetch_bytes=1)


def config(**kafka: Any) -> MessagingConfig:
    return MessagingConfig(kafka=KafkaConfig(**kafka))


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("session_timeout_ms", [1, 6000, 3_600_000])
@pytest.mark.parametrize("spec", [GROUP, BROADCAST])
def test_librdkafka_takes_a_consumer(protocol: str, session_timeout_ms: int, spec: ConsumerSpec) -> None:
    made = settings.consumer(config(group_protocol=protocol, session_timeout_ms=session_timeout_ms), spec)
    Consumer(made, logger=DebugLog()).close()


@pytest.mark.parametrize("size", [1024, 1_048_576, 900_000_000])
def test_librdkafka_takes_any_message_size(size: int) -> None:
    made = MessagingConfig(max_message_size=size, max_in_flight=1, max_in_flight_bytes=1 << 40)
    Producer(settings.producer(made), logger=DebugLog()).close()
    Consumer(settings.consumer(made, GROUP), logger=DebugLog()).close()


def test_librdkafka_refuses_what_it_cannot_take() -> None:
    """The two tests above can fail: a value out of range does not get past the constructor."""
    with pytest.raises(KafkaException, match=r"message\.max\.bytes"):
        Producer(settings.producer(config()) | {"message.max.bytes": 1 << 31})
    with pytest.raises(KafkaException, match=r"session\.timeout\.ms"):
        Consumer(settings.consumer(config(), GROUP) | {"session.timeout.ms": 0})


def test_what_the_promises_rest_on() -> None:
    sends = settings.producer(config())
    assert (sends["acks"], sends["enable.idempotence"], sends["partitioner"]) == ("all", True, "murmur2_random")
    assert sends["max.in.flight.requests.per.connection"] == 1
    takes = settings.consumer(config(), GROUP)
    assert takes["auto.offset.reset"] == "error"
    assert not takes["enable.auto.commit"]
    assert not takes["enable.auto.offset.store"]
    assert not takes["allow.auto.create.topics"]


def test_the_new_group_protocol_leaves_times_to_the_broker() -> None:
    takes = settings.consumer(config(group_protocol="consumer"), GROUP)
    assert takes["group.protocol"] == "consumer"
    assert not {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"} & takes.keys()
    assert settings.is_incremental(KafkaConfig(group_protocol="consumer", exact_group_id=True))


def test_a_group_shared_with_others_speaks_their_assignor() -> None:
    takes = settings.consumer(config(exact_group_id=True), GROUP)
    assert "partition.assignment.strategy" not in takes
    assert not settings.is_incremental(KafkaConfig(exact_group_id=True))


def test_extra_is_passed_through_and_debug_is_kept() -> None:
    made = config(extra={"linger.ms": 50, "debug": "broker"})
    assert settings.producer(made)["linger.ms"] == 50
    assert settings.producer(made)["debug"] == "broker,feature"
    assert settings.consumer(made, GROUP)["debug"] == "broker,topic"


def test_tls_and_login(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    made = KafkaConfig(
        enable_ssl=True,
        ssl_ca_file=tmp_path / "ca.pem",
        enable_sasl=True,
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="u",
        sasl_password="p",
    )
    properties = settings.connection(made)
    assert properties["security.protocol"] == "sasl_ssl"
    assert properties["ssl.ca.location"] == str(tmp_path / "ca.pem")
    assert (properties["sasl.mechanism"], properties["sasl.username"]) == ("SCRAM-SHA-512", "u")
    assert properties["sasl.password"] == "p"
    assert settings.connection(KafkaConfig())["security.protocol"] == "plaintext"


def test_a_token_is_asked_for_without_arguments() -> None:
    made = KafkaConfig(enable_sasl=True, sasl_mechanism="OAUTHBEARER", sasl_oauth_token=lambda: ("token", 2e9))
    assert settings.connection(made)["oauth_cb"]("whatever librdkafka hands over") == ("token", 2e9)


def test_no_frame_of_an_error_holds_what_was_given(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"s3cret\xff")
    refusals: list[Callable[[], object]] = [
        lambda: errors.checked_token(("s3cret", 0.0)),
        lambda: read_text(str(tmp_path / "bad"), "kafka.sasl_password_file"),
    ]
    for refusal in refusals:
        with pytest.raises(ConfigurationError) as caught:
            refusal()
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        frames = [frame for frame in shown.stack if "incident_messaging" in frame.filename]
        assert frames
        assert "s3cret" not in str([frame.locals for frame in frames])


def test_a_trouble_with_files_is_told_once_until_they_are_used_well(caplog: pytest.LogCaptureFixture) -> None:
    credentials = Credentials(KafkaConfig())
    for _ in range(2):
        credentials.tell("half of it")
    with credentials.used():
        pass
    credentials.tell("half of it")
    assert caplog.text.count("half of it") == 2
