"""Publishing to a real Kafka."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from kafka_kit import PATIENCE, SLACK, Outcomes, Raw, fails, in_time, publish, record
from waiting import takes, until

from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.errors import (
    BackendUnavailable,
    ConfigurationError,
    ConnectionFailed,
    PublishFailed,
    Timeout,
)

NewBroker = Callable[..., KafkaBroker]


def test_nothing_happens_before_the_first_use(new_kafka: NewBroker, kafka_broker: Any) -> None:
    before = set(threading.enumerate())
    broker = new_kafka(kafka_broker.bootstrap_servers)
    assert set(threading.enumerate()) <= before
    assert broker.status().state == "new"
    assert broker.close(in_time(1)) == 0
    assert broker.status().state == "closed"


def test_the_wire_form(kafka: KafkaBroker, raw: Raw, topic: str) -> None:
    text = "Störung \udcff"
    foreign = [("a", b"\xfe"), ("b", b""), ("c", None)]
    sent = record(topic, b"body", key="schlüssel", headers={"a": text, "": ""}, raw_headers=foreign)
    outcomes = Outcomes()
    outcomes.send(kafka, sent)
    assert outcomes.wait() == [None]
    (message,) = raw.read(topic, 1)
    assert message.value() == b"body"
    assert message.key() == "schlüssel".encode()
    assert message.headers() == [
        ("a", b"\xfe"),
        ("b", b""),
        ("c", None),
        ("a", "Störung ".encode() + b"\xff"),
        ("", b""),
    ]
    (position,) = outcomes.positions
    assert position is not None
    assert (position.topic, position.partition, position.offset) == (topic, message.partition(), message.offset())


def test_no_key_is_none_and_an_empty_key_is_empty(kafka: KafkaBroker, raw: Raw, topic: str) -> None:
    publish(kafka, topic, [b"none"])
    publish(kafka, topic, [b"empty"], key="")
    assert {m.value(): m.key() for m in raw.read(topic, 2)} == {b"none": None, b"empty": b""}


def test_keys_land_where_java_clients_put_them(new_kafka: NewBroker, kafka_broker: Any, raw: Raw, topic: str) -> None:
    """Partitions of murmur2, as org.apache.kafka.common.utils.Utils computes them."""
    raw.make(topic, partitions=10)
    broker = new_kafka(kafka_broker.bootstrap_servers)
    landed = {}
    for key in ("21", "foobar", "a-little-bit-long-string"):
        (position,) = publish(broker, topic, [b"x"], key=key)
        assert position is not None
        landed[key] = position.partition
    hashes = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    assert landed == {key: (value & 0x7FFFFFFF) % 10 for key, value in hashes.items()}


def test_one_key_keeps_its_order(new_kafka: NewBroker, kafka_broker: Any, raw: Raw, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, partitions=3)
    outcomes = Outcomes()
    for number in range(3000):
        outcomes.send(broker, record(topic, number, key=f"k{number % 7}"))
    assert set(outcomes.wait()) == {None}
    by_key: dict[bytes, list[int]] = {}
    for message in raw.read(topic, 3000, partitions=3):
        by_key.setdefault(message.key(), []).append(int(message.value()))
    assert len(by_key) == 7
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


def test_the_first_records_of_a_new_topic_are_kept(new_kafka: NewBroker, kafka_broker: Any, raw: Raw) -> None:
    """With several requests in flight one new topic of six loses its first records (docs/decisions/0009)."""
    for _ in range(15):
        topic = f"t{uuid.uuid4().hex[:11]}"
        broker = new_kafka(kafka_broker.bootstrap_servers, partitions=3)
        places = publish(broker, topic, range(500))
        assert len({(place.partition, place.offset) for place in places if place is not None}) == 500
        assert {int(message.value()) for message in raw.read(topic, 500, partitions=3)} == set(range(500))
        broker.close(in_time())


def test_a_missing_topic_is_made_as_configured(new_kafka: NewBroker, kafka_broker: Any, raw: Raw, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, partitions=4, replication_factor=1)
    publish(broker, topic, [1])
    assert raw.topics()[topic] == 4


def test_two_that_make_the_same_topic_agree(new_kafka: NewBroker, kafka_broker: Any, raw: Raw, topic: str) -> None:
    brokers = [new_kafka(kafka_broker.bootstrap_servers) for _ in range(4)]
    for broker in brokers:
        broker.connect(in_time())
    outcomes = Outcomes()
    for broker in brokers:
        outcomes.send(broker, record(topic))
    assert outcomes.wait() == [None] * 4
    assert len(raw.read(topic, 4)) == 4


def test_a_missing_topic_that_may_not_be_made(new_kafka: NewBroker, kafka_broker: Any, raw: Raw, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, create_topics=False)
    with takes(at_most=2 * SLACK):
        error = fails(broker, record(topic))
    assert isinstance(error, PublishFailed)
    assert error.code == "no_stream"
    assert topic in str(error)
    assert "kafka.create_topics" in str(error)
    assert topic not in raw.topics()


def test_a_topic_that_was_deleted_is_made_anew_by_the_next_publish(kafka: KafkaBroker, raw: Raw, topic: str) -> None:
    publish(kafka, topic, [1])
    raw.delete(topic)
    error = fails(kafka, record(topic, 2))
    assert isinstance(error, PublishFailed)
    assert error.code == "no_stream"
    publish(kafka, topic, [3, 4])
    assert [message.value() for message in raw.read(topic, 2)] == [b"3", b"4"]


def test_larger_than_the_client_takes(new_kafka: NewBroker, kafka_broker: Any, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, max_message_size=10_000)
    error = fails(broker, record(topic, b"x" * 200_000))
    assert isinstance(error, PublishFailed)
    assert error.code == "too_large"
    assert error.__cause__ is not None
    publish(broker, topic, [1])


def test_larger_than_the_topic_takes(kafka: KafkaBroker, raw: Raw, topic: str) -> None:
    raw.make(topic, **{"max.message.bytes": "1000"})
    error = fails(kafka, record(topic, bytes(range(256)) * 100))
    assert isinstance(error, PublishFailed)
    assert error.code == "too_large"
    assert "max.message.bytes" in str(error)
    publish(kafka, topic, [1])


def test_a_megabyte_goes_through(kafka: KafkaBroker, raw: Raw, topic: str) -> None:
    publish(kafka, topic, [b"x" * 1_048_500])
    assert len(raw.read(topic, 1)[0].value()) == 1_048_500


@pytest.mark.parametrize("servers", ["127.0.0.1:{port}", "localhost:{port}", "127.0.0.1:{port},localhost:{port}"])
def test_a_dead_port_says_no_before_the_time_is_up(
    new_kafka: NewBroker, free_port: int, topic: str, servers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    servers = servers.format(port=free_port)
    broker = new_kafka(servers)
    with takes(at_most=2 * SLACK), pytest.raises(ConnectionFailed) as caught:
        broker.connect(in_time())
    assert caught.value.code == "unreachable"
    assert str(caught.value) == (f"Kafka producer creation failed: broker not available ({servers.replace(',', ', ')})")
    with takes(at_most=2 * SLACK):
        error = fails(broker, record(topic))
    assert isinstance(error, ConnectionFailed)
    assert broker.status().state == "new"
    assert "refused" in (broker.status().error or "")
    assert broker.close(in_time(2)) == 0
    assert capfd.readouterr().err == ""


def test_a_record_ends_in_time_where_nobody_answers(new_kafka: NewBroker, silent_port: int, topic: str) -> None:
    broker = new_kafka(f"127.0.0.1:{silent_port}")
    outcomes = Outcomes()
    with takes(at_least=0.5, at_most=0.5 + SLACK):
        outcomes.send(broker, record(topic), 0.5)
        (error,) = outcomes.wait()
    assert isinstance(error, ConnectionFailed)
    with takes(at_most=0.5 + SLACK), pytest.raises(ConnectionFailed):
        broker.connect(in_time(0.5))
    with takes(at_most=1 + SLACK):
        assert broker.close(in_time(1)) == 0


def test_what_was_given_up_before_the_connection_is_never_sent(
    new_kafka: NewBroker, kafka_broker_factory: Callable[..., Any], free_port: int, topic: str
) -> None:
    broker = new_kafka(f"127.0.0.1:{free_port}")
    assert isinstance(fails(broker, record(topic, "given up"), 5), ConnectionFailed)
    own = kafka_broker_factory(port=free_port)
    broker.connect(in_time())
    publish(broker, topic, ["sent"])
    assert [m.value() for m in Raw(own.bootstrap_servers).read(topic, 1)] == [b"sent"]


def test_tls_to_a_broker_without(new_kafka: NewBroker, kafka_broker: Any) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, enable_ssl=True)
    with takes(at_most=3 * SLACK), pytest.raises(ConnectionFailed) as caught:
        broker.connect(in_time())
    assert caught.value.code == "tls"
    assert kafka_broker.bootstrap_servers in str(caught.value)


def test_a_property_that_librdkafka_does_not_know(new_kafka: NewBroker, kafka_broker: Any, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, extra={"no.such.property": "1"})
    with pytest.raises(ConfigurationError, match=r"no\.such\.property"):
        broker.connect(in_time())
    assert isinstance(fails(broker, record(topic)), ConfigurationError)


def test_a_token_that_cannot_be_had(new_kafka: NewBroker, kafka_broker: Any) -> None:
    def token() -> tuple[str, float]:
        raise LookupError("no token today")

    broker = new_kafka(
        kafka_broker.bootstrap_servers, enable_sasl=True, sasl_mechanism="OAUTHBEARER", sasl_oauth_token=token
    )
    with takes(at_most=2 * SLACK), pytest.raises(ConnectionFailed) as caught:
        broker.connect(in_time())
    assert caught.value.code == "unauthorized"
    assert "no token today" in str(caught.value)


def test_after_the_close_nothing_is_taken(kafka: KafkaBroker, topic: str) -> None:
    publish(kafka, topic, [1])
    assert kafka.close(in_time()) == 0
    assert kafka.close(in_time()) == 0
    error = fails(kafka, record(topic))
    assert isinstance(error, BackendUnavailable)
    assert error.code == "closed"
    with pytest.raises(BackendUnavailable):
        kafka.connect(in_time())


def test_close_sends_what_was_handed_over(new_kafka: NewBroker, kafka_broker: Any, raw: Raw, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers)
    outcomes = Outcomes()
    for number in range(5000):
        outcomes.send(broker, record(topic, number))
    assert broker.close(in_time()) == 0
    assert outcomes.wait(0) == [None] * 5000
    assert len(raw.read(topic, 5000)) == 5000


def test_many_threads(new_kafka: NewBroker, kafka_broker: Any, raw: Raw, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers)
    outcomes = [Outcomes() for _ in range(20)]

    def send(own: Outcomes) -> None:
        for number in range(100):
            own.send(broker, record(topic, number))

    threads = [threading.Thread(target=send, args=(own,), name="sender") for own in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(set(own.wait()) == {None} for own in outcomes)
    assert len(raw.read(topic, 2000)) == 2000


def test_a_handler_of_reports_that_raises_stops_nothing(kafka: KafkaBroker, topic: str) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("not mine")

    kafka.send(record(topic), in_time(), raises)
    publish(kafka, topic, [1])


@pytest.mark.slow
def test_a_frozen_broker(new_kafka: NewBroker, kafka_broker_factory: Callable[..., Any], topic: str) -> None:
    own = kafka_broker_factory()
    broker = new_kafka(own.bootstrap_servers)
    publish(broker, topic, [1])
    own.freeze()
    outcomes = Outcomes()
    with takes(at_least=0.5, at_most=0.5 + SLACK):
        outcomes.send(broker, record(topic, "short"), 0.5)
        (error,) = outcomes.wait()
    assert isinstance(error, Timeout)
    assert error.maybe_delivered
    for number in range(100):
        outcomes.send(broker, record(topic, number))
    outcomes.send(broker, record(topic + ".new"))
    with takes(at_most=1 + SLACK):
        assert broker.close(in_time(1)) == 101
    errors = outcomes.wait(0)
    assert all(isinstance(error, Timeout) for error in errors)
    assert errors[-1].maybe_delivered is False, "it was held for its topic, and never left"
    own.thaw()


@pytest.mark.slow
def test_an_outage_is_ridden_out(new_kafka: NewBroker, kafka_broker_factory: Callable[..., Any], topic: str) -> None:
    own = kafka_broker_factory()
    # For as long as a broker may take to start on a busy machine.
    broker = new_kafka(own.bootstrap_servers, publish_timeout_ms=90_000, message_timeout_ms=90_000)
    publish(broker, topic, [-1], key="k")
    outcomes = Outcomes()
    own.kill()
    assert until(lambda: broker.status().state == "disconnected", PATIENCE)
    for number in range(500):
        outcomes.send(broker, record(topic, number, key="k"), 90)
    own.start()
    assert outcomes.wait(90) == [None] * 500
    assert broker.status().state == "connected"
    numbers = [int(m.value()) for m in Raw(own.bootstrap_servers).read(topic, 501)]
    assert numbers == list(range(-1, 500)), "in order, once each"


@pytest.mark.slow
def test_restarts_under_load_lose_and_repeat_nothing(
    new_kafka: NewBroker, kafka_broker_factory: Callable[..., Any], topic: str
) -> None:
    own = kafka_broker_factory()
    broker = new_kafka(own.bootstrap_servers, publish_timeout_ms=90_000, message_timeout_ms=90_000)
    publish(broker, topic, [-1])
    outcomes = Outcomes()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            if outcomes.sent - len(outcomes.told) < 5_000:  # also where a broker takes its time to start
                outcomes.send(broker, record(topic, outcomes.sent, key="k"), 90)
            time.sleep(0.0005)

    sender = threading.Thread(target=load, name="load")
    sender.start()
    try:
        for _ in range(2):
            reached = len(outcomes.told)
            assert until(lambda reached=reached: len(outcomes.told) > reached + 300, PATIENCE)
            own.kill()
            own.start()
        reached = len(outcomes.told)
        assert until(lambda: len(outcomes.told) > reached + 300, PATIENCE)
    finally:
        stop.set()
        sender.join()
    assert set(outcomes.wait(90)) == {None}
    numbers = [int(m.value()) for m in Raw(own.bootstrap_servers).read(topic, outcomes.sent + 1)]
    assert numbers == list(range(-1, outcomes.sent))
