"""Where suspects are handled: one at a time, with nothing else of this process in a handler.

A message of which a process may have died is started alone, so that whoever dies then is the one to blame
(``docs/decisions/0010-messages-that-kill.rst``). There is one ward for the process, since a process dies as a
whole; nobody who knows no suspects ever waits for it.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from typing import Protocol

from incident_messaging.consuming.schedule import Entry
from incident_messaging.deadline import Deadline

log = logging.getLogger("incident_messaging")

#: Seconds between two looks whether the others have let go; they are only taken where something has died.
LOOK = 0.01
#: Seconds that a suspect waits for other handlers to end, and others for it; then they go on side by side.
PATIENCE = 30.0


class ProcessDied(Exception):
    """What a dead letter gives as its exception when each start of a handler ended the process."""

    def __init__(self, starts: int) -> None:
        super().__init__(f"{starts} processes died while they handled this message and nothing else")


class Member(Protocol):
    """Who hands messages out: an `Intake`."""

    @property
    def ending(self) -> bool:
        """Whether it hands out nothing more."""

    def is_busy(self, besides: int) -> bool:
        """Whether a thread other than this one has a message in its hand."""


class Ward:
    """Guarantees: between `admit` and the moment when the suspect has left its hand (but no longer than
    `PATIENCE`), `closed_to` is true for every other thread.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, as a forked child does: what was inherited is the parent's."""
        self._changed = threading.Condition()
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._patient: Entry | None = None
        self._thread = 0
        self._member: Member | None = None
        self._until = Deadline(0.0)
        self._turned_away = False

    def enroll(self, member: Member) -> None:
        """Take note of who hands out."""
        with self._changed:
            self._members.add(member)

    def closed_to(self, member: Member) -> bool:
        """Whether the calling thread has to wait for a suspect in another one's hand."""
        if self._patient is None:  # the way of all days, without a lock
            return False
        with self._changed:
            closed = self._is_taken()
            self._turned_away |= closed and member is not self._member
        return closed

    def admit(self, member: Member, suspect: Entry, deadline: Deadline) -> bool:
        """Wait until the suspect, which is in the calling thread's hand, is the only message in any.

        Returns:
            False where another suspect is there, the deadline came first, or the member ended: it is to leave the hand.
        """
        with self._changed:
            if self._turned_away:  # who was turned away has a turn before the next suspect
                self._turned_away = False
                self._changed.wait(2 * LOOK)
            if self._is_taken():
                return False
            if self._patient is None:  # else the thread's own: a handler that consumes
                self._patient, self._thread, self._member = suspect, threading.get_ident(), member
                self._until = Deadline.after(PATIENCE)
        return self._is_alone(member, suspect, deadline)

    def _is_alone(self, member: Member, suspect: Entry, deadline: Deadline) -> bool:
        patience = Deadline.after(PATIENCE)
        while self._others_are_busy():
            if deadline.over or member.ending:
                with self._changed:
                    self._patient = None if self._patient is suspect else self._patient
                return False
            if patience.over:
                log.warning("a message that may have ended a process does not wait any longer for other handlers")
                break
            with self._changed:
                self._changed.wait(deadline.wait(LOOK))
        return True

    def _is_taken(self) -> bool:
        """Whether another thread's suspect is in its hand. Under the lock."""
        patient = self._patient
        if patient is None or patient.hand is None or self._until.over:
            self._patient = None
            return False
        return self._thread != threading.get_ident()

    def _others_are_busy(self) -> bool:
        with self._changed:
            members = list(self._members)
        return any(member.is_busy(threading.get_ident()) for member in members)


#: The ward of this process.
WARD = Ward()
os.register_at_fork(after_in_child=WARD.reset)
