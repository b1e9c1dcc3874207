"""Publish a typed incident event on Kafka, and consume it: only the configuration differs from NATS.

Kafka is expected at localhost:9092, or where INCIDENT_MESSAGING_KAFKA__BOOTSTRAP_SERVERS says.
"""

from incident_messaging import IncidentCreated, MessagingConfig, MessagingService

with MessagingService(MessagingConfig.load(backend="kafka")) as service:
    service.publish_incident_created("INC-1", severity="high", incident_type="database", title="it is down")

    # Ends after one event, or after 5 seconds without any.
    for delivery in service.consume("incidents.created", IncidentCreated, group="quickstart", limit=1, timeout=5):
        print(f"{delivery.payload.incident_id}: {delivery.payload.title} ({delivery.payload.severity})")
