"""What a callback may do, and what it cannot break."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from bench import PATIENCE, QUICK, Bench, Seen
from waiting import takes, until

from incident_messaging import ConfigurationError, Delivery


def test_a_callback_may_publish_and_wait(bench: Bench) -> None:
    answers = Seen()
    bench.service.subscribe("answers", group="g", callback=answers)
    bench.service.subscribe(
        "orders", group="g", callback=lambda d: bench.service.publish("answers", {"n": d.payload["n"] * 2})
    )
    bench.publish("orders", range(20), key="k")
    assert sorted(answers.wait(20)) == list(range(0, 40, 2))


def test_a_callback_may_subscribe(bench: Bench) -> None:
    inner = Seen()

    def act(delivery: Delivery[Any]) -> None:
        bench.service.subscribe("inner", group="g", callback=inner)
        bench.service.publish("inner", {"n": 2})

    bench.service.subscribe("orders", group="g", callback=act)
    bench.publish("orders", [1])
    assert inner.wait(1) == [2]


def test_a_callback_that_ends_the_thread_has_failed_and_the_next_one_is_handled(bench: Bench) -> None:
    seen = Seen(lambda delivery: sys.exit("enough") if delivery.payload["n"] == 0 else None)
    letters = bench.service.subscribe("dead-letter", group="g")
    bench.service.subscribe("orders", group="g", callback=seen, retry=QUICK)
    bench.publish("orders", [0, 1], key="k")
    assert seen.wait(3) == [0, 0, 1]
    letter = letters.next(PATIENCE)
    assert letter is not None
    assert letter.headers["x-dlq-exception-type"] == "SystemExit"


@pytest.mark.needs("keeps")
@pytest.mark.parametrize("what", ["subscription", "service"])
def test_a_callback_may_close_what_called_it(bench: Bench, what: str) -> None:
    service, closed = bench.new_service(), threading.Event()

    def act(delivery: Delivery[Any]) -> None:
        left = subscription.close() if what == "subscription" else service.close()
        assert left == []
        closed.set()

    seen = Seen(act)
    bench.publish("orders", [0, 1], key="k")
    ready = threading.Event()
    subscription = service.subscribe("orders", group="g", callback=lambda d: (ready.wait(PATIENCE), seen(d)))
    ready.set()
    with takes(at_most=PATIENCE):
        assert closed.wait(PATIENCE)
    assert until(lambda: subscription.closed, PATIENCE)
    assert bench.read("orders", 2 - len(seen.numbers), group="g")[-1] == 1
    assert seen.numbers == [0]


def test_workers_run_side_by_side_on_threads_of_their_own(bench: Bench) -> None:
    together = threading.Barrier(4, timeout=PATIENCE)
    names: set[str] = set()

    def act(delivery: Delivery[Any]) -> None:
        names.add(threading.current_thread().name)
        together.wait()

    seen = Seen(act)
    subscription = bench.service.subscribe("orders", group="g", callback=seen, concurrency=4)
    bench.publish("orders", range(8), key=lambda m: str(m["n"]))
    seen.wait(8)
    assert names == {f"incident-messaging-worker-{subscription.name}-{n}" for n in range(4)}


def test_declared_handlers_start_once(bench: Bench) -> None:
    service, seen = bench.new_service(), Seen()

    @service.handler("orders", group="g", concurrency=2)
    def handle(delivery: Delivery[Any]) -> None:
        seen(delivery)

    assert not service.is_connected  # declaring connects nothing
    started = service.start_handlers()
    assert [subscription.topic for subscription in started] == ["orders"]
    assert service.start_handlers() == []
    bench.publish("orders", [1])
    assert seen.wait(1) == [1]


def test_drain_handles_what_has_arrived(bench: Bench) -> None:
    go = threading.Event()
    seen = Seen(lambda delivery: go.wait(PATIENCE))
    subscription = bench.service.subscribe("orders", group="g", callback=seen)
    bench.publish("orders", range(5), key="k")
    seen.wait(1)
    assert until(lambda: len(subscription._intake._schedule) == 5, PATIENCE)
    drained: list[Any] = []
    draining = threading.Thread(target=lambda: drained.append(subscription.drain(PATIENCE)), name="test-drain")
    draining.start()
    go.set()
    draining.join(PATIENCE)
    assert drained == [[]]
    assert seen.numbers == [0, 1, 2, 3, 4]
    assert subscription.closed


def test_a_subscription_is_for_a_callback_or_for_iterating(bench: Bench) -> None:
    subscription = bench.service.subscribe("orders", group="g", callback=print)
    with pytest.raises(ConfigurationError):
        next(iter(subscription))
    subscription.close()
    assert subscription.closed
