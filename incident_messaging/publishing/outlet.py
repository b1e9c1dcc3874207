"""A broker as publishing sees it: the window of what may be on its way, and the ledger of what has ended."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

import attrs

from incident_messaging.backends.base import MessageProducer, Parcel, Where, position
from incident_messaging.codec import sent_envelope
from incident_messaging.config import MessagingBackend
from incident_messaging.deadline import Deadline, now
from incident_messaging.envelope import MessageEnvelope
from incident_messaging.errors import MessagingError
from incident_messaging.metrics import Meter
from incident_messaging.record import Position

log = logging.getLogger("incident_messaging")

_LABEL = attrgetter("label")

#: How often somebody who waits for a window looks for lost places, and for how long all must be over by then.
_LOOK = 1.0


class Window:
    """How much may be on its way to one broker, by messages and bytes. One message is always let in.

    A publish that Ctrl-C breaks off behind its place and before its hand-over has no outcome that would give the place
    back. Who waits gives up such places when all others must have ended and nothing has moved between two looks.
    """

    def __init__(self, messages: int, size: int) -> None:
        self._messages = messages
        self._size = size
        self._in_flight = 0
        self._bytes = 0
        self._untold = 0
        self._until = 0.0
        self._waiting = 0
        self._lock = threading.RLock()  # re-entrant: a finalizer that publishes may come in between
        self._changed = threading.Condition(self._lock)

    def __len__(self) -> int:
        """How many are on their way."""
        return self._in_flight

    def acquire(self, size: int, block: Deadline, until: Deadline) -> bool:
        """Take a place for so many bytes, given back a moment after ``until``; false if none was free by ``block``."""
        with self._lock:
            if self._in_flight and not self._room(size) and not self._wait_for_room(size, block):
                return False
            self._in_flight += 1
            self._bytes += size
            if until.at is None or until.at > self._until:
                self._until = math.inf if until.at is None else until.at
            return True

    def acquire_some(self, sizes: Sequence[int], until: Deadline) -> int:
        """Take places for the first of these, as many as there is room for; for one at least, by ``until``.

        Returns:
            For how many; 0 if there was no place in time.
        """
        if not self.acquire(sizes[0], until, until):
            return 0
        taken = 1
        with self._lock:
            for size in sizes[1:]:
                if not self._room(size):
                    break
                self._in_flight += 1
                self._bytes += size
                taken += 1
        return taken

    def release(self, messages: int, size: int) -> None:
        """Give places back."""
        with self._lock:
            # Not below none: a place that was given up as lost may be given back after all.
            self._in_flight = max(0, self._in_flight - messages)
            self._bytes = max(0, self._bytes - size)
            self._tell_waiters()

    def ended(self, messages: int, size: int) -> None:
        """Give places back, of publishes whose waiters are about to be `told`."""
        with self._lock:
            self._untold += messages
            self.release(messages, size)

    def told(self, messages: int) -> None:
        """The waiters of these have been told."""
        with self._lock:
            self._untold -= messages
            self._tell_waiters()

    def wait_empty(self, deadline: Deadline) -> bool:
        """Whether nothing is on its way and all is told, by the deadline at the latest."""
        return self._wait_until(lambda: not self._in_flight and not self._untold, deadline)

    def _wait_for_room(self, size: int, deadline: Deadline) -> bool:
        return self._wait_until(lambda: not self._in_flight or self._room(size), deadline)

    def _wait_until(self, is_so: Callable[[], bool], deadline: Deadline) -> bool:
        seen: tuple[int, int, float] | None = None
        with self._lock:
            self._waiting += 1
            try:
                while not self._changed.wait_for(is_so, deadline.wait(_LOOK)):
                    if deadline.over:
                        return False
                    seen = self._give_up(seen)
            finally:
                self._waiting -= 1
        return True

    def _give_up(self, before: tuple[int, int, float] | None) -> tuple[int, int, float] | None:
        """Give up what is lost; returns what is looked at again the next time."""
        if now() < self._until + _LOOK:
            return None
        seen = (self._in_flight, self._bytes, self._until)
        if seen == before:
            self.release(self._in_flight, self._bytes)
        return seen

    def _tell_waiters(self) -> None:
        if self._waiting:
            self._changed.notify_all()

    def _room(self, size: int) -> bool:
        return self._in_flight < self._messages and self._bytes + size <= self._size


class Waiter(Protocol):
    """Who wants to know how publishes have ended."""

    def finished(self, legs: Sequence[Any]) -> None:
        """These have ended. Must not raise."""


class Leg(Parcel):
    """One message on its way to one broker; called by the producer with its outcome.

    Attributes:
        outlet: The way to the broker.
        message: What the caller gave.
        label: The topic without the prefix.
        waiter: Who wants to know how it ends.
        index: Its place in a batch.
        taken: The bytes that it takes of the window: its size.
        begun: When it was handed over.
        where: Its position, or what makes it, if it was acknowledged.
    """

    __slots__ = ("begun", "duplicate", "error", "index", "label", "message", "outlet", "taken", "waiter", "where")

    taken: int
    begun: float
    where: Where | None
    duplicate: bool
    error: MessagingError | None

    def __init__(self, outlet: Outlet, message: Any, label: str, waiter: Waiter, index: int = 0) -> None:
        # Blank: what it carries is written by the codec, or taken from another.
        self.sent, self.note = 0, None
        self.outlet = outlet
        self.message = message
        self.label = label
        self.waiter = waiter
        self.index = index

    @property
    def envelope(self) -> MessageEnvelope[Any]:
        """What is sent; made when somebody asks, as where it fails."""
        return sent_envelope(self.message, self)

    @property
    def position(self) -> Position | None:
        """Where the broker keeps it, if it was acknowledged."""
        return position(self.where)

    def __call__(self, where: Where | None, duplicate: bool, error: MessagingError | None) -> None:
        """Note the outcome; what follows is for the ledger."""
        self.where = where
        self.duplicate = duplicate
        self.error = error
        self.outlet.ledger.note(self)


class Ledger:
    """What has ended at one broker and was not acted on: places, counts and waiters get a burst in one go.

    Guarantees: every leg that was noted is told to its waiter once, by the `settle` that follows it on the same
    thread, or by one of another thread that has taken it; no lock is held then.
    """

    def __init__(self, backend: str, window: Window, meter: Meter) -> None:
        self._backend = backend
        self._window = window
        self._meter = meter
        self._ended: deque[Leg] = deque()
        #: To be called with each leg that has an outcome.
        self.note = self._ended.append

    def refused(self, topic: str, error: MessagingError) -> None:
        """A message was not let in."""
        self._meter.publish_failed(topic, self._backend, error)

    def settle(self) -> None:
        """Act on what was noted."""
        legs = self._taken()
        if not legs:
            return
        self._window.ended(len(legs), sum([leg.taken for leg in legs]))
        try:
            self._count_all(legs)
        except Exception:  # those who wait are told all the same
            log.exception("outcomes of publishes could not be counted")
        try:
            self._tell(legs)
        finally:
            self._window.told(len(legs))

    def _tell(self, legs: Sequence[Leg]) -> None:
        """Tell those who wait; one who has several in a row, as a batch, at once."""
        run: list[Leg] = []
        waiting: Waiter | None = None
        for leg in legs:  # ``groupby`` takes three times as long where nobody has several
            waiter = leg.waiter
            if waiter is not waiting and waiting is not None:
                _tell_one(waiting, run)
                run = []
            waiting = waiter
            run.append(leg)
        if waiting is not None:
            _tell_one(waiting, run)

    def _count_all(self, legs: Sequence[Leg]) -> None:
        failed = [leg for leg in legs if leg.error is not None]
        for leg in failed:
            assert leg.error is not None
            # One refusal of a connection may end many publishes: each tells of its own message.
            leg.error = _own(leg.error).about(topic=leg.label, envelope=leg.envelope)
            self._meter.publish_failed(leg.label, self._backend, leg.error)
        self._count(legs if not failed else [leg for leg in legs if leg.error is None])

    def _taken(self) -> list[Leg]:
        legs = []
        with suppress(IndexError):  # two threads may settle at once
            for _ in range(len(self._ended)):
                legs.append(self._ended.popleft())
        return legs

    def _count(self, legs: Sequence[Leg]) -> None:
        ended = now()
        for label, mine in _by_label(legs):
            sizes = [leg.taken for leg in mine]
            self._meter.published(label, self._backend, sizes, [ended - leg.begun for leg in mine])


@attrs.frozen(eq=False)
class Outlet:
    """A broker as publishing sees it."""

    backend: MessagingBackend
    broker: MessageProducer
    window: Window
    ledger: Ledger

    def hand_over(self, legs: Sequence[Leg], deadline: Deadline) -> None:
        """Send those that have their place in the window; their latency counts from here."""
        begun = now()
        for leg in legs:
            leg.begun = begun
            leg.deadline = deadline
        self.broker.send_all(legs)


def _tell_one(waiter: Waiter, legs: Sequence[Leg]) -> None:
    try:
        waiter.finished(legs)
    except Exception:  # those behind it are to be told all the same
        log.exception("the outcome of a publish could not be told")


def _by_label(legs: Sequence[Leg]) -> Iterable[tuple[str, Sequence[Leg]]]:
    """The legs of each label; nearly always there is one."""
    if not legs:
        return []
    if len({leg.label for leg in legs}) == 1:
        return [(legs[0].label, legs)]
    return [(label, list(run)) for label, run in groupby(sorted(legs, key=_LABEL), key=_LABEL)]


def _own(error: MessagingError) -> MessagingError:
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
