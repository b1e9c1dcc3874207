"""Whether what was consumed is what was published. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from incident_messaging.config import MessagingBackend
from incident_messaging.events import IncidentEvent

__all__ = ["differences", "in_order"]

Lane = Callable[[IncidentEvent], Hashable]

#: What keeps its order on a broker. The key of an event is its incident, and a key keeps its order per topic;
#: one JetStream stream holds all topics of the demo, so that there the whole life of an incident is in order.
_LANES: dict[MessagingBackend, tuple[Lane, str]] = {
    MessagingBackend.NATS: (lambda event: event.incident_id, "every incident in order"),
    MessagingBackend.KAFKA: (
        lambda event: (event.incident_id, event.topic),
        "every incident in order within each topic",
    ),
}


def in_order(backend: MessagingBackend) -> tuple[Lane, str]:
    """What keeps its order on a broker: a function that gives such events one value, and in words."""
    return _LANES[backend]


def differences(published: Iterable[IncidentEvent], consumed: Iterable[IncidentEvent], lane: Lane) -> list[str]:
    """What is missing, came too often, was never published or is out of order, in words; empty if nothing.

    Args:
        published: What a consumer should have seen.
        consumed: What it saw.
        lane: Events of which it gives the same value are to be in order.
    """
    expected, seen = _by_lane(published, lane), _by_lane(consumed, lane)
    return [words for name in expected | seen for words in _compare(expected.get(name, []), seen.get(name, []))]


def _by_lane(events: Iterable[IncidentEvent], lane: Lane) -> dict[Hashable, list[IncidentEvent]]:
    lanes: dict[Hashable, list[IncidentEvent]] = {}
    for event in events:
        lanes.setdefault(lane(event), []).append(event)
    return lanes


def _compare(expected: Sequence[IncidentEvent], seen: Sequence[IncidentEvent]) -> Iterator[str]:
    if expected == seen:
        return
    wanted, got = Counter(expected), Counter(seen)
    for event, times in (wanted - got).items():
        yield f"missing{_times(times)}: {event}"
    for event, times in (got - wanted).items():
        yield f"{'too often' if event in wanted else 'never published'}{_times(times)}: {event}"
    if wanted == got:
        place = next(i for i, (one, other) in enumerate(zip(expected, seen, strict=True)) if one != other)
        yield f"out of order: {seen[place]} came before {expected[place]}"


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""
