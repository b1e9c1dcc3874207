"""The dead letters as the console shows them: those with one reason together."""

from __future__ import annotations

import threading
import time
from typing import Any

from incident_messaging import MessagingService

MOST = 1_000  # looked at
FRESH_SECS = 5.0  # however many pages ask, the broker is looked at once in this time


class DeadLetterBox:
    """Looks into the dead letters for all pages of the process."""

    def __init__(self, service: MessagingService) -> None:
        self._service = service
        self._lock = threading.Lock()  # held while one looks, so that the others share what it finds
        self._found: dict[str, Any] = {}
        self._until = 0.0

    def look(self) -> dict[str, Any]:
        """How many there are, and the groups of them: same origin, same consumer group, same exception."""
        with self._lock:
            if time.monotonic() > self._until:
                self._found = self._count()
                self._until = time.monotonic() + FRESH_SECS
            return self._found

    def redrive(self, *, backend: str, topic: str, group: str, exception: str) -> dict[str, Any]:
        """Put one group back on its topic, for the consumers that gave it up; what came of it."""
        report = self._service.dead_letters.redrive(backend=backend, topic=topic, group=group, exception=exception)
        with self._lock:
            self._until = 0.0
        return {
            "done": report.done,
            "skipped": sum(report.skipped.values()),
            "failed": report.failed,
            "reasons": [*report.skipped, *(str(error) for error in report.errors[:3])],
        }

    def _count(self) -> dict[str, Any]:
        groups: dict[tuple[str | None, ...], dict[str, Any]] = {}
        total = 0
        for letter in self._service.dead_letters.list(limit=MOST):
            total += 1
            origin = (letter.backend.value, letter.topic, letter.group, letter.exception_type)
            group = groups.setdefault(origin, {"count": 0})
            group["count"] += 1
            group.update(
                zip(("backend", "topic", "group", "exception"), origin, strict=True),
                reason=letter.exception_message,
                last_key=letter.key,
                failed_at=letter.failed_at.timestamp() if letter.failed_at else None,
            )
        return {"total": total, "more": total == MOST, "groups": list(groups.values())}
