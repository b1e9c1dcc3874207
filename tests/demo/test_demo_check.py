"""The demo's check sees a loss, a duplicate, a stranger and a swap, and nothing where there is nothing."""

from __future__ import annotations

import random

import pytest

from incident_messaging import IncidentEvent, MessagingBackend
from incident_messaging.demo.check import differences, in_order
from incident_messaging.demo.replay import made_up_events

BROKERS = [MessagingBackend.NATS, MessagingBackend.KAFKA]
EVENTS = made_up_events(12)


def found(seen: list[IncidentEvent], broker: MessagingBackend) -> list[str]:
    lane, _ = in_order(broker)
    return differences(EVENTS, seen, lane)


@pytest.mark.parametrize("broker", BROKERS)
def test_the_same_events_do_not_differ(broker: MessagingBackend) -> None:
    assert found(list(EVENTS), broker) == []


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("place", range(0, len(EVENTS), 7))
def test_a_loss_is_named(broker: MessagingBackend, place: int) -> None:
    assert found(EVENTS[:place] + EVENTS[place + 1 :], broker) == [f"missing: {EVENTS[place]}"]


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("place", range(0, len(EVENTS), 7))
def test_a_duplicate_is_named(broker: MessagingBackend, place: int) -> None:
    assert found([*EVENTS, EVENTS[place]], broker) == [f"too often: {EVENTS[place]}"]


@pytest.mark.parametrize("broker", BROKERS)
def test_what_was_never_published_is_named(broker: MessagingBackend) -> None:
    stranger = made_up_events(13)[12]
    assert found([*EVENTS, stranger], broker) == [f"never published: {stranger}"]


@pytest.mark.parametrize("broker", BROKERS)
def test_a_swap_within_a_topic_of_an_incident_is_named(broker: MessagingBackend) -> None:
    first, second = [
        place for place, event in enumerate(EVENTS) if event.incident_id == "DEMO-0005" and event.type == "StateChanged"
    ]
    seen = list(EVENTS)
    seen[first], seen[second] = seen[second], seen[first]
    words = found(seen, broker)
    assert len(words) == 1
    assert words[0].startswith("out of order: ")
    assert "DEMO-0005" in words[0]


def test_a_swap_across_topics_of_an_incident_counts_where_a_broker_keeps_that_order() -> None:
    first, second = [place for place, event in enumerate(EVENTS) if event.incident_id == "DEMO-0005"][:2]
    seen = list(EVENTS)
    seen[first], seen[second] = seen[second], seen[first]
    assert found(seen, MessagingBackend.NATS) == [f"out of order: {EVENTS[second]} came before {EVENTS[first]}"]
    assert found(seen, MessagingBackend.KAFKA) == []


@pytest.mark.parametrize("broker", BROKERS)
def test_incidents_may_overtake_each_other(broker: MessagingBackend) -> None:
    lane, _ = in_order(broker)
    lanes: dict[object, list[IncidentEvent]] = {}
    for event in EVENTS:
        lanes.setdefault(lane(event), []).append(event)
    order = list(lanes)
    random.Random(1).shuffle(order)
    seen = [event for name in order for event in lanes[name]]
    assert seen != EVENTS
    assert found(seen, broker) == []
