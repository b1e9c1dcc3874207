"""Where a subscription to a real Kafka begins, and what happens when the broker no longer has its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from kafka_kit import QUIET, Raw, Reader, publish
from waiting import until

from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.errors import ConfigurationError, ConsumeFailed
from incident_messaging.record import Position

NewBroker = Callable[..., KafkaBroker]
Read = Callable[..., Reader]
GROUPS = pytest.mark.parametrize("group", ["g", None])


def before_and_after(kafka: KafkaBroker, topic: str) -> datetime:
    """Five messages, a moment, five messages; the moment."""
    publish(kafka, topic, range(5))
    time.sleep(0.05)  # Kafka's times are milliseconds
    moment = datetime.now(UTC)
    time.sleep(0.05)
    publish(kafka, topic, range(5, 10))
    return moment


@GROUPS
@pytest.mark.parametrize(
    ("start", "first"),
    [("earliest", 0), ("latest", 10), ("datetime", 5), ("future", 10), ("position", 7)],
)
def test_where_a_new_place_begins(
    kafka: KafkaBroker, read: Read, topic: str, start: str, first: int, group: str | None
) -> None:
    moment = before_and_after(kafka, topic)
    starts: dict[str, Any] = {
        "datetime": moment,
        "future": datetime.fromtimestamp(time.time() + 3600, UTC),
        "position": Position(topic=topic, partition=0, offset=7),
    }
    reader = read(kafka, topic, group=group, start=starts.get(start, start))
    publish(kafka, topic, [10])
    assert reader.wait(11 - first) == [str(number) for number in range(first, 11)]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_place_is_stored_when_open_returns(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str, protocol: str
) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, partitions=3, group_protocol=protocol)
    publish(broker, topic, range(9), key="k")
    reader = read(broker, topic, start="latest")
    places = raw.committed(f"g:{topic}", topic, partitions=3)
    assert sorted(places) == [0, 0, 9]
    reader.close()
    publish(broker, topic, ["while away"], key="k")
    assert read(broker, topic, start="latest").wait(1) == ["while away"]


def test_start_counts_for_a_new_group_only(kafka: KafkaBroker, read: Read, topic: str) -> None:
    publish(kafka, topic, range(5))
    first = read(kafka, topic)
    first.wait(5)
    first.close()
    publish(kafka, topic, range(5, 8))
    assert read(kafka, topic, start="latest").wait(3) == ["5", "6", "7"]


def test_what_appeared_while_the_group_was_away_is_read_from_its_beginning(
    kafka: KafkaBroker, read: Read, topic: str
) -> None:
    publish(kafka, f"{topic}.a", ["a0"])
    first = read(kafka, f"{topic}.*", start="latest")
    first.close()
    publish(kafka, f"{topic}.b", ["b0"])
    publish(kafka, f"{topic}.a", ["a1"])
    second = read(kafka, f"{topic}.*", start="latest")
    assert sorted(second.wait(2)) == ["a1", "b0"]


def test_groups_and_patterns_have_their_own_places(kafka: KafkaBroker, read: Read, topic: str) -> None:
    publish(kafka, f"{topic}.a", range(3))
    asked = [(f"{topic}.a", "g"), (f"{topic}.a", "h"), (f"{topic}.*", "g"), (f"{topic}.>", "g")]
    for name, group in asked:
        assert read(kafka, name, group=group).wait(3) == ["0", "1", "2"]


@GROUPS
def test_a_start_that_retention_has_taken(
    kafka: KafkaBroker, raw: Raw, read: Read, topic: str, group: str | None
) -> None:
    publish(kafka, topic, range(10))
    raw.delete_before(topic, 7)
    reader = read(kafka, topic, group=group, start=Position(topic=topic, partition=0, offset=4))
    error = reader.wait_ended()
    assert isinstance(error, ConsumeFailed)
    assert error.code == "lost_place"
    assert "3 messages may be missing (offsets 4 to 6)" in str(error)
    assert reader.seen == []


def test_deleted_while_the_group_was_away(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    publish(kafka, topic, range(4))
    first = read(kafka, topic)
    first.wait(4)
    first.close()
    publish(kafka, topic, range(4, 10))
    raw.delete_before(topic, 9)
    error = read(kafka, topic).wait_ended()
    assert isinstance(error, ConsumeFailed)
    assert "5 messages may be missing (offsets 4 to 8)" in str(error)
    # Told once: the group can be used again, and goes on with what is there.
    assert read(kafka, topic).wait(1) == ["9"]


@GROUPS
@pytest.mark.parametrize("elsewhere", [{"partition": 7}, {"topic": "other"}])
def test_a_start_in_a_partition_that_is_not_there_is_refused(
    kafka: KafkaBroker, read: Read, topic: str, group: str | None, elsewhere: dict[str, Any]
) -> None:
    publish(kafka, topic, range(3))
    start = Position(**({"topic": topic, "partition": 0, "offset": 1} | elsewhere))
    with pytest.raises(ConfigurationError, match=f"it reads {topic}-0"):
        read(kafka, topic, group=group, start=start)


@GROUPS
def test_a_start_before_all_time_is_the_beginning(
    kafka: KafkaBroker, read: Read, topic: str, group: str | None
) -> None:
    publish(kafka, topic, range(3))
    for year in (1, 1960):
        reader = read(kafka, topic, group=group and f"{group}{year}", start=datetime(year, 1, 2, tzinfo=UTC))
        assert reader.wait(3) == ["0", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("messages_after", [2, 30])
def test_a_topic_made_anew_under_a_live_subscription(
    kafka: KafkaBroker, raw: Raw, read: Read, topic: str, messages_after: int
) -> None:
    raw.make(topic)
    raw.produce(topic, range(10))
    reader = read(kafka, topic)
    reader.wait(10)
    raw.delete(topic)
    raw.make(topic)
    raw.produce(topic, range(100, 100 + messages_after))
    error = reader.wait_ended()
    assert isinstance(error, ConsumeFailed)
    assert error.code == "lost_place"
    assert topic in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("messages_after", [2, 30])
def test_a_broadcast_reads_a_topic_made_anew_from_its_beginning(
    kafka: KafkaBroker, raw: Raw, read: Read, topic: str, messages_after: int
) -> None:
    raw.make(topic)
    raw.produce(topic, range(10))
    reader = read(kafka, topic, group=None)
    reader.wait(10)
    raw.delete(topic)
    raw.make(topic)
    raw.produce(topic, range(100, 100 + messages_after))
    assert reader.wait(10 + messages_after)[10:] == [str(100 + number) for number in range(messages_after)]


def test_an_end_by_itself_is_told_once_and_leaves_no_thread(
    kafka: KafkaBroker, raw: Raw, read: Read, topic: str
) -> None:
    publish(kafka, topic, range(4))
    raw.delete_before(topic, 3)
    reader = read(kafka, topic, start=Position(topic=topic, partition=0, offset=1))
    reader.wait_ended()
    assert until(lambda: reader.consumer.over)
    assert not until(lambda: reader.seen, QUIET)
    reader.close()
