"""Records on their way, found again when their time is up. Pure.

One record of ten thousand runs out of time, so nothing is sorted: records lie in slots of 20 ms by
their deadline, and whole slots are looked at.
"""

from __future__ import annotations

from incident_messaging.backends.base import Parcel

_SLOT_SECS = 0.02


class PendingRecords:
    """All records on their way; the note of each is the slot in which it lies, among others of its time.

    `remove` may be called by any thread at any time, the rest under one lock: a record's end is told ten
    thousand times more often than anything else happens here, by a thread that would take turns at the lock with
    those who publish.
    """

    def __init__(self) -> None:
        self._slots: dict[int, set[Parcel]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def __contains__(self, parcel: Parcel) -> bool:
        return parcel in parcel.note

    def add(self, parcel: Parcel) -> None:
        """Take a record in."""
        number = int((parcel.deadline.at or 0.0) / _SLOT_SECS)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = set()
        parcel.note = slot
        slot.add(parcel)

    def remove(self, parcel: Parcel) -> bool:
        """Let a record go; false if it has gone already. One step of the set, so of two callers one is told true."""
        try:
            parcel.note.remove(parcel)
        except KeyError:
            return False
        return True

    def overdue(self, now: float) -> list[Parcel]:
        """The records whose time is up; empty slots are dropped."""
        passed = [number for number in self._slots if (number + 1) * _SLOT_SECS <= now]
        late = [parcel for number in passed for parcel in tuple(self._slots[number])]
        for number in passed:
            if not self._slots[number]:
                del self._slots[number]
        return late

    def all(self) -> list[Parcel]:
        """Every record on its way."""
        return [parcel for slot in self._slots.values() for parcel in tuple(slot)]
