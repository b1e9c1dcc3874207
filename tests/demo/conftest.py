"""The demo and the examples against real brokers."""

from __future__ import annotations

import pytest

from incident_messaging.deadline import Deadline
from incident_messaging.eventloop import EventLoop


@pytest.fixture(scope="session", autouse=True)
def _pipes_of_the_process() -> None:
    """libuv opens two pipes with the first loop of a process and keeps them: no test leaves them behind."""
    loop = EventLoop("incident-messaging-first-loop")
    loop.call(lambda: None)
    loop.stop(Deadline.after(5.0))
