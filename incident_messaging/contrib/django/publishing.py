"""Events that go out when the transaction that caused them is committed."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial

from django.db import transaction

from incident_messaging.contrib.django.services import get_service
from incident_messaging.envelope import MessageEnvelope
from incident_messaging.errors import ConfigurationError
from incident_messaging.events import IncidentEvent
from incident_messaging.metrics import OTHER, Meter
from incident_messaging.publishing.publication import PublishReceipt

log = logging.getLogger("incident_messaging.django")

#: For what fails before the service could count it.
_meter = Meter(enabled=True, topic_limit=500)


def publish_on_commit(event: IncidentEvent, using: str | None = None) -> None:
    """Publish an incident event when the current transaction is committed; at once where there is none.

    Goes to the event's own topic with the incident's id as key, and with id, time, correlation id and trace of
    this call. Nothing is published where the transaction is rolled back. It waits for nothing and never
    raises: a failure is logged (``incident_messaging.django``) and counted
    (``messaging_publish_failures_total``). The event is lost then, and where the process dies between the commit
    and the broker's acknowledgement; what must not be lost goes through an outbox.

    Args:
        event: What happened.
        using: The alias of the database whose transaction is meant; ``None`` is the default one.
    """
    try:
        if not isinstance(event, IncidentEvent):
            raise ConfigurationError(f"event must be an IncidentEvent, not {type(event).__name__}")
        publish = partial(copy_context().run, _publish, event, MessageEnvelope.new(event))
        transaction.on_commit(publish, using=using)
    except Exception as error:
        _failed(event, error, counted=False)


def _publish(event: IncidentEvent, envelope: MessageEnvelope[IncidentEvent]) -> None:
    counted = False
    try:
        service = get_service()
        counted = True  # by the service, from here on
        future = service.publish_nowait(event.topic, envelope, key=event.incident_id)
        future.add_done_callback(partial(_ended, event))
    except Exception as error:
        _failed(event, error, counted=counted)


def _ended(event: IncidentEvent, future: Future[PublishReceipt]) -> None:
    error = future.exception()
    if error is not None:
        _failed(event, error, counted=True)


def _failed(event: object, error: BaseException, *, counted: bool) -> None:
    topic, what = OTHER, repr(event)[:200]
    if isinstance(event, IncidentEvent):
        topic, what = event.topic, f"{event.type} of {event.incident_id}"
    log.error("publish_on_commit: %s was not published: %s", what, " ".join(str(error).split()))
    if not counted:
        _meter.publish_failed(topic, OTHER, error)
