"""The names that users import, as `docs/design.rst` and the README promise them: a change here is a change for them."""

import incident_messaging

NAMES = [
    "MessagingService", "MessageProducer", "MessageConsumer", "Subscription", "Delivery", "PublishReceipt",
    "BrokerResult", "BatchResult", "Position", "Health", "MessagingConfig", "MessagingBackend", "NatsConfig",
    "KafkaConfig", "RetryPolicy", "Retry", "Reject", "MessageEnvelope", "MessageMetadata", "to_json",
    "from_json", "IncidentEvent", "AnyIncidentEvent", "IncidentCreated", "IncidentStateChanged",
    "IncidentAssigned", "IncidentResolved", "IncidentEscalated", "IncidentCommentAdded", "PlaybookStarted",
    "PlaybookCompleted", "AlertCorrelated", "UnknownIncidentEvent", "MessagingError", "ConnectionFailed",
    "PublishFailed", "SubscribeFailed", "ConsumeFailed", "Timeout", "SerializationError",
    "BackendUnavailable", "ConfigurationError", "MESSAGING_METRICS",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert sorted(incident_messaging.__all__) == sorted(NAMES)
    assert all(getattr(incident_messaging, name) is not None for name in NAMES)
