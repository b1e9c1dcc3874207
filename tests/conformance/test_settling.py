"""How a message leaves: acknowledged, given back, failed, rejected."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from bench import PATIENCE, QUICK, QUIET, SLACK, Bench, Seen, numbers
from waiting import takes, until

from incident_messaging import ConfigurationError, Delivery, Reject, Retry, Subscription

needs = pytest.mark.needs


def next_number(subscription: Subscription[Any], timeout: float = PATIENCE) -> Any:
    delivery = subscription.next(timeout)
    return delivery and delivery.payload["n"]


@needs("keeps")
def test_asking_for_the_next_acknowledges_the_last(bench: Bench) -> None:
    bench.publish("orders", range(3), key="k")
    with bench.service.subscribe("orders", group="g") as subscription:
        assert [next_number(subscription) for _ in range(3)] == [0, 1, 2]
    assert bench.rest("orders", 1, group="g") == [2]


@needs("keeps")
@pytest.mark.parametrize("way", ["break", "exception"])
def test_leaving_the_loop_gives_the_last_one_back(bench: Bench, way: str) -> None:
    bench.publish("orders", range(3), key="k")
    subscription = bench.service.subscribe("orders", group="g")

    def loop() -> None:
        for delivery in subscription:
            if delivery.payload["n"] == 1:
                if way == "break":
                    break
                raise ZeroDivisionError

    if way == "break":
        loop()
    else:
        with pytest.raises(ZeroDivisionError):
            loop()
    again = subscription.next(PATIENCE)
    assert again is not None
    assert (again.payload["n"], again.attempt) == (1, 1)
    subscription.close()
    assert bench.returned("orders", 2, group="g") == [1, 2]


@needs("keeps")
def test_leaving_consume_gives_the_last_one_back(bench: Bench) -> None:
    bench.publish("orders", range(3), key="k")
    for delivery in bench.service.consume("orders", group="g", timeout=PATIENCE):
        if delivery.payload["n"] == 1:
            break
    assert bench.returned("orders", 2, group="g") == [1, 2]


@needs("keeps")
def test_without_auto_ack_only_what_was_acknowledged_leaves(bench: Bench) -> None:
    bench.publish("orders", range(4), key="k")
    with bench.service.subscribe("orders", group="g", auto_ack=False) as subscription:
        found = [delivery for _ in range(4) if (delivery := subscription.next(PATIENCE))]
        assert numbers(found) == [0, 1, 2, 3]
        found[0].ack()
        found[1].ack()
    assert bench.returned("orders", 2, group="g") == [2, 3]


@needs("keeps")
def test_without_auto_ack_a_callback_that_returns_has_settled_nothing(bench: Bench) -> None:
    seen = Seen(lambda delivery: delivery.ack() if delivery.payload["n"] == 0 else None)
    bench.publish("orders", range(2), key="k")
    subscription = bench.service.subscribe("orders", group="g", callback=seen, auto_ack=False)
    assert seen.wait(2) == [0, 1]
    subscription.close()
    assert bench.rest("orders", 1, group="g") == [1]


def test_prefetch_bounds_what_is_not_settled(bench: Bench) -> None:
    with bench.service.subscribe("orders", group="g", auto_ack=False, prefetch=3) as subscription:
        bench.publish("orders", range(5))
        found = [subscription.next(PATIENCE) for _ in range(3)]
        assert subscription.next(QUIET) is None
        assert found[0] is not None
        found[0].ack()
        assert subscription.next(PATIENCE) is not None
        assert subscription.next(QUIET) is None


@needs("keeps")
def test_a_prefetched_message_is_nobody_elses_and_an_idle_member_gets_the_rest(bench: Bench) -> None:
    first = bench.service.subscribe("orders", group="g", auto_ack=False, prefetch=1)
    bench.publish("orders", range(2), key="k")
    assert next_number(first) == 0
    first.close()
    assert bench.returned("orders", 2, group="g") == [0, 1]


def test_nack_brings_a_message_again(bench: Bench) -> None:
    with bench.service.subscribe("orders", group="g") as subscription:
        bench.publish("orders", [1])
        for attempt in (1, 2, 3):
            delivery = subscription.next(PATIENCE)
            assert delivery is not None
            assert delivery.attempt == attempt
            delivery.nack(0)
        with takes(at_most=PATIENCE, at_least=0.25):
            delivery.nack(0.3)  # settled already: harmless
            again = subscription.next(PATIENCE)
            assert again is not None
            again.nack(0.3)
            assert next_number(subscription) == 1


@pytest.mark.parametrize("way", ["callback", "iterator"])
def test_reject_ends_in_the_dead_letters_at_once(bench: Bench, way: str) -> None:
    letters = bench.service.subscribe("dead-letter", group="g")
    subscription = bench.service.subscribe(
        "orders", group="g", callback=(lambda d: d.reject("spam")) if way == "callback" else None
    )
    bench.publish("orders", [1])
    if way == "iterator":
        delivery = subscription.next(PATIENCE)
        assert delivery is not None
        delivery.reject("spam")
    letter = letters.next(PATIENCE)
    assert letter is not None
    assert letter.headers["x-dlq-exception-message"] == "spam"
    assert letter.headers["x-dlq-attempts"] == "1"


def test_raising_retry_and_reject(bench: Bench) -> None:
    def act(delivery: Delivery[Any]) -> None:
        if delivery.attempt < 3:
            raise Retry(0.2 if delivery.attempt == 1 else 0)
        raise Reject("enough")

    letters = bench.service.subscribe("dead-letter", group="g")
    seen = Seen(act)
    bench.service.subscribe("orders", group="g", callback=seen)
    with takes(at_most=PATIENCE, at_least=0.2):
        bench.publish("orders", [1])
        seen.wait(3)
    letter = letters.next(PATIENCE)
    assert letter is not None
    assert letter.headers["x-dlq-exception-type"] == "incident_messaging.consuming.delivery.Reject"
    assert letter.headers["x-dlq-exception-message"] == "enough"
    assert letter.headers["x-dlq-attempts"] == "3"


@needs("keeps")
def test_settling_twice_and_from_other_threads_is_harmless(bench: Bench, later: Any) -> None:
    bench.publish("orders", range(3), key="k")
    with bench.service.subscribe("orders", group="g", auto_ack=False) as subscription:
        found = [delivery for _ in range(3) if (delivery := subscription.next(PATIENCE))]
        later(lambda: [delivery.ack() for delivery in found[:2]]).join(PATIENCE)
        found[0].ack()
        found[1].nack(0)
        found[1].reject("too late")
        found[2].nack(0)
        again = subscription.next(PATIENCE)
        assert again is not None
        assert (again.payload["n"], again.attempt) == (2, 2)
        found[2].ack()  # of an earlier hand-out: settles nothing
    assert bench.rest("orders", 1, group="g") == [2]
    assert bench.rest("dead-letter", 0, group="g") == []


@needs("keeps")
def test_settling_inside_a_callback_wins_over_auto_ack(bench: Bench) -> None:
    seen = Seen(lambda delivery: delivery.nack(0) if delivery.attempt == 1 else None)
    bench.publish("orders", [1])
    subscription = bench.service.subscribe("orders", group="g", callback=seen)
    assert seen.wait(2) == [1, 1]
    subscription.close()
    assert bench.rest("orders", 0, group="g") == []


@needs("keeps")
def test_a_batch_is_acknowledged_whole_by_the_next_call(bench: Bench) -> None:
    bench.publish("orders", range(10), key="k")
    with bench.service.subscribe("orders", group="g") as subscription:
        found: list[Any] = []
        while len(found) < 6:
            found += numbers(subscription.next_batch(6 - len(found), PATIENCE))
        last = subscription.next_batch(4, PATIENCE)
        assert found == list(range(6))
        assert last
    assert bench.returned("orders", 4, group="g") == list(range(6, 10))


@needs("keeps")
def test_a_batch_is_acknowledged_by_name(bench: Bench) -> None:
    bench.publish("orders", range(5), key="k")
    with bench.service.subscribe("orders", group="g", auto_ack=False) as subscription:
        found: list[Any] = []
        while len(found) < 5:
            found += subscription.next_batch(5, PATIENCE)
        assert numbers(found) == [0, 1, 2, 3, 4]
        subscription.ack(found[:3])
        assert subscription.next_batch(5, 0) == []
    assert bench.returned("orders", 2, group="g") == [3, 4]


@needs("keeps")
def test_a_confirmed_acknowledgement_is_known_to_the_broker(bench: Bench) -> None:
    bench.publish("orders", range(2), key="k")
    subscription = bench.new_service().subscribe("orders", group="g", auto_ack=False)
    delivery = subscription.next(PATIENCE)
    assert delivery is not None
    with takes(at_most=5.0 + SLACK):
        delivery.ack(confirm=True)
    subscription.close()
    assert bench.rest("orders", 1, group="g") == [1]


@needs("keeps")
def test_consume_ends_by_limit_or_time_and_takes_no_more(bench: Bench) -> None:
    bench.publish("orders", range(5), key="k")
    assert numbers(bench.service.consume("orders", group="g", limit=2)) == [0, 1]
    ends = time.monotonic() + PATIENCE
    found: list[Any] = []
    while len(found) < 3:  # a busy broker may be silent for so long before it sends them
        with takes(at_most=PATIENCE, at_least=QUIET):
            found += numbers(bench.service.consume("orders", group="g", timeout=QUIET))
        assert time.monotonic() < ends, f"only {found} came"
    assert found == [2, 3, 4]


@needs("keeps")
def test_consume_one_twice(bench: Bench) -> None:
    service = bench.new_service()
    bench.publish("orders", range(3), key="k")
    first = service.consume_one("orders", group="g", timeout=PATIENCE)
    assert first is not None
    places = service._intakes()
    second = service.consume_one("orders", group="g", timeout=PATIENCE)
    assert second is not None
    assert service._intakes() == places, "its place is still there"
    assert numbers([first, second]) == [0, 1]
    service.close()
    assert bench.rest("orders", 1, group="g") == [2]
    with takes(at_most=PATIENCE, at_least=0.2):
        assert bench.service.consume_one("empty", group="g", timeout=0.2) is None


@needs("keeps")
def test_consume_one_asked_in_another_way_is_not_held_up_by_its_own_place(bench: Bench) -> None:
    service = bench.service
    bench.publish("orders", range(3), key="k")
    first = service.consume_one("orders", group="g", timeout=PATIENCE)
    second = service.consume_one("orders", Any, group="g", timeout=PATIENCE, auto_ack=False)
    assert second is not None
    second.ack()
    third = service.consume_one("orders", group="g", timeout=PATIENCE, auto_ack=False)
    assert first is not None
    assert third is not None
    assert numbers([first, second, third]) == [0, 1, 2]


@needs("keeps")
def test_consume_one_without_auto_ack_is_settled_by_hand(bench: Bench) -> None:
    service = bench.new_service()
    bench.publish("orders", range(3), key="k")
    first = service.consume_one("orders", group="g", timeout=PATIENCE, auto_ack=False)
    assert first is not None
    first.ack()
    second = service.consume_one("orders", group="g", timeout=PATIENCE, auto_ack=False)
    assert second is not None
    assert numbers([first, second]) == [0, 1]
    service.close()
    assert bench.returned("orders", 2, group="g") == [1, 2]


def test_threads_that_iterate_one_subscription_each_settle_their_own(bench: Bench, later: Any) -> None:
    subscription = bench.service.subscribe("orders", group="g")
    found: list[Any] = []
    both = threading.Barrier(2, timeout=PATIENCE)

    def read() -> None:
        delivery = subscription.next(PATIENCE)
        both.wait()  # each has one in hand
        ends = time.monotonic() + PATIENCE
        while delivery is not None or (len(found) < 100 and time.monotonic() < ends):
            if delivery is not None:
                found.append(delivery.payload["n"])
            delivery = subscription.next(QUIET)

    readers = [later(read) for _ in range(2)]
    bench.publish("orders", range(100))
    for reader in readers:
        reader.join(2 * PATIENCE)
    assert sorted(found) == list(range(100))


def test_an_option_that_is_not_allowed_is_refused_at_once(bench: Bench) -> None:
    wrong: list[dict[str, Any]] = [
        {"prefetch": 0}, {"concurrency": 2}, {"group": ""}, {"group": "g", "broadcast": True},
        {"handler_timeout": 0, "callback": print}, {"start": "yesterday"},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ConfigurationError):
            bench.service.subscribe("orders", **options)
    with bench.service.subscribe("orders", group="g", callback=print) as subscription:
        with pytest.raises(ConfigurationError, match="has a callback"):
            subscription.next(0)


def test_every_attempt_fails_and_is_counted(bench: Bench) -> None:
    def fail(delivery: Delivery[Any]) -> None:
        raise ValueError(f"attempt {delivery.attempt}")

    letters = bench.service.subscribe("dead-letter", group="g")
    seen = Seen(fail)
    subscription = bench.service.subscribe("orders", group="g", callback=seen, retry=QUICK)
    bench.publish("orders", [1])
    letter = letters.next(PATIENCE)
    assert letter is not None
    assert [delivery.attempt for delivery in seen.deliveries] == [1, 2]
    assert letter.headers["x-dlq-attempts"] == "2"
    assert until(lambda: bench.service.health().oldest_unsettled_secs is not None)  # the letter itself
    subscription.close()
