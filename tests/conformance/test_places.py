"""Groups, broadcasts, patterns and starts: who sees which messages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from bench import PATIENCE, QUIET, SLACK, Bench, Seen, numbers
from waiting import takes, until

from incident_messaging import ConsumeFailed, Delivery, MessageEnvelope, Position, Subscription

needs = pytest.mark.needs


def next_numbers(subscription: Subscription[Any], count: int) -> list[Any]:
    return numbers(d for _ in range(count) if (d := subscription.next(PATIENCE)))


# -- groups ---------------------------------------------------------------------------------------


@needs("keeps")
def test_members_of_a_group_share_the_messages(bench: Bench) -> None:
    one, two = Seen(), Seen()
    services = [bench.new_service() for _ in range(2)]
    for service, seen in zip(services, (one, two), strict=True):
        service.subscribe("orders", group="g", callback=seen, prefetch=5)
    bench.publish("orders", range(200), key=lambda m: str(m["n"]))
    assert until(lambda: set(one.numbers + two.numbers) == set(range(200)), PATIENCE)
    # Seen, and a moment later settled: what is still in hand when another one joins may come to that one, too.
    assert until(lambda: all(each.health().oldest_unsettled_secs is None for each in services), PATIENCE)
    assert bench.rest("orders", 0, group="g") == []


@needs("keeps")
def test_a_group_keeps_its_place_over_a_restart(bench: Bench) -> None:
    bench.publish("orders", range(10), key="k")
    assert bench.read("orders", 4, bench.new_service(), group="g") == [0, 1, 2, 3]
    bench.publish("orders", range(10, 12), key="k")
    assert bench.rest("orders", 8, bench.new_service(), group="g") == list(range(4, 12))
    assert bench.rest("orders", 0, bench.new_service(), group="g") == []


def test_each_group_gets_every_message(bench: Bench) -> None:
    groups = [bench.service.subscribe("orders", group=name) for name in ("one", "two")]
    bench.publish("orders", range(20), key="k")
    for subscription in groups:
        assert next_numbers(subscription, 20) == list(range(20))


def test_different_patterns_of_one_group_each_see_all_of_theirs(bench: Bench) -> None:
    patterns = [bench.service.subscribe(topic, group="g") for topic in ("a.b", "a.*", "a.>")]
    bench.service.publish("a.b", {"n": 1})
    for subscription in patterns:
        assert next_numbers(subscription, 1) == [1]
        assert subscription.next(0) is None
    assert len({subscription.name for subscription in patterns}) == 3


@needs("keeps")
def test_late_groups_see_the_history(bench: Bench) -> None:
    bench.publish("orders", range(5), key="k")
    for group in ("one", "two", "three"):
        assert bench.rest("orders", 5, group=group) == [0, 1, 2, 3, 4]


@needs("keeps")
def test_what_a_member_did_not_acknowledge_goes_to_another(bench: Bench) -> None:
    first = bench.new_service().subscribe("orders", group="g", auto_ack=False)
    bench.publish("orders", range(6), key="k")
    held = [first.next(PATIENCE) for _ in range(6)]
    assert numbers(d for d in held if d) == list(range(6))
    first.ack([d for d in held[:2] if d])
    first.close()
    assert bench.returned("orders", 4, bench.new_service(), group="g") == [2, 3, 4, 5]


@needs("keeps")
def test_reading_in_five_parts_misses_nothing(bench: Bench) -> None:
    bench.publish("orders", range(500), key=lambda m: str(m["n"] % 5))
    found: list[int] = []
    for _ in range(5):
        found += bench.read("orders", 100, group="g")
    assert sorted(set(found)) == list(range(500))
    assert len(found) == 500


@needs("keeps")
def test_members_that_leave_at_once_lose_nothing(bench: Bench, later: Any) -> None:
    members = [bench.service.subscribe("orders", group="g") for _ in range(6)]
    leaving = [later(member.close) for member in members]
    bench.publish("orders", range(50))
    for thread in leaving:
        thread.join(PATIENCE)
    assert sorted(bench.rest("orders", 50, group="g")) == list(range(50))


@needs("order_across_members")
def test_a_key_keeps_its_order_across_members(bench: Bench) -> None:
    seen = Seen()
    for _ in range(2):
        bench.new_service().subscribe("orders", group="g", callback=seen, concurrency=2)
    for n in range(300):
        bench.service.publish_nowait("orders", {"n": n}, key=f"k{n % 6}")
    found = seen.wait(300)
    for key in range(6):
        assert [n for n in found if n % 6 == key] == list(range(key, 300, 6))


# -- topics ---------------------------------------------------------------------------------------


def test_wildcards(bench: Bench) -> None:
    published = ["a", "a.b", "a.b.c", "a.b.c.d", "b.b", "a-b"]
    expected = {
        "a": {"a"}, "a.*": {"a.b"}, "*.b": {"a.b", "b.b"}, "a.*.c": {"a.b.c"},
        "a.>": {"a.b", "a.b.c", "a.b.c.d"}, "*.*.>": {"a.b.c", "a.b.c.d"}, ">": set(published),
    }  # fmt: skip
    found: dict[str, set[str]] = {pattern: set() for pattern in expected}
    for pattern in expected:

        def keep(delivery: Delivery[Any], pattern: str = pattern) -> None:
            found[pattern].add(delivery.topic)

        bench.service.subscribe(pattern, group="g", callback=keep)
    for topic in published:
        bench.service.publish(topic, {"n": topic})
    assert until(lambda: found == expected, PATIENCE), found


@pytest.mark.parametrize("topic", ["late.topic", "late.*", "late.>"])
def test_a_topic_that_does_not_exist_yet_arrives_within_two_seconds(bench: Bench, topic: str) -> None:
    with bench.service.subscribe(topic, group="g") as subscription:
        bench.new_service().publish("late.topic", {"n": 1})
        with takes(at_most=2.0 + SLACK):
            delivery = subscription.next(PATIENCE)
    assert delivery is not None
    assert delivery.payload == {"n": 1}


def test_wildcards_leave_the_dead_letters_out(bench: Bench) -> None:
    with bench.service.subscribe(">", group="g") as everything:
        letters = bench.service.subscribe("dead-letter", group="g")
        failing = bench.service.subscribe("orders", group="failing")
        bench.publish("orders", [1])
        delivery = failing.next(PATIENCE)
        assert delivery is not None
        delivery.reject("not wanted")
        assert next_numbers(letters, 1) == [1]
        bench.publish("invoices", [2])
        assert {d.topic for _ in range(2) if (d := everything.next(PATIENCE))} == {"orders", "invoices"}
        assert everything.next(QUIET) is None


# -- start ----------------------------------------------------------------------------------------


@needs("keeps", "positions")
@pytest.mark.parametrize("broadcast", [False, True], ids=["group", "broadcast"])
@pytest.mark.parametrize("start", ["earliest", "latest", "datetime", "position", None])
def test_start(bench: Bench, start: str | None, broadcast: bool) -> None:
    bench.publish("orders", [1, 2], key="k")
    assert bench.read("orders", 2, group="clock") == [1, 2]  # so that the broker's clock has gone on
    between = datetime.now(UTC)
    assert until(lambda: (datetime.now(UTC) - between).total_seconds() > 0.01)
    third = bench.service.publish("orders", {"n": 3}, key="k")
    bench.publish("orders", [4], key="k")
    position = next(iter(third.results.values())).position
    starts: dict[str | None, Any] = {"datetime": between, "position": position}
    default = [5] if broadcast else [1, 2, 3, 4, 5]
    expected = {"earliest": [1, 2, 3, 4, 5], "latest": [5], "datetime": [3, 4, 5], "position": [3, 4, 5]}

    place: dict[str, Any] = {"broadcast": True} if broadcast else {"group": "g"}
    with bench.service.subscribe("orders", start=starts.get(start, start), **place) as subscription:
        bench.publish("orders", [5], key="k")
        wanted = expected.get(start or "", default)
        assert next_numbers(subscription, len(wanted)) == wanted
        assert subscription.next(0) is None


@needs("keeps", "positions")
def test_a_start_counts_only_where_there_is_no_place_yet(bench: Bench) -> None:
    bench.publish("orders", [1], key="k")
    first = bench.service.subscribe("orders", group="g", start="latest")
    first.close()  # it has read nothing, and yet has a place
    bench.publish("orders", [2], key="k")
    assert bench.rest("orders", 1, group="g", start="earliest") == [2]
    assert isinstance(bench.service.publish("orders", {"n": 3}).results.popitem()[1].position, Position)  # type: ignore[attr-defined]


# -- broadcast ------------------------------------------------------------------------------------


def test_broadcasts_each_see_everything(bench: Bench) -> None:
    other = bench.new_service()
    readers = [service.subscribe("orders", broadcast=True) for service in (bench.service, bench.service, other)]
    bench.publish("orders", range(50), key="k")
    for reader in readers:
        assert next_numbers(reader, 50) == list(range(50))
        assert reader.group is None


def test_a_broadcast_keeps_no_place(bench: Bench) -> None:
    with bench.service.subscribe("orders", broadcast=True) as reader:
        bench.publish("orders", [1])
        assert next_numbers(reader, 1) == [1]
    bench.publish("orders", [2])
    with bench.service.subscribe("orders", broadcast=True) as reader:
        bench.publish("orders", [3])
        assert next_numbers(reader, 1) == [3]


def test_a_reader_that_leaves_takes_nothing_from_the_others(bench: Bench) -> None:
    stays = bench.service.subscribe("orders", broadcast=True)
    leaves = bench.service.subscribe("orders", broadcast=True)
    bench.publish("orders", [1], key="k")
    assert next_numbers(leaves, 1) == [1]
    leaves.close()
    bench.publish("orders", [2], key="k")
    assert next_numbers(stays, 2) == [1, 2]


def test_a_slow_reader_is_ended_and_the_others_are_not(bench: Bench) -> None:
    slow = bench.service.subscribe("orders", broadcast=True, prefetch=10)
    quick = bench.service.subscribe("orders", broadcast=True)
    bench.publish("orders", range(100), key="k")
    assert next_numbers(quick, 100) == list(range(100))
    assert until(lambda: slow.error is not None, PATIENCE)
    asks: list[Callable[[], object]] = [lambda: slow.next(1), lambda: slow.join(1), lambda: list(slow)]
    for ask in asks:
        with pytest.raises(ConsumeFailed) as caught:
            ask()
        assert caught.value.code == "slow_reader"
    health = bench.service.health()
    assert not health.ok
    assert slow.name in health.ended
    bench.service.subscribe("orders", broadcast=True)
    assert bench.service.health().ok, "a new broadcast takes the ended one's place"


def test_a_broadcast_counts_failures_and_buries_nothing(bench: Bench) -> None:
    def fail(delivery: Delivery[Any]) -> None:
        raise ValueError("no")

    letters = bench.service.subscribe("dead-letter", group="g")
    seen = Seen(fail)
    retry = {"max_attempts": 2, "initial_delay_secs": 0.01}
    bench.new_service(retry=retry).subscribe("orders", broadcast=True, callback=seen)
    bench.service.publish("orders", MessageEnvelope.new({"n": 1}))
    bench.service.publish("orders", MessageEnvelope.new({"n": 2}))
    assert sorted(seen.wait(4)) == [1, 1, 2, 2]
    assert letters.next(QUIET) is None
