"""What either version is asked to do; each deed has an answer that is JSON."""

from __future__ import annotations

from typing import Any

import attrs
from waiting import until

import incident_messaging
from incident_messaging import IncidentEvent, MessagingConfig, MessagingService, Reject, RetryPolicy
from incident_messaging.events import VARIANTS, UnknownIncidentEvent

PATIENCE = 40.0


def service(settings: dict[str, Any]) -> MessagingService:
    return MessagingService(MessagingConfig.from_mapping(settings))


def where(_: MessagingService) -> str:
    """Which package it is."""
    return incident_messaging.__file__


def publish(made: MessagingService, topic: str, events: list[list[Any]]) -> None:
    """Events by their names on the wire and their fields; the key is the incident's id."""
    for tag, *fields in events:
        event: Any = VARIANTS[tag]
        made.publish(topic, event(*fields), key=fields[0])


def consume(made: MessagingService, topic: str, group: str, count: int) -> list[dict[str, Any]]:
    """So many messages of a group's, as this version sees them."""
    return [seen(each) for each in made.consume(topic, IncidentEvent, group=group, timeout=PATIENCE, limit=count)]


def forward(made: MessagingService, topic: str, group: str, target: str) -> None:
    """Publish again what a group gets next."""
    delivery = made.consume_one(topic, IncidentEvent, group=group, timeout=PATIENCE)
    assert delivery is not None
    made.publish(target, delivery.payload, key=delivery.key)


def give_up(made: MessagingService, topic: str, group: str) -> None:
    """Let one message become a dead letter."""

    def callback(_: object) -> None:
        raise Reject("this version cannot")

    with made.subscribe(topic, IncidentEvent, group=group, callback=callback, retry=RetryPolicy(max_attempts=1)):
        assert until(lambda: list(made.dead_letters.list(group=group)), PATIENCE)


def put_back(made: MessagingService, group: str) -> list[str]:
    """Redrive what a group gave up, and say why it had."""
    reasons = [letter.exception_message for letter in made.dead_letters.list(group=group)]
    made.dead_letters.redrive(group=group)
    return reasons


def seen(delivery: Any) -> dict[str, Any]:
    event, metadata = delivery.payload, delivery.metadata
    more = {"data": dict(event.data)} if isinstance(event, UnknownIncidentEvent) else attrs.asdict(event)
    return {**more, "incident_id": event.incident_id, "type": event.type, "written_by": metadata.version,
            "unknown": isinstance(event, UnknownIncidentEvent)}  # fmt: skip
