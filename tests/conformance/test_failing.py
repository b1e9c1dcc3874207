"""What follows a failure: another attempt, or the dead letters."""

from __future__ import annotations

import time
from typing import Any

import pytest
from bench import PATIENCE, QUICK, Bench, Seen, numbers
from waiting import takes, until

from incident_messaging import (
    ConfigurationError,
    ConsumeFailed,
    Delivery,
    IncidentCreated,
    IncidentEvent,
    RetryPolicy,
    UnknownIncidentEvent,
)

needs = pytest.mark.needs


def fail_on(*bad: Any, times: int = 1000) -> Any:
    def act(delivery: Delivery[Any]) -> None:
        if delivery.payload["n"] in bad and delivery.attempt <= times:
            raise ValueError(f"no {delivery.payload['n']}")

    return act


def test_a_failed_message_holds_back_its_key_and_nothing_else(bench: Bench) -> None:
    def act(delivery: Delivery[Any]) -> None:
        if delivery.payload["n"] == 0 and delivery.attempt == 1:
            assert until(lambda: len(subscription._intake._schedule) == 5, PATIENCE)  # all that could be held back
            raise ValueError("no 0")

    seen = Seen(act)
    retry = RetryPolicy(initial_delay_secs=2.0, jitter=False)
    subscription = bench.service.subscribe("orders", group="g", callback=seen, retry=retry)
    for n, key in enumerate(["a", "a", "b", None, "a"]):
        bench.service.publish("orders", {"n": n}, key=key)
    found = seen.wait(6)
    assert sorted(found[1:3]) == [2, 3]
    assert found[0] == 0
    assert found[3:] == [0, 1, 4]


def test_a_failed_message_without_a_key_holds_back_nothing(bench: Bench) -> None:
    def act(delivery: Delivery[Any]) -> None:
        if delivery.payload["n"] == 0 and delivery.attempt == 1:
            assert until(lambda: len(subscription._intake._schedule) == 3, PATIENCE)  # the others wait behind it
            raise ValueError("no 0")

    seen = Seen(act)
    retry = RetryPolicy(initial_delay_secs=0.6, jitter=False)
    subscription = bench.service.subscribe("orders", group="g", callback=seen, retry=retry)
    bench.service.publish("orders", {"n": 0})
    seen.wait(1)
    bench.publish("orders", [1, 2])
    found = seen.wait(4)
    assert (found[0], sorted(found[1:3]), found[3]) == (0, [1, 2], 0)


def test_keys_keep_their_order_side_by_side(bench: Bench) -> None:
    seen = Seen(fail_on(17, 40, times=1))
    retry = RetryPolicy(initial_delay_secs=0.05)
    bench.service.subscribe("orders", group="g", callback=seen, concurrency=4, retry=retry)
    for n in range(120):
        bench.service.publish_nowait("orders", {"n": n}, key=f"k{n % 8}")
    seen.wait(122)
    first = list(dict.fromkeys(seen.numbers))
    for key in range(8):
        assert [n for n in first if n % 8 == key] == list(range(key, 120, 8))


def test_a_slow_key_delays_no_other(bench: Bench) -> None:
    seen = Seen()

    def act(delivery: Delivery[Any]) -> None:
        if delivery.key == "slow":
            assert until(lambda: len(seen.deliveries) >= 51, PATIENCE)  # it ends when all others are through

    seen._act = act
    bench.service.subscribe("orders", group="g", callback=seen, concurrency=2)
    bench.service.publish("orders", {"n": "first"}, key="slow")
    seen.wait(1)
    bench.service.publish("orders", {"n": "second"}, key="slow")
    bench.publish("orders", range(50), key=lambda m: f"k{m['n'] % 5}")
    found = seen.wait(52)
    assert sorted(found[1:51]) == list(range(50))
    assert found[51] == "second"


def test_messages_that_fail_twice_all_arrive(bench: Bench) -> None:
    handled: list[int] = []

    def act(delivery: Delivery[Any]) -> None:
        if delivery.attempt <= 2:
            raise ValueError("not yet")
        handled.append(delivery.payload["n"])

    retry = RetryPolicy(initial_delay_secs=0.01, max_attempts=3)
    bench.service.subscribe("orders", group="g", callback=act, retry=retry)
    bench.publish("orders", range(100))
    assert until(lambda: sorted(handled) == list(range(100)), PATIENCE)


def test_waiting_messages_fill_the_prefetch(bench: Bench) -> None:
    def act(delivery: Delivery[Any]) -> None:
        if delivery.payload["n"] < 2 and delivery.attempt == 1:
            assert until(lambda: len(subscription._intake._schedule) == 2, PATIENCE)  # both are here before one waits
            raise ValueError("not yet")

    seen = Seen(act)
    retry = RetryPolicy(initial_delay_secs=0.8, jitter=False)
    subscription = bench.service.subscribe("orders", group="g", callback=seen, retry=retry, prefetch=2)
    with takes(at_most=PATIENCE, at_least=0.8):
        bench.publish("orders", [0, 1])
        seen.wait(2)
        bench.service.publish("orders", {"n": 2})  # no key, no order: sent with the others it might come before one
        found = seen.wait(5)
    assert sorted(found[:2]) == [0, 1]
    assert found[2] != 2, "there is room for it once one of the others is settled"
    assert sorted(found[2:]) == [0, 1, 2]


def test_handler_timeout_counts_as_a_failure(bench: Bench) -> None:
    released: list[bool] = []
    seen = Seen()

    def act(delivery: Delivery[Any]) -> None:
        if delivery.attempt == 1:
            assert until(lambda: len(seen.deliveries) >= 3, PATIENCE)
            released.append(True)

    seen._act = act
    retry = RetryPolicy(initial_delay_secs=0.05)
    bench.service.subscribe("orders", group="g", callback=seen, handler_timeout=0.4, retry=retry)
    bench.service.publish("orders", {"n": 1}, key="k")
    bench.service.publish("orders", {"n": 2}, key="k")
    seen.wait(2)
    assert (seen.numbers[:2], [d.attempt for d in seen.deliveries[:2]]) == ([1, 1], [1, 2])
    assert until(lambda: released, PATIENCE)  # what the late one returns counts no more
    assert seen.wait(3)[2] == 2


def test_in_progress_starts_the_handlers_time_anew(bench: Bench) -> None:
    def act(delivery: Delivery[Any]) -> None:
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:
            delivery.in_progress()
            time.sleep(0.05)

    seen = Seen(act)
    done: list[int] = []
    bench.service.subscribe(
        "orders", group="g", callback=lambda d: (seen(d), done.append(d.payload["n"])), handler_timeout=1.0
    )
    bench.publish("orders", [1])
    assert until(lambda: done == [1], PATIENCE)
    assert [delivery.attempt for delivery in seen.deliveries] == [1]


# -- dead letters ---------------------------------------------------------------------------------


@needs("keeps", "positions")
def test_a_dead_letter_is_the_original_and_says_why(bench: Bench) -> None:
    originals: list[Delivery[Any]] = []

    def act(delivery: Delivery[Any]) -> None:
        originals.append(delivery)
        raise KeyError("ä\nb")

    bench.service.subscribe("orders", group="g", callback=act, retry=QUICK)
    receipt = bench.service.publish("orders", {"n": 1}, key="k-ä", headers={"tenant": "ä", "Trace": "2"})
    (letter,) = bench.dead_letters(1)

    original, headers = originals[0], dict(letter.headers)
    assert letter.body == letter.payload == original.body
    assert (letter.key, letter.metadata.message_id) == ("k-ä", receipt.message_id)
    assert (headers.pop("tenant"), headers.pop("Trace")) == ("ä", "2")
    prefix = bench.settings["topic_prefix"]
    position = original.position
    if position.stream is not None:
        place = {"x-dlq-original-stream": position.stream, "x-dlq-original-sequence": str(position.sequence)}
    else:
        place = {"x-dlq-original-partition": str(position.partition), "x-dlq-original-offset": str(position.offset)}
    stack, failed_at = headers.pop("x-dlq-stacktrace"), headers.pop("x-dlq-failed-at")
    assert headers == {
        "x-dlq-original-topic": f"{prefix}.orders",
        **place,
        "x-dlq-exception-type": "KeyError",
        "x-dlq-exception-message": "'ä\\nb'",
        "x-dlq-attempts": "2",
        "x-dlq-group": "g",
        "x-dlq-backend": bench.features.label,
        "x-dlq-redrive-count": "0",
    }
    assert stack.startswith("Traceback")
    assert "in act" in stack
    assert stack.rstrip().endswith("KeyError: 'ä\\nb'")
    assert failed_at.startswith("20")
    assert failed_at.endswith("Z")


@needs("keeps")
def test_a_dead_letter_settles_its_original_and_lets_its_key_go_on(bench: Bench) -> None:
    seen = Seen(fail_on(0))
    subscription = bench.service.subscribe("orders", group="g", callback=seen, retry=QUICK)
    bench.publish("orders", [0, 1], key="k")
    assert seen.wait(3) == [0, 0, 1]
    assert numbers(bench.service.consume("dead-letter", group="g", timeout=PATIENCE, limit=1)) == [0]
    subscription.close()
    assert bench.rest("orders", 0, group="g") == []


@needs("keeps")
def test_a_long_reason_is_cut_so_that_the_dead_letter_fits(bench: Bench) -> None:
    def act(delivery: Delivery[Any]) -> None:
        raise ValueError("x" * 3_000_000)

    body = "y" * (1_048_576 - 400)
    bench.service.subscribe("orders", group="g", callback=act, retry=QUICK)
    bench.service.publish("orders", {"n": body})
    (letter,) = bench.dead_letters(1)
    assert body.encode() in letter.body
    assert len(letter.headers.get("x-dlq-stacktrace", "")) <= 8192
    assert letter.headers["x-dlq-exception-type"] == "ValueError"


@needs("keeps")
def test_what_cannot_be_decoded_is_buried_and_the_rest_flows(bench: Bench) -> None:
    seen = Seen()
    subscription = bench.service.subscribe("orders", IncidentCreated, group="g", callback=lambda d: seen(d))
    bench.service.publish("orders", {"type": "Created", "incident_id": 7}, key="k")
    bench.service.publish("orders", [1, 2], key="k")
    bench.service.publish("orders", IncidentCreated("INC-1", "high", "db", "down"), key="k")
    assert until(lambda: len(seen.deliveries) == 1, PATIENCE)
    assert seen.deliveries[0].payload.incident_id == "INC-1"
    letters = bench.dead_letters(2)
    assert {letter.headers["x-dlq-exception-type"] for letter in letters} == {
        "incident_messaging.errors.SerializationError"
    }
    assert {letter.headers["x-dlq-attempts"] for letter in letters} == {"1"}
    assert subscription.error is None


def test_a_variant_from_the_future_is_an_unknown_event(bench: Bench) -> None:
    with bench.service.subscribe("orders", IncidentEvent, group="g") as subscription:
        bench.service.publish("orders", {"type": "Merged", "incident_id": "INC-1", "into": "INC-2"})
        delivery = subscription.next(PATIENCE)
    assert delivery is not None
    assert delivery.payload == UnknownIncidentEvent("Merged", "INC-1", {"into": "INC-2"})


@needs("keeps")
def test_a_dead_letter_that_fails_stays_a_dead_letter(bench: Bench) -> None:
    def act(delivery: Delivery[Any]) -> None:
        raise ValueError("not even here")

    bench.service.subscribe("orders", group="g", callback=act, retry=QUICK)
    seen = Seen(act)
    retry = RetryPolicy(max_attempts=2, initial_delay_secs=0.01, max_delay_secs=0.05)
    subscription = bench.service.subscribe("dead-letter", group="reader", callback=seen, retry=retry)
    bench.publish("orders", [1])
    assert set(seen.wait(4)) == {1}
    subscription.close()
    assert bench.rest("dead-letter", 1, group="g") == [1]


@needs("keeps")
def test_without_dead_letters_a_message_is_tried_until_it_succeeds(bench: Bench) -> None:
    service = bench.new_service(enable_dlq=False)
    seen = Seen(fail_on(0, times=4))
    retry = RetryPolicy(max_attempts=2, initial_delay_secs=0.01, max_delay_secs=0.05)
    subscription = service.subscribe("orders", group="g", callback=seen, retry=retry)
    bench.publish("orders", [0, 1], key="k")
    assert seen.wait(6) == [0, 0, 0, 0, 0, 1]
    subscription.close()
    assert bench.rest("dead-letter", 0, group="g") == []


@needs("keeps")
def test_without_dead_letters_reject_is_refused_and_the_undecodable_ends(bench: Bench) -> None:
    service = bench.new_service(enable_dlq=False)
    with service.subscribe("orders", group="g") as subscription:
        bench.publish("orders", [1], key="k")
        delivery = subscription.next(PATIENCE)
        assert delivery is not None
        with pytest.raises(ConfigurationError, match="enable_dlq"):
            delivery.reject("no")
    events = service.subscribe("orders", IncidentCreated, group="events", callback=print)
    with pytest.raises(ConsumeFailed) as caught:
        events.join(PATIENCE)
    assert caught.value.code == "undecodable"
    assert events.name in service.health().ended
    events.close()
    assert bench.rest("orders", 1, group="events") == [1]


@needs("keeps")
def test_a_handler_that_always_fails_breaks_the_subscription(bench: Bench) -> None:
    """A bad deploy gives up half of a window of ten, and no more; the mended one gets all the rest."""
    retry = RetryPolicy(max_attempts=1, breaker_share=0.5, breaker_window=10)

    def fail(delivery: Delivery[Any]) -> None:
        if delivery.payload["n"] >= 5:
            raise ValueError("a bad deploy")

    subscription = bench.service.subscribe("orders", group="g", callback=fail, retry=retry)
    bench.publish("orders", range(40), key="k")
    with pytest.raises(ConsumeFailed, match="5 of the last 10 messages would have gone") as broken:
        subscription.join(PATIENCE)
    assert broken.value.code == "breaker"
    assert isinstance(broken.value.__cause__, ValueError)
    assert bench.service.health().ended
    assert until(lambda: subscription.closed)
    assert len(bench.dead_letters(4)) == 4
    assert bench.returned("orders", 31, group="g") == list(range(9, 40))
