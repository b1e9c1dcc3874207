"""The configuration of a service: frozen classes, checked when they are built."""

from incident_messaging.config.kafka import KafkaConfig
from incident_messaging.config.messaging import ENV_PREFIX, MessagingBackend, MessagingConfig, RetryPolicy
from incident_messaging.config.nats import NatsConfig

__all__ = ["ENV_PREFIX", "KafkaConfig", "MessagingBackend", "MessagingConfig", "NatsConfig", "RetryPolicy"]
