"""From the first use to the last: connecting, health, closing."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from bench import PATIENCE, SLACK, Bench, Seen
from waiting import takes, until

from incident_messaging import MESSAGING_METRICS, BackendUnavailable, ConfigurationError, Delivery, MessagingService

needs = pytest.mark.needs


def test_a_service_does_nothing_until_it_is_used(bench: Bench) -> None:
    before = set(threading.enumerate())
    service = bench.new_service()
    assert set(threading.enumerate()) <= before
    assert not service.is_connected
    assert service.health().ok
    assert service.health().backends[bench.features.label].state == "new"
    service.connect()
    assert service.is_connected
    assert service.health().backends[bench.features.label].state == "connected"


def test_health_tells_without_asking_a_broker(bench: Bench) -> None:
    with bench.new_service() as service, service.subscribe("orders", group="g", auto_ack=False) as subscription:
        service.publish("orders", {"n": 1})
        assert subscription.next(PATIENCE) is not None
        health = service.health()
        assert health.ok
        assert health.in_flight == {bench.features.label: 0}
        assert health.oldest_unsettled_secs is not None
        assert 0 <= health.oldest_unsettled_secs < PATIENCE
        assert health.ended == {}
        assert json.loads(json.dumps(health.to_dict()))["ok"] is True
        subscription.ack()
        assert service.health().oldest_unsettled_secs is None
    assert not service.health().ok
    assert service.health().backends[bench.features.label].state == "closed"


def test_the_gauge_counts_connected_services(bench: Bench) -> None:
    def connected() -> float:
        return MESSAGING_METRICS.value("active_connections", backend=bench.features.label)

    before = connected()
    with bench.new_service():
        with bench.new_service():
            assert connected() == before + 2
        assert connected() == before + 1
    assert connected() == before


def test_close_is_final_and_may_be_called_again(bench: Bench) -> None:
    service = bench.new_service()
    subscription = service.subscribe("orders", group="g")
    service.publish("orders", {"n": 1})
    with takes(at_most=bench.features.close_secs + SLACK):
        assert service.close(PATIENCE) == []
    with takes(at_most=1.0):
        assert service.close() == []
        assert subscription.close() == []
    calls: list[Any] = [
        lambda: service.publish("orders", {}),
        lambda: service.publish_nowait("orders", {}),
        lambda: service.subscribe("orders"),
        lambda: service.consume("orders"),
        lambda: service.consume_one("orders"),
        lambda: service.connect(),
        lambda: subscription.next(0),
    ]
    for call in calls:
        with pytest.raises(BackendUnavailable) as caught:
            call()
        assert caught.value.code == "closed"


def test_close_waits_for_callbacks_but_not_for_ever(bench: Bench) -> None:
    release = threading.Event()
    seen = Seen(lambda delivery: release.wait(PATIENCE))
    service = bench.new_service()
    subscription = service.subscribe("orders", group="g", callback=seen)
    bench.publish("orders", [1])
    seen.wait(1)
    with takes(at_most=1.0 + SLACK):
        left = service.close(1.0)
    assert [words for words in left if f"incident-messaging-worker-{subscription.name}-0" in words]
    release.set()


@needs("keeps")
def test_close_lets_a_running_callback_settle_its_message(bench: Bench) -> None:
    release, begun = threading.Event(), threading.Event()

    def act(delivery: Delivery[Any]) -> None:
        begun.set()
        release.wait(PATIENCE)

    service = bench.new_service()
    seen = Seen(act)
    service.subscribe("orders", group="g", callback=seen)
    bench.publish("orders", [0, 1], key="k")
    assert begun.wait(PATIENCE)
    closing = threading.Thread(target=service.close, name="test-close")
    closing.start()
    assert until(lambda: not service.health().ok, PATIENCE)
    release.set()
    closing.join(PATIENCE)
    assert seen.numbers + bench.rest("orders", 2 - len(seen.numbers), group="g") == [0, 1]


@needs("keeps")
def test_close_sends_what_was_handed_over(bench: Bench) -> None:
    service = bench.new_service()
    futures = [service.publish_nowait("orders", {"n": n}, key="k") for n in range(1000)]
    assert service.close() == []
    assert all(future.done() for future in futures)
    assert [future.exception(0) for future in futures] == [None] * 1000
    assert bench.rest("orders", 1000, group="g") == list(range(1000))


def test_close_while_others_publish(bench: Bench, later: Any) -> None:
    service, outcomes = bench.new_service(), []
    publishing: set[int] = set()
    service.connect()

    def publish() -> None:
        try:
            while True:
                service.publish("orders", {"n": 1})
                publishing.add(threading.get_ident())
        except BackendUnavailable as error:
            outcomes.append(error.code)

    threads = [later(publish) for _ in range(8)]
    assert until(lambda: len(publishing) == 8, PATIENCE)
    with takes(at_most=bench.features.close_secs + SLACK):
        service.close(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert outcomes == ["closed"] * 8


def test_waiting_readers_end_when_the_subscription_closes(bench: Bench, later: Any) -> None:
    subscription = bench.service.subscribe("orders", group="g")
    outcomes: list[str] = []

    def wait() -> None:
        try:
            subscription.next(PATIENCE)
        except BackendUnavailable as error:
            outcomes.append(error.code)

    threads = [later(wait) for _ in range(3)]
    with takes(at_most=bench.features.close_secs + SLACK):
        subscription.close(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert outcomes == ["closed"] * 3
    assert subscription.join(0)


def test_a_service_in_a_with_statement_connects_and_closes(bench: Bench) -> None:
    with MessagingService(bench.service.config) as service:
        assert service.is_connected
    assert not service.is_connected


def test_a_second_close_waits_for_the_first(bench: Bench, later: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(delivery: Delivery[Any]) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    service = bench.service
    service.subscribe("orders", group="g", callback=hold)
    bench.publish("orders", [1])
    assert begun.wait(PATIENCE)
    later(lambda: service.close(PATIENCE))
    assert until(service._finishing.locked, PATIENCE)
    assert service.close(0.2) == ["the service is being closed by another thread"]
    go_on.set()
    assert service.close(PATIENCE) == []


def test_a_coroutine_function_is_no_callback(bench: Bench) -> None:
    async def handle(delivery: Delivery[Any]) -> None:
        raise AssertionError("nobody awaits it")

    with pytest.raises(ConfigurationError, match="no coroutine function"):
        bench.service.subscribe("orders", callback=handle)
