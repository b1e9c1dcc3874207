"""Records on their way, found again when their time is up. Pure.

One record of ten thousand runs out of time, so nothing is sorted: records lie in slots of 20 ms by
their deadline, and whole slots are looked at.
"""

from __future__ import annotations

from incident_messaging.backends.base import Parcel

_SLOT_SECS = 0.02

#: Where a record lies before it lies anywhere.
NOWHERE: set[Pending] = set()


class Pending:
    """A parcel on its way, until it was told its outcome.

    Attributes:
        sent: Whether it was handed to librdkafka, so that nobody can call it back.
        returned: Whether a client has given it back, which may have sent it before.
        slot: Where it lies, among others of its time.
    """

    __slots__ = ("parcel", "record", "returned", "sent", "slot")

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        self.record = parcel.record
        self.sent = self.returned = False
        self.slot: set[Pending] = NOWHERE


class PendingRecords:
    """All records on their way. `remove` may be called by any thread at any time, the rest under one lock.

    A record's end is told ten thousand times more often than anything else happens here, and by a thread
    that would take turns at the lock with those who publish.
    """

    def __init__(self) -> None:
        self._slots: dict[int, set[Pending]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def __contains__(self, pending: Pending) -> bool:
        return pending in pending.slot

    def add(self, pending: Pending) -> None:
        """Take a record in."""
        number = int((pending.parcel.deadline.at or 0.0) / _SLOT_SECS)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = set()
        pending.slot = slot
        slot.add(pending)

    def remove(self, pending: Pending) -> bool:
        """Let a record go; false if it has gone already. One step of the set, so of two callers one is told true."""
        try:
            pending.slot.remove(pending)
        except KeyError:
            return False
        return True

    def overdue(self, now: float) -> list[Pending]:
        """The records whose time is up; empty slots are dropped."""
        passed = [number for number in self._slots if (number + 1) * _SLOT_SECS <= now]
        late = [pending for number in passed for pending in tuple(self._slots[number])]
        for number in passed:
            if not self._slots[number]:
                del self._slots[number]
        return late

    def all(self) -> list[Pending]:
        """Every record on its way."""
        return [pending for slot in self._slots.values() for pending in tuple(slot)]
