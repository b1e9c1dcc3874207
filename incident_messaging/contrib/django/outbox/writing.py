"""Messages written in the application's own transactions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from django.db import router

from incident_messaging.contrib.django.services import get_service
from incident_messaging.contrib.outbox_rows import columns


def add(
    message: Any,
    *,
    topic: str | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    correlation_id: str | None = None,
    using: str | None = None,
) -> str:
    """Write a message into the outbox in the current transaction, and return its id.

    Outside of ``transaction.atomic`` it is a transaction of its own. To keep the order of one key over several
    processes, save what the message is about (which locks its row) before. While messaging is disabled nothing
    is written.

    Args:
        message: An `IncidentEvent`, or anything that ``publish`` takes.
        topic: Without the prefix; ``None`` is the event's own.
        key: Messages with one key keep their order; ``None`` is the incident's id of an event.
        headers: Text by name.
        correlation_id: ``None`` is that of the context.
        using: The alias of the database; ``None`` is where the routers write the outbox.

    Raises:
        ConfigurationError: Topic, key, header or correlation id is missing or not allowed.
        SerializationError: The message cannot be written.
        PublishFailed: It is too large.
    """
    from incident_messaging.contrib.django.outbox.models import OutboxMessage

    service = get_service()
    message_id, row = columns(service, message, topic=topic, key=key, headers=headers, correlation_id=correlation_id)
    if service.config.enabled:
        OutboxMessage.objects.using(using or router.db_for_write(OutboxMessage)).create(**row)
    return message_id


def retry_failed(using: str | None = None) -> int:
    """Let the relay try again what it has put aside, and return how many that is."""
    from incident_messaging.contrib.django.outbox.models import OutboxMessage

    messages = OutboxMessage.objects.using(using or router.db_for_write(OutboxMessage))
    return cast(int, messages.filter(failed_at__isnull=False).update(failed_at=None, error=""))
