"""A service for the relay's own tests that answers as a test wants."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

from incident_messaging import MessagingConfig, MessagingError, MessagingService, Timeout

UNKNOWN = Timeout("no outcome", maybe_delivered=True)


class Reluctant(MessagingService):
    """Has an answer of its own for the messages of some keys: an error, or nothing yet (a future)."""

    def __init__(self, config: MessagingConfig) -> None:
        super().__init__(config)
        self.answers: Mapping[str, MessagingError | Future[Any]] = {}
        self.tried: list[tuple[str | None, Any]] = []

    def publish_nowait(self, topic: str, message: Any, **options: Any) -> Future[Any]:
        self.tried.append((options["key"], message.payload))
        answer = self.answers.get(options["key"])
        if answer is None:
            return super().publish_nowait(topic, message, **options)
        if isinstance(answer, Future):
            return answer
        failed: Future[Any] = Future()
        failed.set_exception(answer)
        return failed


def payloads(service: MessagingService) -> list[Any]:
    return [delivery.payload for delivery in service.consume("t", Any, group=uuid4().hex, timeout=0.1)]
