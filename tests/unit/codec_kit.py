"""What the tests of the codec share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from incident_messaging.codec import Codec
from incident_messaging.record import Record


def record_of(
    codec: Codec,
    message: Any,
    *,
    topic: str,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    correlation_id: str | None = None,
) -> Record:
    """The record that carries a message, of the size that the codec says."""
    record = Record.__new__(Record)
    assert codec.write(record, message, topic, key, headers, correlation_id) == record.size
    return record
