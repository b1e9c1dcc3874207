"""Publish a log of incident events, consume it in three ways on each broker, and check what arrived."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from incident_messaging import (
    IncidentEvent,
    IncidentResolved,
    KafkaConfig,
    MessagingBackend,
    MessagingConfig,
    MessagingService,
    NatsConfig,
)
from incident_messaging.brokers import KafkaBroker, NatsServer
from incident_messaging.demo.view import View
from incident_messaging.demo.witness import Witness

__all__ = ["BROKERS", "brokers", "run"]

BROKERS = {
    MessagingBackend.NATS: (MessagingBackend.NATS,),
    MessagingBackend.KAFKA: (MessagingBackend.KAFKA,),
    MessagingBackend.BOTH: (MessagingBackend.NATS, MessagingBackend.KAFKA),
}
"""The brokers behind each choice of a backend."""

#: Seconds without a message after which nothing more is expected: while some are missing, and when all came.
PATIENCE, QUIET = 10.0, 0.5


def run(events: Sequence[IncidentEvent], backend: MessagingBackend, view: View) -> list[str]:
    """Start the brokers, send the events through, and return how what arrived differs, in words.

    Raises:
        BrokerError: A broker could not be started.
        MessagingError: Publishing or subscribing failed.
    """
    with brokers(backend, view) as config:
        witnesses, found = _replay(config, events, view)
    found += [words for witness in witnesses for words in witness.differences()]
    view.verdict(found, len(events), BROKERS[backend])
    return found


def _replay(config: MessagingConfig, events: Sequence[IncidentEvent], view: View) -> tuple[list[Witness], list[str]]:
    """Publish the events while witnesses consume them; the witnesses, and which subscriptions failed."""
    arrived = threading.Condition()
    readers = ThreadPoolExecutor(thread_name_prefix="demo-iterator")
    # The service is closed first: that ends the iterators, and with them the threads that the pool waits for.
    with readers, MessagingService(config) as service:
        view.say("subscribing")
        witnesses = [
            witness
            for broker in BROKERS[config.backend]
            for witness in _subscribe(service, broker, events, arrived, readers)
        ]
        with view.live(witnesses, len(events)):
            service.publish_batch(
                lambda event: event.topic, view.publishing(events), key=lambda event: event.incident_id
            )
            _wait(arrived, witnesses)
        ended = service.health().ended
    return witnesses, [f"subscription {name} ended by itself: {error}" for name, error in ended.items()]


def _subscribe(
    service: MessagingService,
    broker: MessagingBackend,
    events: Sequence[IncidentEvent],
    arrived: threading.Condition,
    readers: ThreadPoolExecutor,
) -> list[Witness]:
    """Three consumers on a broker, each of its own group, so that each sees all that it asks for."""
    callback = Witness(broker, "callback", events, arrived)
    service.subscribe(
        "incidents.*",
        IncidentEvent,
        callback=callback.note,
        group="demo-callback",
        concurrency=4,
        backend=broker,
    )

    iterator = Witness(broker, "iterator", events, arrived)
    subscription = service.subscribe("incidents.*", IncidentEvent, group="demo-iterator", backend=broker)
    readers.submit(iterator.read, subscription)

    resolved = Witness(broker, "resolved", [e for e in events if isinstance(e, IncidentResolved)], arrived)
    service.subscribe(
        "incidents.resolved", IncidentResolved, callback=resolved.note, group="demo-resolved", backend=broker
    )
    return [callback, iterator, resolved]


def _wait(arrived: threading.Condition, witnesses: Sequence[Witness]) -> None:
    """Wait until all came and a moment passed without more, or nothing more comes; never without end."""
    bound = 2 * sum(len(witness.expected) for witness in witnesses)
    with arrived:
        while sum(len(witness.seen) for witness in witnesses) <= bound:
            behind = any(len(witness.seen) < len(witness.expected) for witness in witnesses)
            if not arrived.wait(PATIENCE if behind else QUIET):
                break


@contextmanager
def brokers(backend: MessagingBackend, view: View) -> Iterator[MessagingConfig]:
    """The brokers of a backend, started on free ports, and how they are reached; ended with their data."""
    chosen = BROKERS[backend]
    nats, kafka = NatsConfig(), KafkaConfig()
    with ExitStack() as running:
        if MessagingBackend.NATS in chosen:
            server = running.enter_context(NatsServer())
            view.say(f"NATS runs at {server.url}")
            nats = NatsConfig(servers=[server.url])
        if MessagingBackend.KAFKA in chosen:
            view.say("starting Kafka (the first time it is fetched, up to a minute)")
            broker = running.enter_context(KafkaBroker())
            view.say(f"Kafka runs at {broker.bootstrap_servers}")
            kafka = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
        yield MessagingConfig(backend=backend, nats=nats, kafka=kafka)
        view.say("stopping")
