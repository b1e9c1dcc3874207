"""For the tests of those who use this package: a pytest plugin and helpers.

With the memory backend, callbacks run in the test's own thread when it says so, delays are jumped
over, and what a callback raised fails the test::

    def test_escalates(messaging):
        messaging.subscribe("incidents.created", IncidentCreated, callback=escalate)
        messaging.publish_incident_created("INC-1", "critical", "database", "down")
        run_until_idle(messaging)

Fixtures: ``messaging`` (a service on a fresh memory broker), and with the extra ``brokers`` the real
``nats_server``, ``kafka_broker`` and their factories.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from incident_messaging import deadline
from incident_messaging.backends import memory
from incident_messaging.brokers.fixtures import (
    kafka_broker,
    kafka_broker_factory,
    nats_server,
    nats_server_factory,
    pytest_report_header,
)
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.consuming.schedule import Hand
from incident_messaging.deadline import Deadline
from incident_messaging.service import MessagingService

__all__ = [
    "kafka_broker",
    "kafka_broker_factory",
    "memory_service",
    "messaging",
    "nats_server",
    "nats_server_factory",
    "pytest_report_header",
    "reset",
    "run_until_idle",
]

#: Steps after which `run_until_idle` says that it will not come to an end.
STEPS = 100_000


def memory_service(config: MessagingConfig | None = None) -> MessagingService:
    """A service on the memory broker, whose callbacks run only in `run_until_idle`."""
    service = MessagingService(config or MessagingConfig(backend=MessagingBackend.MEMORY))
    service._run_callbacks_by_hand()
    return service


def reset() -> None:
    """Forget every message and place of the memory broker."""
    memory.reset()


def run_until_idle(service: MessagingService, *, reraise: bool = True) -> int:
    """Run callbacks in this thread until nothing is left to handle; delays are jumped over.

    Args:
        service: One made by `memory_service` or the fixture ``messaging``.
        reraise: Whether what a callback raised is raised again. Its message has been put back or
            buried as the retry policy says; call again to go on.

    Returns:
        How many times a callback was called.

    Raises:
        RuntimeError: It did not come to an end in 100,000 calls.
    """
    hand, calls = Hand(), 0
    while calls < STEPS:
        intakes = service._intakes()
        if any(intake.step(hand, Deadline.after(0), reraise=reraise) for intake in intakes):
            calls += 1
            continue
        due = [at for intake in intakes if (at := intake.next_due()) is not None]
        if not due:
            return calls
        deadline.jump(max(0.0, min(due) - deadline.now()))
    raise RuntimeError(f"still not idle after {STEPS} calls: does a callback publish to its own topic?")


@pytest.fixture
def messaging() -> Iterator[MessagingService]:
    """A service on a fresh memory broker; see `run_until_idle`."""
    reset()
    with memory_service() as service:
        yield service
    reset()
