"""Records on their way, found again when their time is up. Pure.

One record of ten thousand runs out of time, so nothing is sorted: records lie in slots of 20 ms by
their deadline, and whole slots are looked at.
"""

from __future__ import annotations

from incident_messaging.backends.base import Done
from incident_messaging.record import Record

_SLOT_SECS = 0.02


class Pending:
    """A record on its way, until its ``done`` was called.

    Attributes:
        record: What is sent.
        at: Its deadline on the clock of `incident_messaging.deadline`.
        done: Whom to tell.
        sent: Whether it was handed to librdkafka, so that nobody can call it back.
    """

    __slots__ = ("at", "done", "record", "sent")

    def __init__(self, record: Record, at: float, done: Done) -> None:
        self.record = record
        self.at = at
        self.done = done
        self.sent = False


class PendingRecords:
    """All records on their way; not thread-safe."""

    def __init__(self) -> None:
        self._slots: dict[int, set[Pending]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, pending: Pending) -> bool:
        return pending in self._slots.get(int(pending.at / _SLOT_SECS), ())

    def add(self, pending: Pending) -> None:
        """Take a record in."""
        self._slots.setdefault(int(pending.at / _SLOT_SECS), set()).add(pending)
        self._count += 1

    def remove(self, pending: Pending) -> bool:
        """Let a record go; false if it has gone already."""
        if pending not in self:
            return False
        self._slots[int(pending.at / _SLOT_SECS)].remove(pending)
        self._count -= 1
        return True

    def overdue(self, now: float) -> list[Pending]:
        """The records whose time is up; empty slots are dropped."""
        passed = [slot for slot in self._slots if (slot + 1) * _SLOT_SECS <= now]
        late = [pending for slot in passed for pending in self._slots[slot]]
        for slot in passed:
            if not self._slots[slot]:
                del self._slots[slot]
        return late

    def all(self) -> list[Pending]:
        """Every record on its way."""
        return [pending for slot in self._slots.values() for pending in slot]
