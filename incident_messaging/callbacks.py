"""The thread on which the callbacks of futures run, and small things happen after a delay."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from incident_messaging.deadline import Deadline, now

log = logging.getLogger("incident_messaging")

#: Seconds that an idle thread has to end, also where a call's time has run out.
LAST_WORDS = 0.1


class CallbackThread:
    """Runs callables one after another, on one daemon thread that starts with the first.

    A service has two: one for the users' callbacks, which may publish and wait, and one for what
    the SDK itself does after a delay, so that a slow callback holds none of that up.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._wake = threading.Condition()
        self._now: list[Callable[[], Any]] = []
        self._due: list[tuple[float, int, Callable[[], Any]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._done = threading.Event()

    def submit(self, run: Callable[[], Any], delay: float = 0.0) -> None:
        """Run it after ``delay`` seconds; what it raises is logged. Dropped after `close`."""
        with self._wake:
            if self._closing:
                return
            if delay > 0:
                heapq.heappush(self._due, (now() + delay, next(self._order), run))
            else:
                self._now.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self, deadline: Deadline) -> bool:
        """Run what is due now, drop what is delayed, end. False if a callback would not end."""
        with self._wake:
            self._closing = True
            running = self._thread is not None
            self._wake.notify()
        if not running or threading.current_thread() is self._thread:
            return True
        return self._done.wait(max(LAST_WORDS, deadline.left() or 0.0))

    def _run(self) -> None:
        try:
            # All that is due in one go: one by one they are slower than those who publish, and pile up.
            while batch := self._next():
                for run in batch:
                    try:
                        run()
                    except BaseException:
                        log.exception("a callback failed")
        finally:
            self._done.set()

    def _next(self) -> Sequence[Callable[[], Any]]:
        with self._wake:
            while True:
                batch, self._now = self._now, []
                while self._due and self._due[0][0] <= now():
                    batch.append(heapq.heappop(self._due)[2])
                if batch or self._closing:
                    return batch
                self._wake.wait(self._due[0][0] - now() if self._due else None)
