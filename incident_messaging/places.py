"""Places that ``consume_one`` keeps open for a while, so that a second call costs no group join."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

from incident_messaging.callbacks import CallbackThread
from incident_messaging.subscription import Subscription

#: Seconds that a place is kept open after a call.
KEEP = 30.0


class OpenPlaces:
    """Idle subscriptions by what was asked for; each is used by one call at a time."""

    def __init__(self, timer: CallbackThread) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._idle: dict[Hashable, Subscription[Any]] = {}

    def take(self, asked: Hashable, subscribe: Callable[[], Subscription[Any]]) -> Subscription[Any]:
        """The idle place, or a new one."""
        with self._lock:
            place = self._idle.pop(asked, None)
        if place is None or place.closed or place.error is not None:
            return subscribe()
        return place

    def keep(self, asked: Hashable, place: Subscription[Any]) -> None:
        """Keep the place idle; where one is kept already, this one is closed."""
        with self._lock:
            kept = self._idle.setdefault(asked, place) is place
        if kept:
            self._timer.submit(lambda: self._expire(asked, place), KEEP)
        else:
            place.close()

    def _expire(self, asked: Hashable, place: Subscription[Any]) -> None:
        with self._lock:
            idle = self._idle.get(asked) is place
            if idle:
                del self._idle[asked]
        if idle:
            place.close()
