"""The dead letters as the console shows them: those with one reason together."""

from __future__ import annotations

import threading
import time
from copy import copy
from typing import Any

from incident_messaging import BackendUnavailable, MessagingError, MessagingService

MOST = 1_000  # looked at
FRESH_SECS = 5.0  # however many pages ask, the broker is looked at once in this time
LOOK_SECS = 5.0  # that a look goes on, once the first dead letter is there
WAIT_SECS = 1.0  # that a page waits for another's look, if nothing is known yet


class DeadLetterBox:
    """Looks into the dead letters for all pages of the process."""

    def __init__(self, service: MessagingService) -> None:
        self._service = service
        self._looking = threading.Lock()  # one looks, for all
        self._outcome: dict[str, Any] | MessagingError | None = None  # of the last look
        self._fresh_until = 0.0
        self._redrives = 0

    def look(self) -> dict[str, Any]:
        """How many there are, and the groups of them: same origin, same consumer group, same exception.

        While a broker is away one look takes many seconds. It is one page's; the others are answered with what came
        of the look before, so that they do not take every thread of the server.
        """
        if self._looking.acquire(timeout=WAIT_SECS if self._outcome is None else 0.0):
            try:
                if time.monotonic() > self._fresh_until:
                    self._look_again()
            finally:
                self._looking.release()
        outcome = self._outcome
        if outcome is None:
            raise BackendUnavailable("the dead letters have not been read yet", code="down")
        if isinstance(outcome, MessagingError):
            raise copy(outcome)  # each thread its own: raising writes into it
        return outcome

    def redrive(self, *, backend: str, topic: str, group: str, exception: str) -> dict[str, Any]:
        """Put one group back on its topic, for the consumers that gave it up; what came of it."""
        try:
            report = self._service.dead_letters.redrive(backend=backend, topic=topic, group=group, exception=exception)
        finally:  # an error may come after some were put back
            self._redrives += 1
            self._outcome, self._fresh_until = None, 0.0
        return {
            "done": report.done,
            "skipped": sum(report.skipped.values()),
            "failed": report.failed,
            "reasons": [*report.skipped, *(str(error) for error in report.errors[:3])],
        }

    def _look_again(self) -> None:
        redrives = self._redrives
        try:
            self._outcome = self._count()
        except MessagingError as error:
            self._outcome = copy(error)
        # What was put back meanwhile may be among what was found.
        self._fresh_until = time.monotonic() + FRESH_SECS if redrives == self._redrives else 0.0

    def _count(self) -> dict[str, Any]:
        groups: dict[tuple[str | None, ...], dict[str, Any]] = {}
        total, late, end = 0, False, time.monotonic() + LOOK_SECS
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
            if late := time.monotonic() > end:
                break
        return {"total": total, "more": late or total == MOST, "groups": list(groups.values())}
