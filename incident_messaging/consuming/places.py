"""Places that ``consume_one`` keeps open for a while, so that a second call costs no group join."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

from incident_messaging.callbacks import CallbackThread
from incident_messaging.consuming.intake import Intake
from incident_messaging.deadline import now

#: Seconds that a place is kept open after a call.
KEEP = 30.0


class OpenPlaces:
    """Idle intakes by what was asked for; each is used by one call at a time."""

    def __init__(self, timer: CallbackThread) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._idle: dict[Hashable, list[Intake[Any]]] = {}
        self._until: dict[Intake[Any], float] = {}

    def take(self, asked: Hashable, subscribe: Callable[[], Intake[Any]]) -> Intake[Any]:
        """An idle place whose last delivery is settled, or a new one."""
        with self._lock:
            places = self._idle.get(asked, [])
            free = next((place for place in places if not place.in_hand), None)
            if free is not None:
                places.remove(free)
                self._until.pop(free, None)
        if free is None:
            return subscribe()
        if free.closed or free.error is not None:
            free.close()
            return subscribe()
        return free

    def keep(self, asked: Hashable, place: Intake[Any]) -> None:
        """Keep the place idle for `KEEP` seconds; then it leaves, and gives back what it holds."""
        with self._lock:
            self._idle.setdefault(asked, []).append(place)
            self._until[place] = now() + KEEP
        self._timer.submit(lambda: self._expire(asked, place), KEEP)

    def _expire(self, asked: Hashable, place: Intake[Any]) -> None:
        with self._lock:
            idle = self._idle.get(asked, [])
            expired = place in idle and now() >= self._until[place]  # not used again since
            if expired:
                idle.remove(place)
                del self._until[place]
            if not idle:
                self._idle.pop(asked, None)
        if expired:
            place.close()
