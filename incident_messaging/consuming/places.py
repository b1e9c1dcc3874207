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
    """Idle intakes by place and by what else was asked for; each is used by one call at a time."""

    def __init__(self, timer: CallbackThread) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._idle: dict[Hashable, dict[Intake[Any], Hashable]] = {}
        self._until: dict[Intake[Any], float] = {}

    def take(self, place: Hashable, asked: Hashable, subscribe: Callable[[], Intake[Any]]) -> Intake[Any]:
        """An idle intake whose last delivery is settled, or a new one.

        Those of the same place that were asked for something else leave: they would hold back what it is for.
        """
        with self._lock:
            idle = [intake for intake in self._idle.get(place, {}) if not intake.in_hand]
            kinds = {intake: self._remove(place, intake) for intake in idle}
        usable = [
            intake for intake, kind in kinds.items() if kind == asked and not intake.closed and intake.error is None
        ]
        chosen = usable[0] if usable else None
        for intake in usable[1:]:
            self.keep(place, asked, intake)
        for intake in kinds.keys() - set(usable):
            intake.close()
        return chosen or subscribe()

    def keep(self, place: Hashable, asked: Hashable, intake: Intake[Any]) -> None:
        """Keep an intake idle for `KEEP` seconds; then it leaves, and gives back what it holds."""
        with self._lock:
            self._idle.setdefault(place, {})[intake] = asked
            self._until[intake] = now() + KEEP
        self._timer.submit(lambda: self._expire(place, intake), KEEP)

    def _expire(self, place: Hashable, intake: Intake[Any]) -> None:
        with self._lock:
            expired = intake in self._idle.get(place, {}) and now() >= self._until[intake]  # not used again since
            if expired:
                self._remove(place, intake)
        if expired:
            intake.close()

    def _remove(self, place: Hashable, intake: Intake[Any]) -> Hashable:
        """What an intake was asked for, which is idle no more. Under the lock."""
        del self._until[intake]
        idle = self._idle[place]
        asked = idle.pop(intake)
        if not idle:
            del self._idle[place]
        return asked
