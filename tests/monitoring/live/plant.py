"""A worker with something on every panel: ``incident-messaging worker plant:service``.

Its threads publish at a pace that goes up and down, and provoke what else the dashboard shows: publishes that are
refused, handlers that fail once or always, messages that nobody can read or nobody asked for, a prefetch full of
messages that wait, dead letters that are put back, and an outbox with a row that cannot be published.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from sqlalchemy import Engine, MetaData, create_engine, update

from incident_messaging import (
    Delivery,
    IncidentCreated,
    IncidentEvent,
    IncidentResolved,
    IncidentStateChanged,
    MessagingConfig,
    MessagingError,
    MessagingService,
    RetryPolicy,
)
from incident_messaging.contrib.outbox import Relay
from incident_messaging.contrib.sqlalchemy import Outbox

#: Of rounds of publishing; each is one to nine events.
ROUND_SECS = 0.15

_chosen = random.Random(8)
_stop = threading.Event()


def service() -> MessagingService:
    """The worker's service: its handlers are declared, and its threads run beside them."""
    made = MessagingService(MessagingConfig.from_env())
    _declare(made)
    outbox = Outbox(MetaData(), made)
    engine = create_engine(f"sqlite:///{os.environ['PLANT_DATABASE']}", connect_args={"timeout": 20})
    outbox.messages.metadata.create_all(engine)
    relay = Relay(outbox.store(engine), made)
    for work in (
        lambda: _publish(made),
        lambda: _put_back(made),
        lambda: _write(outbox, engine),
        lambda: relay.run(_stop),
    ):
        threading.Thread(target=_until_closed, args=(work,), daemon=True).start()
    return made


def _declare(made: MessagingService) -> None:
    quick = RetryPolicy(max_attempts=3, initial_delay_secs=0.2)

    @made.handler("incidents.created", IncidentCreated, group="pager", concurrency=4, retry=quick)
    def page(delivery: Delivery[IncidentCreated]) -> None:
        time.sleep(_chosen.lognormvariate(-4.5, 0.8))
        if delivery.payload.title == "unpageable":
            raise LookupError("nobody is on call")
        if delivery.attempt == 1 and _chosen.random() < 0.1:
            raise ConnectionError("the pager did not answer")

    @made.handler("incidents.*", IncidentCreated, group="desk")  # the other variants are skipped
    def list_it(delivery: Delivery[IncidentCreated]) -> None:
        time.sleep(0.002)

    @made.handler("incidents.*", IncidentEvent, group="audit", retry=quick)
    def note(delivery: Delivery[IncidentEvent]) -> None:
        time.sleep(0.0005)

    patient = RetryPolicy(max_attempts=4, initial_delay_secs=2.0, multiplier=1.0, jitter=False)

    @made.handler("tickets.opened", group="tickets", prefetch=2, retry=patient)
    def open_ticket(delivery: Delivery[dict[str, object]]) -> None:
        raise TimeoutError("the ticket system did not answer")


def _rounds(secs: float) -> Iterator[int]:
    """Numbers, one in so many seconds, until the process ends."""
    for number in itertools.count():
        if _stop.wait(secs):
            return
        yield number


def _until_closed(work: Callable[[], object]) -> None:
    with suppress(MessagingError):
        work()


def _publish(made: MessagingService) -> None:
    for number in _rounds(ROUND_SECS):
        burst = round(5 + 4 * math.sin(number * ROUND_SECS / 5))
        for event in itertools.islice(_events(), burst):
            made.publish_nowait(event.topic, event, key=event.incident_id)
        made.publish_nowait("reports.daily", {"text": "x" * round(_chosen.lognormvariate(8, 1))})
        if number % 20 == 3:  # an event without its fields
            made.publish_nowait("incidents.created", {"type": "Created", "incident_id": "INC-0"})
            made.publish_nowait("tickets.opened", {"number": number})
        if number % 7 == 5:
            with suppress(MessagingError):
                made.publish("reports.daily", {"text": "x" * 2_000_000})


def _events() -> Iterator[IncidentEvent]:
    while True:
        incident = f"INC-{_chosen.randrange(10_000)}"
        title = "unpageable" if _chosen.random() < 0.02 else "checkout is slow"
        yield IncidentCreated(incident, "high", "service", title)
        yield IncidentStateChanged(incident, "open", "mitigated")
        yield IncidentResolved(incident, 90)


def _put_back(made: MessagingService) -> None:
    for _ in _rounds(3.0):
        with suppress(MessagingError):
            made.dead_letters.redrive(topic="incidents.created", exception="LookupError")


def _write(outbox: Outbox, engine: Engine) -> None:
    for number in _rounds(0.3):
        with engine.begin() as connection:
            outbox.add(connection, IncidentResolved(f"INC-{number}", number))
            if number % 10 == 4:
                spoiled = outbox.add(connection, {"n": number}, topic="reports.daily")
                broken = outbox.messages.c.message_id == spoiled
                connection.execute(update(outbox.messages).where(broken).values(topic="not a topic"))
