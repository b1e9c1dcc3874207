"""Publish many events from a generator, and consume them in batches.

The broker is chosen by the environment (INCIDENT_MESSAGING_BACKEND, INCIDENT_MESSAGING_NATS__SERVERS, ...),
NATS at localhost by default.
"""

from collections.abc import Iterator

from incident_messaging import (
    IncidentAssigned,
    IncidentCreated,
    IncidentEvent,
    MessagingConfig,
    MessagingService,
    PublishFailed,
)


def events(incidents: int) -> Iterator[IncidentEvent]:
    """Made while they are published: what is on its way is bounded, so they never fill the memory."""
    for number in range(incidents):
        incident = f"INC-{number}"
        yield IncidentCreated(incident, severity="low", incident_type="disk", title="nearly full")
        yield IncidentAssigned(incident, assignee="storage team")


with MessagingService(MessagingConfig.from_env()) as service:
    try:
        result = service.publish_batch(lambda event: event.topic, events(1_000), key=lambda event: event.incident_id)
    except PublishFailed as error:
        raise SystemExit(f"{error}; published: {len(error.result)}") from error
    print(f"published {len(result)} events")

    with service.subscribe("incidents.*", IncidentEvent, group="batch") as subscription:
        consumed = 0
        while batch := subscription.next_batch(500, timeout=2):  # acknowledges the batch before
            consumed += len(batch)
    print(f"consumed {consumed} events")
