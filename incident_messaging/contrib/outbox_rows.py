"""What a row of an outbox or inbox keeps of a message, and what is read from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from incident_messaging.codec import MESSAGE_ID, from_json
from incident_messaging.envelope import MessageEnvelope
from incident_messaging.errors import ConfigurationError, SerializationError
from incident_messaging.events import IncidentEvent
from incident_messaging.publishing.publisher import Message
from incident_messaging.service import MessagingService

__all__ = ["columns", "mark", "read"]

#: Characters of a message id that a row keeps as they are.
_MARK_LENGTH = 200


def columns(
    service: MessagingService,
    message: Any,
    *,
    topic: str | None,
    key: str | None,
    headers: Mapping[str, str] | None,
    correlation_id: str | None,
) -> tuple[str, dict[str, Any]]:
    """A message's id and the columns of its row but for its times, checked as a publish would.

    Raises:
        ConfigurationError: Topic, key, header or correlation id is missing or not allowed.
        SerializationError: The message cannot be written.
        PublishFailed: It is too large.
    """
    payload = message.payload if isinstance(message, MessageEnvelope) else message
    if isinstance(payload, IncidentEvent):
        topic = payload.topic if topic is None else topic
        key = payload.incident_id if key is None else key
    if topic is None:
        raise ConfigurationError("topic None is not allowed: only an IncidentEvent brings one of its own")
    if key is not None and not _storable(key):
        raise ConfigurationError(f"key {key!r} is not allowed in an outbox: text without NUL and lone surrogates")
    wish = Message(topic, message, key=key, headers=headers, correlation_id=correlation_id)
    record = service._prepare(wish)
    message_id = record.headers[MESSAGE_ID]
    return message_id, {
        "message_id": mark(message_id),
        "topic": topic,
        "key": key,
        "body": record.body,
        "headers": json.dumps(dict(headers or {})),
        "error": "",
    }


def read(body: bytes, headers: str) -> tuple[MessageEnvelope[Any], dict[str, Any]]:
    """The envelope and the user's headers of a row.

    Raises:
        SerializationError: They cannot be read.
    """
    envelope = from_json(body, MessageEnvelope[Any])
    try:
        return envelope, dict(json.loads(headers))
    except (TypeError, ValueError, RecursionError) as error:
        raise SerializationError(f"headers are not readable as a JSON object: {error}", code="decode") from error


def mark(message_id: str) -> str:
    """A message id as a column of limited length can keep it: long or unprintable ones as their hash."""
    if len(message_id) <= _MARK_LENGTH and message_id.isprintable():
        return message_id
    return "sha256:" + hashlib.sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()


def _storable(text: Any) -> bool:
    """Whether every database takes a text; what is no text is refused elsewhere."""
    return not isinstance(text, str) or ("\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text))
