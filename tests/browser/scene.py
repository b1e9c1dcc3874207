"""An afternoon's incidents, for the screenshot and for a look at the whole page."""

from __future__ import annotations

import time

from waiting import until

from incident_messaging import (
    IncidentAssigned,
    IncidentCreated,
    IncidentEscalated,
    IncidentEvent,
    IncidentResolved,
    MessageEnvelope,
    MessagingService,
)

MINUTE = 60


def play(service: MessagingService) -> None:
    """Publish the afternoon; what a handler gives up lies among the dead letters when this returns."""

    def happened(minutes_ago: float, event: IncidentEvent) -> None:
        envelope = MessageEnvelope.new(event)
        envelope.metadata.timestamp = int(time.time() - minutes_ago * MINUTE)
        service.publish(event.topic, envelope, key=event.incident_id, timeout=30.0)

    happened(190, IncidentCreated("INC-7C41D2A0", "low", "network", "Packet loss between two racks in the second hall"))
    happened(170, IncidentAssigned("INC-7C41D2A0", "on-call network"))
    happened(131, IncidentResolved("INC-7C41D2A0", 59 * MINUTE))
    happened(
        96, IncidentCreated("INC-19E8B035", "medium", "certificate", "Certificate of the status page expires in 2 days")
    )
    happened(74, IncidentAssigned("INC-19E8B035", "on-call platform"))
    happened(47, IncidentCreated("INC-A80F66D1", "high", "queue", "Order confirmations are sent 20 minutes late"))
    happened(41, IncidentEscalated("INC-A80F66D1", 1))
    happened(33, IncidentAssigned("INC-A80F66D1", "on-call messaging"))
    happened(12, IncidentCreated("INC-52B90E7F", "critical", "database", "Primary database does not accept writes"))
    happened(10, IncidentEscalated("INC-52B90E7F", 2))
    happened(9, IncidentAssigned("INC-52B90E7F", "on-call database"))
    happened(3, IncidentCreated("INC-E3370C94", "medium", "service", "Search answers in 4 seconds instead of 1"))

    with service.subscribe("incidents.escalated", callback=_out_of_reach, group="pager"):
        assert until(lambda: len(list(service.dead_letters.list())) == 2, 60.0)


def _out_of_reach(_delivery: object) -> None:
    raise TimeoutError("the pager did not answer within 5 s")
