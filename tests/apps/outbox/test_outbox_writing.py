"""What is written into the outbox arrives as it would by a publish, and what cannot is refused at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from outbox_kit import PATIENCE, Lab

from incident_messaging import Delivery, IncidentEvent, MessagingConfig, MessagingService

NewLab = Callable[..., Lab]

both = pytest.mark.parametrize(("framework", "database"), [("django", "postgres"), ("sqlalchemy", "sqlite")])


def first(service: MessagingService, topic: str, message_type: type = dict) -> Delivery:
    found = service.consume_one(topic, message_type, timeout=PATIENCE)
    assert found is not None
    return found


@both
def test_a_message_arrives_with_all_that_belongs_to_it(new_lab: NewLab, framework: str, database: str) -> None:
    lab = new_lab(framework, database, "nats")
    lab.do("details")
    lab.do("relay")

    with MessagingService(MessagingConfig.from_mapping(lab.messaging)) as service:
        created = first(service, "incidents.created", IncidentEvent)
        assert created.payload.title == "down"
        assert (created.key, dict(created.headers)) == ("INC-1", {"tenant": "\xe4cme"})
        assert created.metadata.correlation_id == "request-7"
        escalated = first(service, "incidents.escalated", IncidentEvent)
        assert (escalated.payload.escalation_level, escalated.key) == (2, "INC-1")
        assert (escalated.metadata.message_id, escalated.metadata.correlation_id) == ("m-2", "own")
        trail = first(service, "audit.trail")
        assert (trail.payload, trail.key) == ({"big": 2**63 - 1, "half": 0.5}, "k\u2028")
        assert trail.metadata.correlation_id == "c-3"


@both
def test_what_cannot_be_published_is_refused_and_spoils_nothing(new_lab: NewLab, framework: str, database: str) -> None:
    lab = new_lab(framework, database, "nats")
    lab.do("refusals")
    lab.do("relay")
    assert lab.arrived() == [("a", 0)]
    assert lab.parked() == 0
