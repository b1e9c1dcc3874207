"""Consuming from a real Kafka: delivery, credit, acknowledging, groups, broadcasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from kafka_kit import PATIENCE, QUIET, SLACK, Raw, Reader, in_time, publish, spec
from kafka_wire import KafkaWire, record
from waiting import takes, until

from incident_messaging.backends.kafka import credit
from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.errors import BackendUnavailable, SubscribeFailed, Timeout

NewBroker = Callable[..., KafkaBroker]
Read = Callable[..., Reader]


def quiet(reader: Reader, count: int) -> bool:
    """Nothing more than so many messages came for a while."""
    return not until(lambda: len(reader.seen) > count, QUIET)


def test_a_message_as_it_comes_in(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    raw.make(topic)
    pairs = [("a", b"1"), ("a", b"\xff2"), ("b", None)]
    before = time.time()
    raw.produce(topic, ["body"], key=b"\xfe", headers=pairs)
    (message,) = (reader := read(kafka, topic)).wait(1) and reader.seen
    assert message.topic == topic
    assert message.body == b"body"
    assert message.key == "\udcfe"
    assert message.headers == {"a": "\udcff2", "b": ""}
    assert list(message.raw_headers) == [("a", b"1"), ("a", b"\xff2"), ("b", None)]
    assert (message.position.topic, message.position.partition, message.position.offset) == (topic, 0, 0)
    assert message.fallback_id == f"{topic}-0-0"
    assert abs(message.timestamp - before) < 10


def test_a_tombstone_has_no_body(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    raw.make(topic)
    raw.produce(topic, [None], key=b"k")
    reader = read(kafka, topic)
    reader.wait(1)
    assert reader.seen[0].body is None
    assert reader.seen[0].size == len("k")


def test_one_key_keeps_its_order(new_kafka: NewBroker, kafka_broker: Any, read: Read, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, partitions=3)
    reader = read(broker, topic)
    for key in range(5):
        publish(broker, topic, range(key, 300, 5), key=f"k{key}")
    reader.wait(300)
    for key in range(5):
        bodies = [int(message.body or b"") for message in reader.seen if message.key == f"k{key}"]
        assert bodies == sorted(bodies)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_members_share_and_what_a_leaver_had_comes_again(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str, protocol: str
) -> None:
    raw.make(topic, partitions=2)
    broker = new_kafka(kafka_broker.bootstrap_servers, group_protocol=protocol)
    one = read(broker, topic)
    two = read(broker, topic, acks=False)

    def both_get_some() -> bool:
        raw.produce(topic, range(20))
        return until(lambda: one.seen and two.seen, 1)

    assert until(both_get_some, PATIENCE)
    had = [message.position for message in two.seen]
    two.close()
    assert until(lambda: {m.position for m in one.seen} >= set(had), PATIENCE), (
        "the other member got what was given back"
    )
    assert one.error is None


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_place_is_kept_over_a_restart(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str, protocol: str
) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, group_protocol=protocol)
    publish(broker, topic, range(10))
    first = read(broker, topic)
    first.wait(10)
    first.close()
    assert raw.committed(f"g:{topic}", topic) == [10]
    publish(broker, topic, range(10, 15))
    second = read(broker, topic)
    assert second.wait(5) == ["10", "11", "12", "13", "14"]
    assert quiet(second, 5)


def test_commits_only_what_is_settled_without_a_gap(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    publish(kafka, topic, range(10))
    reader = read(kafka, topic, acks=False)
    reader.wait(10)
    reader.ack([message for number, message in enumerate(reader.seen) if number not in (3, 7)])
    reader.close()
    assert raw.committed(f"g:{topic}", topic) == [3]
    again = read(kafka, topic)
    assert again.wait(7) == [str(number) for number in range(3, 10)]


def test_commits_in_the_background(new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, auto_commit_interval_ms=200)
    reader = read(broker, topic)
    with takes(at_most=9.0):  # by the usual interval, of 5 s, the second and the third wait for the whole of it
        for end in (10, 20, 30):
            publish(broker, topic, range(10))
            reader.wait(end)
            assert until(lambda end=end: raw.committed(f"g:{topic}", topic) == [end], PATIENCE)  # type: ignore[misc]


def test_commits_after_a_thousand_whatever_the_interval(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str
) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, auto_commit_interval_ms=3_600_000)
    publish(broker, topic, range(1500))
    reader = read(broker, topic)
    reader.wait(1500)
    assert until(lambda: raw.committed(f"g:{topic}", topic)[0] >= 1000, PATIENCE)


def test_a_confirmed_acknowledgement_is_on_the_broker(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    publish(kafka, topic, range(3))
    reader = read(kafka, topic, acks=False)
    reader.wait(3)
    for number, message in enumerate(reader.seen):
        reader.ack([message], in_time())
        assert raw.committed(f"g:{topic}", topic) == [number + 1]


def test_a_confirming_acknowledgement_out_of_order_returns_at_once(
    kafka: KafkaBroker, raw: Raw, read: Read, topic: str
) -> None:
    publish(kafka, topic, range(3))
    reader = read(kafka, topic, acks=False)
    reader.wait(3)
    first, *others = reader.seen
    with takes(at_most=SLACK):
        reader.ack(others, in_time())
    assert raw.committed(f"g:{topic}", topic) == [0]
    reader.ack([first], in_time())
    assert raw.committed(f"g:{topic}", topic) == [3]


def test_confirming_is_quick_once_it_is_usual(kafka: KafkaBroker, read: Read, topic: str) -> None:
    publish(kafka, topic, range(51))
    reader = read(kafka, topic, acks=False)
    reader.wait(51)
    reader.ack(reader.seen[:1], in_time())
    seconds = []
    for message in reader.seen[1:]:
        begun = time.monotonic()
        reader.ack([message], in_time())
        seconds.append(time.monotonic() - begun)
    assert median(seconds) < 0.05, "but for what the machine stood still"


def test_acknowledging_twice_is_harmless(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    publish(kafka, topic, range(2))
    reader = read(kafka, topic, acks=False)
    reader.wait(2)
    for _ in range(3):
        reader.ack(reader.seen[:1], in_time())
    assert raw.committed(f"g:{topic}", topic) == [1]


@pytest.mark.parametrize("prefetch", [1, 7])
def test_never_more_than_prefetch(kafka: KafkaBroker, read: Read, topic: str, prefetch: int) -> None:
    publish(kafka, topic, range(300))
    reader = read(kafka, topic, acks=False, prefetch=prefetch)
    for number in range(0, 10 * prefetch, prefetch):
        reader.wait(number + prefetch)
        reader.ack(reader.seen[number : number + prefetch])
    reader.wait(11 * prefetch)
    assert quiet(reader, 11 * prefetch)
    assert reader.most_unsettled == prefetch


def test_a_full_subscription_goes_on_where_it_stopped(
    kafka: KafkaBroker, read: Read, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full for so long that the partitions are paused; what had been fetched is neither lost nor repeated."""
    monkeypatch.setattr(credit, "OVERFLOW", 10)
    publish(kafka, topic, range(200))
    reader = read(kafka, topic, acks=False, prefetch=5)
    reader.wait(5)
    assert until(lambda: reader.consumer._paused, PATIENCE)
    for number in range(200):
        reader.wait(number + 1)
        reader.ack([reader.seen[number]])
    assert reader.bodies == [str(number) for number in range(200)]


def test_prefetch_counts_bytes_and_lets_one_through(kafka: KafkaBroker, read: Read, topic: str) -> None:
    publish(kafka, topic, [b"x" * size for size in (3000, 400, 400, 400)])
    reader = read(kafka, topic, acks=False, prefetch_bytes=1000)
    reader.wait(1)
    assert quiet(reader, 1)
    reader.ack(reader.seen)
    reader.wait(3)
    assert quiet(reader, 3)


def test_a_broadcast_sees_all_and_stores_nothing(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    publish(kafka, topic, ["old"])
    readers = [read(kafka, topic, group=None, start="latest") for _ in range(2)]
    publish(kafka, topic, range(5))
    for reader in readers:
        assert reader.wait(5) == ["0", "1", "2", "3", "4"]
    names = [reader.consumer._spec.name for reader in readers]
    for reader in readers:
        reader.close()
    assert [raw.committed(name, topic) for name in names] == [[-1001], [-1001]]


def test_dead_letters_stay_out_of_wildcards(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    for number, group in enumerate(("g", None)):
        # Names of its own each time: a broadcast from the beginning would meet what was published before, too.
        dead, live = f"{topic}{number}.dead", f"{topic}{number}.live"
        reader = read(kafka, f"{topic}{number}.*", group=group, dead_letter_topic=dead)
        assert until(lambda dead=dead: dead in raw.topics()), "made at open"  # type: ignore[misc]
        publish(kafka, dead, ["dead"])
        publish(kafka, live, ["live"])
        assert reader.wait(1) == ["live"]
        assert quiet(reader, 1)
        reader.close()
        raw.delete(dead)


def test_wildcards_take_whole_levels(kafka: KafkaBroker, read: Read, topic: str) -> None:
    names = [f"{topic}.a", f"{topic}.a.b", f"{topic}.a.c.d", topic]
    for name in names:
        publish(kafka, name, [name])
    wanted = {
        f"{topic}.*": {names[0]},
        f"{topic}.>": set(names[:3]),
        f"{topic}.*.b": {names[1]},
        f"{topic}.a.*.d": {names[2]},
    }
    for number, (pattern, expected) in enumerate(wanted.items()):
        reader = read(kafka, pattern, group=f"g{number}")
        assert set(reader.wait(len(expected))) == expected
        assert quiet(reader, len(expected))


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("group", ["g", None])
def test_a_topic_made_later_is_met_within_two_seconds(
    new_kafka: NewBroker, kafka_broker: Any, read: Read, topic: str, protocol: str, group: str | None
) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, group_protocol=protocol)
    publish(broker, f"{topic}.first", ["0"])
    reader = read(broker, f"{topic}.*", group=group)
    reader.wait(1)
    with takes(at_most=4 * 2.0 + SLACK):  # a member that is not reminded (KIP-848) needs 5 s for each
        for number in range(1, 5):
            publish(broker, f"{topic}.later{number}", [number])
            reader.wait(number + 1)
    assert reader.bodies == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("group", ["g", None])
@pytest.mark.parametrize("pattern", ["{}", "{}.*"])
def test_a_subscription_may_come_before_its_topic(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str, group: str | None, pattern: str
) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers, create_topics=False)
    with takes(at_most=2 + SLACK):
        reader = read(broker, pattern.format(topic), group=group, start="latest")
    assert topic not in raw.topics()
    name = pattern.format(topic).replace("*", "later")
    raw.make(name)
    raw.produce(name, ["first"])
    assert reader.wait(1, 2.0 + SLACK) == ["first"]


def test_a_plain_topic_is_made_at_open(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    read(kafka, topic)
    assert topic in raw.topics()


@pytest.mark.slow
def test_added_partitions_are_read_from_their_beginning(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    from confluent_kafka.admin import NewPartitions

    raw.make(topic)
    readers = [read(kafka, topic, start="latest"), read(kafka, topic, group=None, start="latest")]
    raw.admin.create_partitions([NewPartitions(topic, 2)])[topic].result(PATIENCE)
    assert until(lambda: raw.topics()[topic] == 2, PATIENCE)
    raw.produce(topic, ["new"], partition=1)
    for reader in readers:
        assert reader.wait(1) == ["new"]


def test_dead_letters_without_a_topic(
    new_kafka: NewBroker, kafka_broker: Any, read: Read, raw: Raw, topic: str
) -> None:
    raw.make(topic)
    broker = new_kafka(kafka_broker.bootstrap_servers, create_topics=False)
    with pytest.raises(SubscribeFailed, match=f"{topic}.dead") as caught:
        read(broker, topic, dead_letter_topic=f"{topic}.dead")
    assert caught.value.code == "no_topic"


def test_extend_and_status(kafka: KafkaBroker, read: Read, topic: str) -> None:
    publish(kafka, topic, [1])
    reader = read(kafka, topic, acks=False)
    reader.wait(1)
    reader.consumer.extend(reader.seen)
    assert kafka.status().state == "connected"


def test_closing_twice_and_before_opening(kafka: KafkaBroker, topic: str) -> None:
    reader = Reader(kafka, spec(topic))
    reader.close()
    reader.close()
    with pytest.raises(BackendUnavailable):
        reader.open()
    opened = Reader(kafka, spec(topic)).open()
    opened.close()
    opened.close()
    assert opened.consumer.over


def test_nothing_is_delivered_after_the_close(kafka: KafkaBroker, read: Read, topic: str) -> None:
    reader = read(kafka, topic)
    publish(kafka, topic, [1])
    reader.wait(1)
    reader.close()
    publish(kafka, topic, [2])
    assert quiet(reader, 1)


def test_the_broker_closes_its_consumers(kafka: KafkaBroker, raw: Raw, topic: str) -> None:
    publish(kafka, topic, range(3))
    reader = Reader(kafka, spec(topic)).open()
    reader.wait(3)
    with takes(at_most=2 * SLACK):
        kafka.close(in_time())
    assert reader.consumer.over
    assert raw.committed(f"g:{topic}", topic) == [3]
    assert not [t.name for t in threading.enumerate() if t.name.startswith("incident-messaging-kafka")]


def test_an_empty_member_leaves_its_group_when_it_closes(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    """librdkafka's close says no good-bye where nothing is assigned; the group would wait 30 s for it."""
    raw.make(topic, partitions=1)
    readers = [read(kafka, topic) for _ in range(2)]
    assert until(lambda: sorted(len(list(r.consumer._ledger.partitions())) for r in readers) == [0, 1], PATIENCE)
    empty, full = sorted(readers, key=lambda reader: len(list(reader.consumer._ledger.partitions())))
    empty.close()
    with takes(at_most=4 * SLACK):
        third = read(kafka, topic)
        full.close()
        raw.produce(topic, ["x"])
        third.wait(1)


def test_settling_after_a_revocation_commits_nothing(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str
) -> None:
    raw.make(topic, partitions=2)
    broker = new_kafka(kafka_broker.bootstrap_servers, auto_commit_interval_ms=100)
    one = read(broker, topic, acks=False)
    for partition in (0, 1):
        raw.produce(topic, range(5), partition=partition)
    one.wait(10)
    two = read(broker, topic, acks=False)
    two.wait(5)
    (taken,) = {message.position.partition for message in two.seen}
    assert until(lambda: len(one.forgotten) == 5, PATIENCE)
    assert {message.position.partition for message in one.forgotten} == {taken}
    late = [message for message in one.seen if message.position.partition == taken]
    with takes(at_most=SLACK):
        one.ack(late, in_time())
    kept = [message for message in one.seen if message.position.partition != taken]
    one.ack(kept, in_time())
    places = raw.committed(f"g:{topic}", topic, partitions=2)
    assert places[taken] == 0
    assert places[1 - taken] == 5
    assert one.consumer._ledger.count == 0, "the credit of what was taken away is back"


def test_what_is_settled_is_committed_at_the_revocation(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str
) -> None:
    raw.make(topic, partitions=2)
    broker = new_kafka(kafka_broker.bootstrap_servers, auto_commit_interval_ms=3_600_000)
    one = read(broker, topic)
    for partition in (0, 1):
        raw.produce(topic, range(5), partition=partition)
    one.wait(10)
    two = read(broker, topic)
    assert until(lambda: any(two.consumer._ledger.partitions()), PATIENCE)
    raw.produce(topic, ["new"], partition=0)
    raw.produce(topic, ["new"], partition=1)
    assert until(lambda: "new" in two.bodies, PATIENCE)
    assert two.bodies == ["new"], "nothing that was settled comes again"


def test_a_group_is_shared_with_another_service(
    new_kafka: NewBroker, kafka_broker: Any, raw: Raw, read: Read, topic: str
) -> None:
    """A member that is not ours, with librdkafka's own assignor, takes a part and gives it back."""
    raw.make(topic, partitions=2)
    broker = new_kafka(kafka_broker.bootstrap_servers, exact_group_id=True, auto_commit_interval_ms=100)
    ours = read(broker, topic, name=topic)
    raw.produce(topic, range(5), partition=0)
    raw.produce(topic, range(5), partition=1)
    ours.wait(10)
    other = raw.member(topic, topic)
    with other:
        assert until(lambda: other.poll(0.1) is None and len(other.assignment()) == 1, PATIENCE)
        (theirs,) = other.assignment()
        raw.produce(topic, ["theirs"], partition=theirs.partition)
        raw.produce(topic, ["ours"], partition=1 - theirs.partition)
        assert until(lambda: "ours" in ours.bodies, PATIENCE)
        found = []
        assert until(
            lambda: (message := other.poll(0.1)) is not None and found.append(message.value()) is None, PATIENCE
        )
        assert found == [b"theirs"], "what was settled before the revocation was committed at it"
    assert until(lambda: "theirs" in ours.bodies, PATIENCE), "it did not commit, and left"
    assert ours.error is None


def test_open_says_what_it_waited_for(new_kafka: NewBroker, kafka_broker: Any, topic: str) -> None:
    broker = new_kafka(kafka_broker.bootstrap_servers)
    broker.connect(in_time())
    reader = Reader(broker, spec(topic))
    with takes(at_most=SLACK), pytest.raises(Timeout, match="it waited for"):
        reader.open(0.0)
    reader.close()


def test_a_header_whose_name_is_no_text_ends_nothing(kafka: KafkaBroker, raw: Raw, read: Read, topic: str) -> None:
    """confluent-kafka cannot read it, and neither send it: it goes out by hand, as another client's would."""
    raw.make(topic)
    reader = read(kafka, topic)
    with KafkaWire(raw.settings["bootstrap.servers"]) as wire:
        error, _ = wire.produce(topic, [record(0, b"odd", headers=[(b"na\xffme", b"v")])])
    assert error == 0, f"the broker refused the record: {error}"
    raw.produce(topic, ["after"])
    assert reader.wait(2) == ["odd", "after"]
    assert reader.seen[0].headers == {}


def test_waiting_for_room_in_bytes_costs_nothing(kafka: KafkaBroker, read: Read, topic: str) -> None:
    publish(kafka, topic, ["x" * 60_000] * 5)
    reader = read(kafka, topic, acks=False, prefetch_bytes=100_000)
    reader.wait(1)
    begun, seconds = time.process_time(), 1.0
    threading.Event().wait(seconds)
    assert time.process_time() - begun < seconds / 2, "the consumer's thread does not turn in circles"
    assert len(reader.seen) == 1
