"""Incident events over Apache Kafka and NATS from plain, blocking Python."""

# The service
from incident_messaging.service import MessagingService
from incident_messaging.consuming.subscription import Subscription
from incident_messaging.consuming.delivery import Delivery, Reject, Retry
from incident_messaging.publishing.batch import BatchResult
from incident_messaging.publishing.publication import BrokerResult, PublishReceipt
from incident_messaging.record import Position
from incident_messaging.health import Health

# For the authors of backends
from incident_messaging.backends.base import MessageConsumer, MessageProducer

# Configuration
from incident_messaging.config import KafkaConfig, MessagingBackend, MessagingConfig, NatsConfig, RetryPolicy

# What travels
from incident_messaging.codec import from_json, to_json
from incident_messaging.envelope import MessageEnvelope, MessageMetadata
from incident_messaging.events import (
    AlertCorrelated,
    AnyIncidentEvent,
    IncidentAssigned,
    IncidentCommentAdded,
    IncidentCreated,
    IncidentEscalated,
    IncidentEvent,
    IncidentResolved,
    IncidentStateChanged,
    PlaybookCompleted,
    PlaybookStarted,
    UnknownIncidentEvent,
)

# Errors
from incident_messaging.errors import (
    BackendUnavailable,
    ConfigurationError,
    ConnectionFailed,
    ConsumeFailed,
    MessagingError,
    PublishFailed,
    SerializationError,
    SubscribeFailed,
    Timeout,
)

# Metrics
from incident_messaging.metrics import MESSAGING_METRICS

__all__ = [
    "MessagingService", "MessageProducer", "MessageConsumer", "Subscription", "Delivery",
    "PublishReceipt", "BrokerResult", "BatchResult", "Position", "Health",
    "MessagingConfig", "MessagingBackend", "NatsConfig", "KafkaConfig", "RetryPolicy", "Retry", "Reject",
    "MessageEnvelope", "MessageMetadata", "to_json", "from_json",
    "IncidentEvent", "AnyIncidentEvent", "IncidentCreated", "IncidentStateChanged", "IncidentAssigned",
    "IncidentResolved", "IncidentEscalated", "IncidentCommentAdded", "PlaybookStarted",
    "PlaybookCompleted", "AlertCorrelated", "UnknownIncidentEvent",
    "MessagingError", "ConnectionFailed", "PublishFailed", "SubscribeFailed", "ConsumeFailed", "Timeout",
    "SerializationError", "BackendUnavailable", "ConfigurationError",
    "MESSAGING_METRICS",
]  # fmt: skip
