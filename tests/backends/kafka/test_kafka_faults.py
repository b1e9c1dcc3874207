"""Consuming from a Kafka that fails: killed, frozen, away; and members that die."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from kafka_kit import PATIENCE, SLACK, Raw, Reader, in_time, publish, spec
from waiting import takes, until

from incident_messaging.backends.kafka import credit
from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.backends.kafka.consumer import GroupConsumer
from incident_messaging.errors import ConnectionFailed, MessagingError, Timeout

NewBroker = Callable[..., KafkaBroker]
Factory = Callable[..., Any]
Read = Callable[..., Reader]
GROUPS = pytest.mark.parametrize("group", ["g", None])


@GROUPS
def test_a_dead_port_says_no_at_once(new_kafka: NewBroker, free_port: int, topic: str, group: str | None) -> None:
    reader = Reader(new_kafka(f"127.0.0.1:{free_port}"), spec(topic, group=group))
    with takes(at_most=2 * SLACK), pytest.raises(ConnectionFailed) as caught:
        reader.open()
    assert str(free_port) in str(caught.value)
    with takes(at_most=SLACK):
        reader.close()


@GROUPS
def test_nobody_answers(new_kafka: NewBroker, silent_port: int, topic: str, group: str | None) -> None:
    reader = Reader(new_kafka(f"127.0.0.1:{silent_port}"), spec(topic, group=group))
    with takes(at_most=0.5 + SLACK), pytest.raises(ConnectionFailed):
        reader.open(0.5)
    reader.close()


@pytest.mark.slow
@GROUPS
def test_open_at_a_frozen_broker_ends_in_time(
    new_kafka: NewBroker, kafka_broker_factory: Factory, topic: str, group: str | None
) -> None:
    own = kafka_broker_factory()
    broker = new_kafka(own.bootstrap_servers)
    publish(broker, topic, [1])
    own.freeze()
    reader = Reader(broker, spec(topic, group=group))
    with takes(at_most=1.0 + SLACK), pytest.raises(Timeout, match="it waited for"):
        reader.open(1.0)
    with takes(at_most=1.0 + SLACK):
        reader.close(1.0)
    own.thaw()
    assert until(lambda: reader.consumer.over, PATIENCE)


@pytest.mark.slow
def test_closing_with_a_frozen_broker(new_kafka: NewBroker, kafka_broker_factory: Factory, topic: str) -> None:
    own = kafka_broker_factory()
    broker = new_kafka(own.bootstrap_servers)
    publish(broker, topic, range(10))
    readers = [Reader(broker, spec(topic, group=group)).open() for group in ("g", "h", None)]
    unsettled = Reader(broker, spec(topic, group="i"), acks=False).open()
    for reader in (*readers, unsettled):
        reader.wait(10)
    own.freeze()
    with takes(at_most=1.0 + SLACK), pytest.raises(Timeout):
        unsettled.ack(unsettled.seen[:3], in_time(1.0))
    for reader in (*readers, unsettled):
        with takes(at_most=1.0 + SLACK):
            reader.close(1.0)
    with takes(at_most=1.0 + SLACK):
        broker.close(in_time(1.0))
    own.thaw()
    assert until(lambda: all(reader.consumer.over for reader in (*readers, unsettled)), PATIENCE), (
        "they end by themselves"
    )


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_restart_of_the_broker_under_load(
    new_kafka: NewBroker, kafka_broker_factory: Factory, topic: str, protocol: str
) -> None:
    own = kafka_broker_factory()
    broker = new_kafka(own.bootstrap_servers, publish_timeout_ms=60_000, group_protocol=protocol)
    group = Reader(broker, spec(topic, name="g")).open()
    wild = Reader(broker, spec("*", name="w", dead_letter_topic="dead")).open()
    broadcast = Reader(broker, spec(topic, group=None)).open()
    readers = (group, wild, broadcast)
    try:
        publish(broker, topic, range(100), key="k")
        for reader in readers:
            reader.wait(100)
        for begin in (100, 200):
            own.kill()
            own.start()
            publish(broker, topic, range(begin, begin + 100), key="k")
            for reader in readers:
                assert until(lambda reader=reader, end=begin + 99: str(end) in reader.bodies, PATIENCE), reader.error
        expected = [str(number) for number in range(300)]
        for reader in readers:
            assert list(dict.fromkeys(reader.bodies)) == expected, "all of them, first seen in order"
        assert broadcast.bodies == expected, "a broadcast keeps its place in memory"
    finally:
        for reader in readers:
            reader.close()


_MEMBER = """
import sys, time
from incident_messaging.backends.base import ConsumerSpec
from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.config import KafkaConfig, MessagingConfig
from incident_messaging.deadline import Deadline

class Sink:
    def deliver(self, batch):
        first = [message for message in batch if message.body < b"5"]
        consumer.ack(first)
        print(len(batch), flush=True)
    def forget(self, gone): pass
    def ended(self, error): print(error, flush=True)

servers, topic = sys.argv[1:]
kafka = KafkaConfig(bootstrap_servers=servers, session_timeout_ms=6000, auto_commit_interval_ms=100)
broker = KafkaBroker(MessagingConfig(kafka=kafka))
spec = ConsumerSpec(
    topic=topic, group="g", name=f"g:{topic}", start="earliest", prefetch=100, prefetch_bytes=1 << 20
)
consumer = broker.consumer(spec, Sink())
consumer.open(Deadline.after(20))
print("open", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_what_a_killed_member_had_comes_to_another(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str
) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, session_timeout_ms=6000)
    publish(broker, topic, range(10))
    command = [sys.executable, "-c", _MEMBER, kafka_broker.bootstrap_servers, topic]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as member:
        try:
            assert member.stdout is not None
            delivered = 0
            while delivered < 10:
                line = member.stdout.readline().strip()
                assert line, "the member ended"
                delivered += int(line) if line.isdigit() else 0
            assert until(lambda: raw.committed(f"g:{topic}", topic) == [5], PATIENCE)
        finally:
            member.send_signal(signal.SIGKILL)
    reader = read(broker, topic)
    assert reader.wait(5) == ["5", "6", "7", "8", "9"]


def test_many_close_at_once(kafka: KafkaBroker, topic: str) -> None:
    readers = [Reader(kafka, spec(topic, group=f"g{number % 3}")) for number in range(6)]
    opened = [threading.Thread(target=reader.open, name="opens") for reader in readers]
    for thread in opened:
        thread.start()
    for thread in opened:
        thread.join()
    publish(kafka, topic, range(20))
    assert until(lambda: sum(len(reader.seen) for reader in readers) >= 60, PATIENCE)
    closing = [threading.Thread(target=reader.close, name="closes") for reader in readers]
    with takes(at_most=3 * SLACK):  # the group of one that says no good-bye waits 30 s for it
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
    assert all(reader.consumer.over for reader in readers)


def test_closing_while_opening(kafka: KafkaBroker, topic: str) -> None:
    for number in range(10):
        reader = Reader(kafka, spec(topic, group=f"g{number}"))
        failed: list[MessagingError] = []

        def opens(reader: Reader = reader, failed: list[MessagingError] = failed) -> None:
            try:
                reader.open()
            except MessagingError as error:
                failed.append(error)

        thread = threading.Thread(target=opens, name="opens")
        thread.start()
        until(lambda: False, number * 0.02)
        with takes(at_most=1.5 + SLACK):
            reader.close(1.5)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert reader.consumer.over


@pytest.mark.slow
def test_partitions_that_were_paused_go_on_when_they_come_back(
    new_kafka: NewBroker, kafka_broker_factory: Factory, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka remembers a pause over the loss of a partition: here the session ends while the broker is frozen."""
    monkeypatch.setattr(credit, "OVERFLOW", 10)
    broker = kafka_broker_factory()
    kafka = new_kafka(broker.bootstrap_servers, session_timeout_ms=6_000, partitions=4)
    for number in range(400):
        publish(kafka, topic, [number], key=f"k{number}")
    reader = Reader(kafka, spec(topic, prefetch=5), acks=False).open()
    try:
        assert until(lambda: reader.consumer._paused, PATIENCE), "its overflow is full"  # type: ignore[attr-defined]
        broker.freeze()
        time.sleep(8.0)  # longer than the session: what is tested is its end
        broker.thaw()
        assert until(lambda: reader.forgotten, PATIENCE), "its partitions are lost"
        reader.acks = True
        reader.ack(list(reader.seen))
        assert until(lambda: len(set(reader.bodies)) == 400, PATIENCE), f"{len(set(reader.bodies))} of 400 came"
    finally:
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["latest", "earliest"])
def test_ready_means_stored_also_where_the_first_commit_was_in_vain(
    new_kafka: NewBroker, kafka_broker_factory: Factory, topic: str, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """The broker freezes as the group's place is to be stored, for longer than the group's session lasts."""
    broker = kafka_broker_factory()
    kafka = new_kafka(broker.bootstrap_servers, session_timeout_ms=6_000, partitions=4)
    publish(kafka, topic, range(5))
    commit, frozen = GroupConsumer._commit, threading.Event()

    def freeze_first(self: GroupConsumer, *args: Any) -> None:
        if not frozen.is_set():
            frozen.set()
            broker.freeze()
            threading.Timer(8.0, broker.thaw).start()
        commit(self, *args)

    monkeypatch.setattr(GroupConsumer, "_commit", freeze_first)
    reader = Reader(kafka, spec(topic, start=start))
    begun = time.monotonic()
    try:
        reader.open(60.0)
    except Timeout:  # rarely a client does not get over what it lost then: who is told so asks again
        reader.close()
        reader = Reader(kafka, spec(topic, start=start))
        reader.open(60.0)
    try:
        assert time.monotonic() - begun > 7.5, "it was not ready while nobody could have stored anything"
        publish(kafka, topic, range(100, 130))
        wanted = {str(number) for number in range(100, 130)}
        assert until(lambda: wanted <= set(reader.bodies) or reader.error, PATIENCE)
        assert reader.error is None
    finally:
        reader.close()
