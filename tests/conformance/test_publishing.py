"""From publish to a reader: what arrives is what was sent."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest
from bench import PATIENCE, Bench, Seen
from waiting import until

from incident_messaging import (
    MESSAGING_METRICS,
    AlertCorrelated,
    IncidentAssigned,
    IncidentCommentAdded,
    IncidentCreated,
    IncidentEscalated,
    IncidentEvent,
    IncidentResolved,
    IncidentStateChanged,
    MessageEnvelope,
    MessagingBackend,
    PlaybookCompleted,
    PlaybookStarted,
    PublishFailed,
    SerializationError,
)

EVENTS = [
    IncidentCreated("INC-1", "high", "database", "down"),
    IncidentStateChanged("INC-1", "open", "triaged"),
    IncidentAssigned("INC-1", "team-db"),
    IncidentEscalated("INC-1", 2),
    IncidentCommentAdded("INC-1", "c-1", "ops"),
    PlaybookStarted("INC-1", "restart"),
    PlaybookCompleted("INC-1", "restart", True),
    AlertCorrelated("INC-1", "a-9", 0.5),
    IncidentResolved("INC-1", 321),
]


def test_a_message_arrives_whole(bench: Bench) -> None:
    with bench.service.subscribe("orders", group="g") as subscription:
        before = int(time.time())
        receipt = bench.service.publish(
            "orders", {"n": 1, "text": "Grüße\n", "none": None}, key="k-ä", headers={"tenant": "a\nb ä"},
            correlation_id="c-1",
        )  # fmt: skip
        delivery = subscription.next(PATIENCE)

    assert delivery is not None
    assert delivery.payload == {"n": 1, "text": "Grüße\n", "none": None}
    assert (delivery.topic, delivery.key, delivery.headers) == ("orders", "k-ä", {"tenant": "a\nb ä"})
    assert (delivery.attempt, delivery.group) == (1, "g")
    assert delivery.backend is MessagingBackend(bench.features.label)
    metadata = delivery.metadata
    assert (metadata.message_id, metadata.correlation_id) == (receipt.message_id, "c-1")
    assert (metadata.source, metadata.version, metadata.headers) == ("llm-incident-manager", "1.0", {})
    assert before <= metadata.timestamp <= time.time()


def test_an_envelope_keeps_its_metadata_when_forwarded(bench: Bench) -> None:
    with (
        bench.service.subscribe("in", MessageEnvelope[dict], group="g") as entrance,
        bench.service.subscribe("out", group="g") as exit_,
    ):
        envelope = MessageEnvelope.new({"n": 1}, message_id="m-1", correlation_id="c-1", source="elsewhere")
        envelope.metadata.headers["shift"] = "night"
        bench.service.publish("in", envelope)
        first = entrance.next(PATIENCE)
        assert first is not None
        bench.service.publish("out", first.envelope)
        second = exit_.next(PATIENCE)

    assert second is not None
    assert second.envelope == first.envelope == envelope


def test_every_variant_arrives_on_its_topic_as_itself(bench: Bench) -> None:
    with bench.service.subscribe("incidents.*", IncidentEvent, group="g") as subscription:
        for event in EVENTS:
            bench.service.publish_incident_event(event)
        found = [subscription.next(PATIENCE) for _ in EVENTS]
    got = {delivery.topic: delivery for delivery in found if delivery is not None}
    assert {topic: delivery.payload for topic, delivery in got.items()} == {event.topic: event for event in EVENTS}
    assert {delivery.key for delivery in got.values()} == {"INC-1"}


def test_other_variants_are_skipped_and_counted(bench: Bench) -> None:
    def skipped() -> float:
        return sum(
            MESSAGING_METRICS.value("skipped", topic=event.topic, backend=bench.features.label, reason="variant")
            for event in EVENTS
        )

    before = skipped()
    seen = Seen()
    bench.service.subscribe("incidents.>", IncidentResolved, group="g", callback=seen)
    for event in EVENTS:
        bench.service.publish_incident_event(event)
    assert until(lambda: skipped() - before == len(EVENTS) - 1 and seen.deliveries, PATIENCE)
    assert [delivery.payload for delivery in seen.deliveries] == [EVENTS[-1]]


def test_a_thousand_messages_of_one_batch_arrive_in_order(bench: Bench) -> None:
    with bench.service.subscribe("orders", group="g") as subscription:
        result = bench.service.publish_batch(
            "orders", ({"n": n} for n in range(1000)), key="one", headers={"h": "1"}, receipts=True
        )
        found = [subscription.next(PATIENCE) for _ in range(1000)]
    assert len(result) == result.published == 1000
    assert result.receipts is not None
    assert [receipt.message_id for receipt in result.receipts if receipt] == [
        delivery.metadata.message_id for delivery in found if delivery
    ]
    assert [delivery.payload["n"] for delivery in found if delivery] == list(range(1000))


def test_a_batch_says_which_failed_and_publishes_the_rest(bench: Bench) -> None:
    with bench.service.subscribe("batch.*", group="g") as subscription:
        messages = [{"n": 0}, {"n": object()}, {"n": 2}, {"n": 3}]
        with pytest.raises(PublishFailed) as caught:
            bench.service.publish_batch(lambda m: f"batch.{messages.index(m)}", messages, key=lambda m: "k")
        found = {d.topic: d.payload["n"] for _ in range(3) if (d := subscription.next(PATIENCE))}
    assert caught.value.code == "batch"
    assert caught.value.result.published == 3
    assert list(caught.value.result.failures) == [1]
    assert isinstance(caught.value.result.failures[1], SerializationError)
    assert found == {"batch.0": 0, "batch.2": 2, "batch.3": 3}


def test_a_batch_reads_no_more_after_max_failures(bench: Bench) -> None:
    read = []

    def messages() -> Any:
        for n in range(1000):
            read.append(n)
            yield object()

    with pytest.raises(PublishFailed) as caught:
        bench.service.publish_batch("orders", messages(), max_failures=3)
    assert (len(caught.value.result.failures), read) == (3, [0, 1, 2])


def test_futures_run_from_birth_and_their_callbacks_may_publish(bench: Bench) -> None:
    answers: list[tuple[str, str]] = []

    def answer(future: Future[Any]) -> None:
        receipt = bench.service.publish("answers", {"n": future.result().message_id})
        answers.append((receipt.message_id, threading.current_thread().name))

    with bench.service.subscribe("answers", group="g") as subscription:
        futures = [bench.service.publish_nowait("orders", {"n": n}) for n in range(20)]
        assert not any(future.cancel() for future in futures)
        for future in futures:
            future.add_done_callback(answer)
        ids = [future.result(PATIENCE).message_id for future in futures]
        found = [d.payload["n"] for _ in futures if (d := subscription.next(PATIENCE))]
    assert sorted(found) == sorted(ids)
    assert {name for _, name in answers} == {"incident-messaging-callbacks"}


def test_flush_returns_when_nothing_is_on_its_way(bench: Bench) -> None:
    with bench.service.subscribe("orders", group="g") as subscription:
        futures = [bench.service.publish_nowait("orders", {"n": n}, key="k") for n in range(500)]
        bench.service.flush(PATIENCE)
        assert sum(bench.service.health().in_flight.values()) == 0
        assert until(lambda: all(future.done() for future in futures), PATIENCE)
        found = [d.payload["n"] for _ in futures if (d := subscription.next(PATIENCE))]
    assert found == list(range(500))


def test_one_thread_keeps_the_order_of_a_key_over_all_ways_to_publish(bench: Bench) -> None:
    with bench.service.subscribe("orders", group="g") as subscription:
        bench.service.publish("orders", {"n": 0}, key="k")
        for n in range(1, 50):
            bench.service.publish_nowait("orders", {"n": n}, key="k")
        bench.service.publish("orders", {"n": 50}, key="k")
        bench.publish("orders", range(51, 100), key="k")
        found = [d.payload["n"] for _ in range(100) if (d := subscription.next(PATIENCE))]
    assert found == list(range(100))


@pytest.mark.needs("positions")
def test_receipt_and_delivery_agree_where_the_message_is(bench: Bench) -> None:
    with bench.service.subscribe("orders", group="g") as subscription:
        receipt = bench.service.publish("orders", {"n": 1})
        delivery = subscription.next(PATIENCE)
    assert delivery is not None
    backend = MessagingBackend(bench.features.label)
    assert set(receipt.results) == {backend}
    assert (receipt.results[backend].state, receipt.results[backend].error) == ("ok", None)
    assert receipt.results[backend].position == delivery.position
    assert receipt.topic == "orders"


@pytest.mark.needs("keeps")
def test_an_envelope_published_twice(bench: Bench) -> None:
    envelope = MessageEnvelope.new({"n": 1})
    first = bench.service.publish("orders", envelope)
    second = bench.service.publish("orders", envelope)
    elsewhere = bench.service.publish("copies", envelope)
    once = bool(bench.features.stores_an_id_once)
    assert [r.duplicate for r in (first, second, elsewhere)] == [False, once, False]
    assert bench.rest("orders", 1 if once else 2, group="g") == ([1] if once else [1, 1])
    assert bench.rest("copies", 1, group="g") == [1]


@pytest.mark.needs("keeps")
def test_many_publishers_and_many_subscribers(bench: Bench, later: Any) -> None:
    seen = Seen()
    members = [bench.new_service() for _ in range(3)]
    for member in members:
        member.subscribe("orders", group="g", callback=seen, concurrency=2)
    publishers = [
        later(lambda start=start: bench.publish("orders", range(start, start + 100), key=lambda m: str(m["n"] % 7)))
        for start in range(0, 1000, 100)
    ]
    for publisher in publishers:
        publisher.join(PATIENCE)
    assert until(lambda: set(seen.numbers) == set(range(1000)), PATIENCE)


def test_topics_do_not_mix(bench: Bench, later: Any) -> None:
    topics = [f"topic.{n}" for n in range(10)]
    subscriptions = {topic: bench.service.subscribe(topic, group="g") for topic in topics}
    for topic in topics:
        later(lambda topic=topic: bench.service.publish_batch(topic, [{"n": topic}] * 20))
    for topic, subscription in subscriptions.items():
        found = [d.payload["n"] for _ in range(20) if (d := subscription.next(PATIENCE))]
        assert found == [topic] * 20
        assert subscription.next(0) is None


def test_metrics_equal_what_was_counted(bench: Bench) -> None:
    topic, labels = f"metered-{bench.settings['topic_prefix']}", {"backend": bench.features.label}

    def value(name: str, **more: str) -> float:
        return MESSAGING_METRICS.value(name, topic=topic, **labels, **more)

    with bench.service.subscribe(topic, group="g") as subscription:
        bench.service.publish_batch(topic, [{"n": n} for n in range(7)])
        with pytest.raises(SerializationError):
            bench.service.publish(topic, object())
        found = [subscription.next(PATIENCE) for _ in range(7)]
        subscription.nack(0)
        again = subscription.next(PATIENCE)
    assert again is not None
    assert again.attempt == 2
    assert value("messages_published") == value("messages_consumed") == 7
    assert value("publish_failures", error="SerializationError") == 1
    assert value("consume_failures", error="Retry") == 1
    assert value("message_size") >= sum(len(delivery.body) for delivery in found if delivery)
    assert value("publish_latency") > 0


def test_metrics_can_be_switched_off(bench: Bench) -> None:
    topic = f"unmetered-{bench.settings['topic_prefix']}"
    service = bench.new_service(enable_metrics=False)
    with service.subscribe(topic, group="g") as subscription:
        service.publish(topic, {"n": 1})
        assert subscription.next(PATIENCE) is not None
    assert MESSAGING_METRICS.value("messages_published", topic=topic, backend=bench.features.label) == 0
    assert MESSAGING_METRICS.value("messages_consumed", topic=topic, backend=bench.features.label) == 0


def test_several_services_of_one_process(bench: Bench) -> None:
    first, second = bench.new_service(source="one"), bench.new_service(source="two")
    with first.subscribe("orders", group="one") as one, second.subscribe("orders", group="two") as two:
        first.publish("orders", {"n": 1})
        second.publish("orders", {"n": 2})
        for subscription in (one, two):
            found = [subscription.next(PATIENCE) for _ in range(2)]
            assert {(d.payload["n"], d.metadata.source) for d in found if d} == {(1, "one"), (2, "two")}
        first.close()
        second.publish("orders", {"n": 3})
        delivery = two.next(PATIENCE)
        assert delivery is not None
        assert delivery.payload == {"n": 3}
