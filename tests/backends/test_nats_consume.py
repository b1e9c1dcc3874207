"""Consuming from JetStream: places, credit, settling, and what faults do to them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from nats_kit import PATIENCE, QUIET, SLACK, Reader, api, in_time, publish, spec, stream_names
from waiting import takes, until

from incident_messaging.backends.nats import pull
from incident_messaging.backends.nats.broker import NatsBroker
from incident_messaging.errors import ConfigurationError, ConnectionFailed, ConsumeFailed, SubscribeFailed, Timeout
from incident_messaging.record import Position
from incident_messaging.topics import durable_name

Brokers = Callable[..., NatsBroker]
Servers = Callable[..., Any]
Read = Callable[..., Reader]


def numbers(*of: int) -> list[str]:
    return [str(number) for number in range(*of)]


def keep_for(url: str, prefix: str, seconds: int) -> None:
    """Have a prefix's stream keep its messages for so long from now on."""
    config = api(url, f"STREAM.INFO.{prefix.upper()}")["config"]
    api(url, f"STREAM.UPDATE.{prefix.upper()}", **config | {"max_age": seconds * 10**9})


def all_aged(url: str, prefix: str) -> bool:
    """Whether nothing is left within a time in which all that is there becomes too old; what comes next is kept."""
    keep_for(url, prefix, 1)
    gone = until(lambda: not api(url, f"STREAM.INFO.{prefix.upper()}")["state"]["messages"], PATIENCE)
    keep_for(url, prefix, 3600)
    return gone


# -- places -------------------------------------------------------------------------------------------


def test_a_group_goes_on_where_it_was(broker: NatsBroker, prefix: str, read: Read) -> None:
    publish(broker, f"{prefix}.orders", range(10))
    first = read(broker, f"{prefix}.orders", prefetch=1, acks=False)
    for _ in range(4):
        first.wait(len(first.seen) or 1)
        seen = len(first.seen)
        first.ack(first.seen[-1:], in_time())
        first.wait(seen + 1)
    first.close()
    second = read(broker, f"{prefix}.orders")
    second.wait(6)
    assert second.bodies == numbers(4, 10)


def test_what_is_published_after_open_is_seen(broker: NatsBroker, prefix: str, read: Read) -> None:
    for number in range(20):
        reader = read(broker, f"{prefix}.orders", group=f"g{number}", start="latest")
        publish(broker, f"{prefix}.orders", [number])
        assert reader.wait(1) == [str(number)]


@pytest.mark.parametrize("group", ["g", None])
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("earliest", ["0", "1", "2", "new"]),
        ("latest", ["new"]),
        ("position", ["1", "2", "new"]),
        ("time", ["1", "2", "new"]),
    ],
)
def test_where_a_new_place_begins(
    broker: NatsBroker, prefix: str, read: Read, group: str | None, start: str, expected: list[str]
) -> None:
    topic = f"{prefix}.orders"
    positions = publish(broker, topic, ["0", "1", "2"])
    reference = read(broker, topic, group="reference")
    reference.wait(3)
    starts = {
        "position": positions[1],
        "time": datetime.fromtimestamp(reference.seen[1].timestamp, UTC) - timedelta(microseconds=2),
    }
    reader = read(broker, topic, group=group, start=starts.get(start, start))
    publish(broker, topic, ["new"])
    assert reader.wait(len(expected)) == expected


@pytest.mark.parametrize("group", ["g", None])
def test_a_start_in_another_stream_is_refused(broker: NatsBroker, prefix: str, read: Read, group: str | None) -> None:
    publish(broker, f"{prefix}.orders", ["0"])
    with pytest.raises(ConfigurationError, match=f"is kept by {prefix.upper()}"):
        read(broker, f"{prefix}.orders", group=group, start=Position(stream="ANOTHER", sequence=2))


def test_start_counts_only_for_a_place_that_is_new(broker: NatsBroker, prefix: str, read: Read) -> None:
    publish(broker, f"{prefix}.orders", ["0"])
    read(broker, f"{prefix}.orders", start="latest").close()
    publish(broker, f"{prefix}.orders", ["1"])
    reader = read(broker, f"{prefix}.orders", start="earliest")
    assert reader.wait(1) == ["1"]


def test_members_share_and_groups_do_not(
    broker: NatsBroker, new_broker: Brokers, nats_server: Any, prefix: str, read: Read
) -> None:
    other = new_broker(nats_server.url, prefix=prefix)
    members = [read(each, f"{prefix}.orders", prefetch=10) for each in (broker, other)]
    alone = read(broker, f"{prefix}.orders", group="alone")
    publish(broker, f"{prefix}.orders", range(200))
    assert alone.wait(200) == numbers(200)
    assert until(lambda: sum(len(member.seen) for member in members) >= 200)
    assert sorted(int(body) for member in members for body in member.bodies) == list(range(200))
    assert all(member.seen for member in members)


def test_wildcards(broker: NatsBroker, prefix: str, read: Read) -> None:
    star, rest, one = (read(broker, f"{prefix}.{pattern}") for pattern in ("a.*", "a.>", "a.x"))
    for topic in ("a.x", "a.y", "a.x.deep", "b.x"):
        publish(broker, f"{prefix}.{topic}", [topic])
    assert rest.wait(3) == ["a.x", "a.y", "a.x.deep"]
    assert star.wait(2) == ["a.x", "a.y"]
    assert one.wait(1) == ["a.x"]
    assert [message.topic for message in star.seen] == [f"{prefix}.a.x", f"{prefix}.a.y"]


def test_broadcasts_see_all_and_leave_nothing_behind(
    broker: NatsBroker, nats_server: Any, prefix: str, read: Read
) -> None:
    readers = [read(broker, f"{prefix}.orders", group=None, start="latest", prefetch=7) for _ in range(3)]
    publish(broker, f"{prefix}.orders", range(100))
    for reader in readers:
        assert reader.wait(100) == numbers(100)
        assert reader.most_unsettled <= 7
        reader.close()
    assert not api(nats_server.url, f"CONSUMER.NAMES.{prefix.upper()}")["consumers"]


# -- credit -------------------------------------------------------------------------------------------


def test_prefetch_bounds_what_is_unsettled(broker: NatsBroker, prefix: str, read: Read) -> None:
    publish(broker, f"{prefix}.orders", range(50))
    reader = read(broker, f"{prefix}.orders", prefetch=5, acks=False)
    reader.wait(5)
    assert not until(lambda: len(reader.seen) > 5, QUIET)
    reader.ack(reader.seen[2:3])
    reader.wait(6)
    assert not until(lambda: len(reader.seen) > 6, QUIET)
    assert reader.bodies == numbers(6)


def test_prefetch_bytes_bound_it_too_and_let_one_through(broker: NatsBroker, prefix: str, read: Read) -> None:
    publish(broker, f"{prefix}.orders", [b"s" * 300, b"m" * 300, b"l" * 5000, b"t" * 10])
    reader = read(broker, f"{prefix}.orders", prefetch_bytes=1000, acks=False)
    reader.wait(2)
    assert not until(lambda: len(reader.seen) > 2, QUIET)
    reader.ack(reader.seen[:2])
    reader.wait(3)
    assert len(reader.seen[2].body or b"") == 5000
    assert not until(lambda: len(reader.seen) > 3, QUIET)
    reader.ack(reader.seen[2:])
    reader.wait(4)


def test_every_free_place_is_used(broker: NatsBroker, prefix: str, read: Read) -> None:
    """Nine of ten wait for their next attempt: the tenth place goes on."""
    publish(broker, f"{prefix}.orders", range(30))
    reader = read(broker, f"{prefix}.orders", prefetch=10, acks=False)
    reader.wait(10)
    for seen in range(10, 30):
        reader.ack(reader.seen[-1:])
        reader.wait(seen + 1)
    assert reader.bodies == numbers(30)


def test_one_by_one(broker: NatsBroker, prefix: str, read: Read) -> None:
    publish(broker, f"{prefix}.orders", range(300))
    reader = read(broker, f"{prefix}.orders", prefetch=1)
    reader.wait(300)
    assert reader.bodies == numbers(300)
    assert reader.most_unsettled == 1


# -- settling -----------------------------------------------------------------------------------------


def test_a_confirmed_acknowledgement_is_on_the_server(
    broker: NatsBroker, nats_server: Any, prefix: str, read: Read
) -> None:
    publish(broker, f"{prefix}.orders", range(3))
    reader = read(broker, f"{prefix}.orders", acks=False)
    reader.wait(3)
    reader.ack(reader.seen[:2], in_time())
    durable = durable_name("g", f"{prefix}.orders")
    assert api(nats_server.url, f"CONSUMER.INFO.{prefix.upper()}.{durable}")["ack_floor"]["stream_seq"] == 2
    reader.ack(reader.seen[:2], in_time())  # again: passed over


def test_confirming_to_a_frozen_server_times_out(nats_server_factory: Servers, new_broker: Brokers, read: Read) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, request_timeout_ms=60_000)
    publish(broker, "t.orders", ["0"])
    reader = read(broker, "t.orders", acks=False)
    reader.wait(1)
    server.freeze()
    with takes(at_most=0.4 + SLACK, at_least=0.3), pytest.raises(Timeout):
        reader.ack(reader.seen, in_time(0.4))
    server.thaw()


def test_a_slow_handler_keeps_its_message(nats_server: Any, new_broker: Brokers, prefix: str, read: Read) -> None:
    # The other would have it soon after ack_wait; this one tells thrice in that time that it goes on.
    broker = new_broker(nats_server.url, prefix=prefix, ack_wait_ms=1200)
    other = new_broker(nats_server.url, prefix=prefix)
    publish(broker, f"{prefix}.orders", ["0"])
    slow = read(broker, f"{prefix}.orders", acks=False)
    slow.wait(1)
    fast = read(other, f"{prefix}.orders")
    assert not until(lambda: fast.seen or len(slow.seen) > 1, 2.0)
    slow.ack(slow.seen, in_time())
    slow.close()
    assert not until(lambda: fast.seen, QUIET)


def test_close_gives_back_in_order_what_was_not_acknowledged(broker: NatsBroker, prefix: str, read: Read) -> None:
    publish(broker, f"{prefix}.orders", range(20))
    first = read(broker, f"{prefix}.orders", prefetch=10, acks=False)
    first.wait(10)
    first.ack(first.seen[:3])
    # The three that this lets in, so that no request is open at the end: what the server sends to an inbox
    # that has just gone it puts before what is given back.
    first.wait(13)
    with takes(at_most=SLACK):
        first.close()
    seen = len(first.seen)
    second = read(broker, f"{prefix}.orders")
    with takes(at_most=2 * SLACK):  # without, after ack_wait
        second.wait(17)
    assert sorted(map(int, second.bodies)) == list(range(3, 20))
    assert second.bodies[-(20 - seen) :] == numbers(seen, 20)
    assert len(first.seen) == seen, "delivered after close"


def test_closing_twice_is_harmless_and_a_closed_one_delivers_nothing(
    broker: NatsBroker, prefix: str, read: Read
) -> None:
    reader = read(broker, f"{prefix}.orders")
    reader.close()
    reader.close()
    publish(broker, f"{prefix}.orders", ["0"])
    assert not until(lambda: reader.seen, QUIET)


# -- faults -------------------------------------------------------------------------------------------


def test_consuming_rides_over_kill_and_restart(
    nats_server_factory: Servers, new_broker: Brokers, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "_SILENCE_SECS", 3600.0)  # what asks anew is the connection that is back
    server = nats_server_factory()
    broker = new_broker(server.url)
    reader = read(broker, "t.orders", prefetch=50)
    publish(broker, "t.orders", range(500))
    reader.wait(500)
    server.kill()
    server.start()
    publish(broker, "t.orders", range(500, 1000))
    with takes(at_most=3 * SLACK):
        reader.wait(1000)
    assert not until(lambda: len(reader.seen) > 1000, QUIET)
    assert reader.bodies == numbers(1000), "what was acknowledged came again, or out of order"


def test_an_acknowledgement_given_while_the_server_is_away_counts(
    nats_server_factory: Servers, new_broker: Brokers, read: Read
) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, ack_wait_ms=1000)
    publish(broker, "t.orders", ["0", "1"])
    reader = read(broker, "t.orders", acks=False)
    reader.wait(2)
    server.kill()
    assert until(lambda: broker.status().state == "disconnected")
    reader.ack(reader.seen)
    server.start()
    durable = f"CONSUMER.INFO.T.{durable_name('g', 't.orders')}"
    assert until(lambda: api(server.url, durable)["ack_floor"]["stream_seq"] == 2)
    assert not until(lambda: len(reader.seen) > 2, 1.5)


def test_a_frozen_server_is_ridden_out(nats_server_factory: Servers, new_broker: Brokers, read: Read) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, ping_interval_secs=0.2)
    reader = read(broker, "t.orders")
    publish(broker, "t.orders", range(10))
    reader.wait(10)
    server.freeze()
    assert until(lambda: broker.status().state == "disconnected")
    server.thaw()
    publish(broker, "t.orders", range(10, 20))
    with takes(at_most=3 * SLACK):
        reader.wait(20)
    assert reader.bodies == numbers(20)


@pytest.mark.parametrize("group", ["g", None])
def test_a_broken_connection_loses_no_place(
    nats_server_factory: Servers, new_broker: Brokers, read: Read, group: str | None
) -> None:
    server = nats_server_factory()
    # What is on its way to a group when the server ends comes again after the ack time-out, behind what follows.
    broker, other = new_broker(server.url, ack_wait_ms=1000), new_broker(server.url)
    reader = read(broker, "t.orders", group=group, prefetch=20)
    for begin in range(0, 300, 100):
        publish(other, "t.orders", range(begin, begin + 100))
        reader.wait(begin + 50)
        server.restart()
    reader.wait(300)
    found = reader.bodies if group is None else sorted(reader.bodies, key=int)
    assert found == numbers(300)


def test_close_with_a_frozen_server_is_bounded(nats_server_factory: Servers, new_broker: Brokers, read: Read) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, request_timeout_ms=60_000)
    publish(broker, "t.orders", range(10))
    reader = read(broker, "t.orders", acks=False)
    reader.wait(10)
    server.freeze()
    reader.ack(reader.seen[:5])
    with takes(at_most=0.8 + SLACK):
        reader.close(0.8)
    with takes(at_most=0.5 + SLACK):
        broker.close(in_time(0.5))


def test_the_durable_deleted_ends_the_subscription(
    broker: NatsBroker, nats_server: Any, prefix: str, read: Read
) -> None:
    reader = read(broker, f"{prefix}.orders")
    publish(broker, f"{prefix}.orders", ["0"])
    reader.wait(1)
    api(nats_server.url, f"CONSUMER.DELETE.{prefix.upper()}.{durable_name('g', f'{prefix}.orders')}")
    error = reader.wait_ended()
    assert isinstance(error, ConsumeFailed)
    assert error.code == "lost_place"
    again = read(broker, f"{prefix}.orders")
    assert again.wait(1) == ["0"]


@pytest.mark.parametrize("group", ["g", None])
def test_the_stream_deleted_ends_the_subscription(
    broker: NatsBroker, nats_server: Any, prefix: str, read: Read, group: str | None
) -> None:
    reader = read(broker, f"{prefix}.orders", group=group)
    publish(broker, f"{prefix}.orders", ["0"])
    reader.wait(1)
    api(nats_server.url, f"STREAM.DELETE.{prefix.upper()}")
    error = reader.wait_ended()
    assert isinstance(error, ConsumeFailed)
    assert error.code == "lost_place"


def test_messages_that_aged_unread_are_told_once(
    nats_server: Any, new_broker: Brokers, prefix: str, read: Read
) -> None:
    broker = new_broker(nats_server.url, prefix=prefix, stream_max_age_secs=3600, duplicate_window_secs=1)
    publish(broker, f"{prefix}.orders", ["0"])
    read(broker, f"{prefix}.orders").wait(1)
    first = read(broker, f"{prefix}.orders", group="away")
    first.wait(1)
    first.close()
    publish(broker, f"{prefix}.orders", ["1", "2", "3"])
    assert all_aged(nats_server.url, prefix)
    with pytest.raises(ConsumeFailed) as caught:
        read(broker, f"{prefix}.orders", group="away")
    assert caught.value.code == "lost_place"
    assert "up to 3 messages" in str(caught.value)
    again = read(broker, f"{prefix}.orders", group="away")
    publish(broker, f"{prefix}.orders", ["4"])
    assert again.wait(1) == ["4"]


def test_a_group_on_a_quiet_topic_has_lost_nothing(
    nats_server: Any, new_broker: Brokers, prefix: str, read: Read
) -> None:
    """Its stream moves on with other topics, whose messages age; the place is told apart from a lost one."""
    broker = new_broker(nats_server.url, prefix=prefix, stream_max_age_secs=3600, duplicate_window_secs=1)
    publish(broker, f"{prefix}.quiet", ["0"])
    first = read(broker, f"{prefix}.quiet")
    first.wait(1)
    first.close()
    publish(broker, f"{prefix}.busy", range(10))
    second = read(broker, f"{prefix}.quiet")
    second.close()
    assert all_aged(nats_server.url, prefix)
    third = read(broker, f"{prefix}.quiet")
    publish(broker, f"{prefix}.quiet", ["1"])
    assert third.wait(1) == ["1"]


# -- streams ------------------------------------------------------------------------------------------


def test_the_stream_is_made_as_configured(nats_server: Any, new_broker: Brokers, read: Read) -> None:
    broker = new_broker(
        nats_server.url,
        prefix="made.so",
        stream_max_age_secs=3600,
        stream_max_bytes=1_000_000,
        duplicate_window_secs=60,
    )
    read(broker, "made.so.orders", dead_letter_topic="made.so.dead-letter")
    made = api(nats_server.url, "STREAM.INFO.MADE-SO")["config"]
    assert made["subjects"] == ["made.so.>"]
    assert (made["retention"], made["storage"], made["discard"]) == ("limits", "file", "new")
    assert (made["max_age"], made["max_bytes"], made["duplicate_window"]) == (
        3600 * 10**9,
        1_000_000,
        60 * 10**9,
    )
    assert made["num_replicas"] == 1


def test_a_stream_that_is_there_is_used_as_it_is(nats_server: Any, new_broker: Brokers, read: Read) -> None:
    api(nats_server.url, "STREAM.CREATE.MINE", name="MINE", subjects=["there.orders", "there.dead-letter"])
    broker = new_broker(nats_server.url, prefix="there")
    assert publish(broker, "there.orders", ["0"])[0] == Position(stream="MINE", sequence=1)
    assert read(broker, "there.orders", dead_letter_topic="there.dead-letter").wait(1) == ["0"]
    assert "THERE" not in stream_names(nats_server.url)


def test_an_overlap_names_the_other_stream(nats_server: Any, new_broker: Brokers, read: Read) -> None:
    api(nats_server.url, "STREAM.CREATE.OTHER", name="OTHER", subjects=["over.orders"])
    broker = new_broker(nats_server.url, prefix="over")
    with pytest.raises(SubscribeFailed) as caught:
        read(broker, "over.bills")
    assert caught.value.code == "overlap"
    assert "OTHER" in str(caught.value)


def test_several_streams_are_read_side_by_side(nats_server: Any, new_broker: Brokers, read: Read) -> None:
    for name in ("one", "two"):
        api(nats_server.url, f"STREAM.CREATE.S-{name}", name=f"S-{name}", subjects=[f"several.{name}.>"])
    broker = new_broker(nats_server.url, prefix="several")
    for number in range(20):
        publish(broker, f"several.{('one', 'two')[number % 2]}.x", [number])
    reader = read(broker, "several.>", prefetch=1)
    reader.wait(20)
    assert sorted(map(int, reader.bodies)) == list(range(20))
    assert reader.most_unsettled == 1
    assert {message.position.stream for message in reader.seen} == {"S-one", "S-two"}


def test_without_a_prefix_new_first_levels_are_found(
    nats_server_factory: Servers, new_broker: Brokers, read: Read
) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url, prefix="")
    reader = read(broker, "*.created", start="latest")
    publish(broker, "alpha.created", ["a"])
    with takes(at_most=2.0 + SLACK):
        reader.wait(1)
    publish(broker, "beta.created", ["b"])
    with takes(at_most=2.0 + SLACK):
        assert reader.wait(2) == ["a", "b"]
    assert stream_names(server.url) == ["ALPHA", "BETA"]
    assert api(server.url, "STREAM.INFO.ALPHA")["config"]["subjects"] == ["alpha", "alpha.>"]


def test_two_that_make_the_same_stream_both_succeed(
    nats_server: Any, new_broker: Brokers, prefix: str, later: Any
) -> None:
    brokers = [new_broker(nats_server.url, prefix=prefix, stream_max_age_secs=age) for age in (3600, 7200)]
    for broker in brokers:
        broker.connect(in_time())
    threads = [later(lambda broker=broker: publish(broker, f"{prefix}.orders", range(10))) for broker in brokers]
    for thread in threads:
        thread.join(PATIENCE)
    assert api(nats_server.url, f"STREAM.INFO.{prefix.upper()}")["state"]["messages"] == 20


def test_without_a_stream_and_leave_to_make_one(nats_server: Any, new_broker: Brokers, read: Read) -> None:
    broker = new_broker(nats_server.url, prefix="none", create_streams=False)
    with pytest.raises(SubscribeFailed) as caught:
        read(broker, "none.orders")
    assert caught.value.code == "no_topic"


def test_a_server_without_jetstream(nats_server_factory: Servers, new_broker: Brokers, read: Read) -> None:
    broker = new_broker(nats_server_factory(jetstream=False).url)
    with takes(at_most=2 * SLACK), pytest.raises(SubscribeFailed, match="JetStream is not enabled"):
        read(broker, "t.orders")


def test_a_subscription_that_is_denied(nats_server_factory: Servers, new_broker: Brokers, read: Read) -> None:
    users = """authorization { users = [
        { user: "u", password: "p", permissions: { publish: { deny: "$JS.API.CONSUMER.CREATE.>" } } }] }"""
    broker = new_broker(nats_server_factory(config=users).url, user="u", password="p")
    with takes(at_most=2 * SLACK), pytest.raises(SubscribeFailed) as caught:
        read(broker, "t.orders")
    assert caught.value.code == "denied"


def test_opening_at_a_dead_port_fails_at_once(new_broker: Brokers, free_port: int) -> None:
    broker = new_broker(f"nats://127.0.0.1:{free_port}")
    reader = Reader(broker, spec("t.orders"))
    with takes(at_most=SLACK), pytest.raises(ConnectionFailed, match="connection refused"):
        reader.open()


def test_opening_while_the_server_is_frozen_times_out_with_words(
    nats_server_factory: Servers, new_broker: Brokers
) -> None:
    server = nats_server_factory()
    broker = new_broker(server.url)
    broker.connect(in_time())
    server.freeze()
    reader = Reader(broker, spec("t.orders"))
    with takes(at_most=0.5 + SLACK), pytest.raises(Timeout, match="waited for a stream"):
        reader.open(0.5)
