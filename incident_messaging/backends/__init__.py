"""The brokers behind one contract, `incident_messaging.backends.base`; each loaded when first used."""

from __future__ import annotations

from importlib import import_module

from incident_messaging.backends.base import MessageProducer
from incident_messaging.config import MessagingBackend, MessagingConfig

_CLASSES = {
    MessagingBackend.NATS: ("incident_messaging.backends.nats.broker", "NatsBroker"),
    MessagingBackend.KAFKA: ("incident_messaging.backends.kafka.broker", "KafkaBroker"),
    MessagingBackend.MEMORY: ("incident_messaging.backends.memory", "MemoryBroker"),
}


def make(backend: MessagingBackend, config: MessagingConfig) -> MessageProducer:
    """The broker object of a backend: no I/O, no thread; the client library is imported here."""
    module, name = _CLASSES[backend]
    broker: MessageProducer = getattr(import_module(module), name)(config)
    return broker
