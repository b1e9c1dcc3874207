"""A broker as publishing sees it: the window of what may be on its way, and the ledger of what has ended."""

from __future__ import annotations

import copy
import logging
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


#: Seconds after the last deadline until a place that is still taken is looked at again, and given up.
_LOOK = 1.0


class Window:
    """How much may be on its way to one broker, by messages and bytes. One message is always let in.

    Attributes:
        until: The latest deadline of what was let in, on `now`'s clock.
    """

    def __init__(self, messages: int, size: int) -> None:
        self._messages = messages
        self._size = size
        self._in_flight = 0
        self._bytes = 0
        self._waiting = 0
        self.until = 0.0
        self._lock = threading.RLock()  # re-entrant: a finalizer that publishes may come in between
        self._changed = threading.Condition(self._lock)

    def __len__(self) -> int:
        """How many are on their way."""
        return self._in_flight

    def acquire(self, size: int, deadline: Deadline) -> bool:
        """Take a place for so many bytes; false if there was none by the deadline."""
        with self._lock:
            in_flight = self._in_flight
            # `_room`, without the call.
            has_room = not in_flight or (in_flight < self._messages and self._bytes + size <= self._size)
            if not has_room and not self._wait_for_room(size, deadline):
                return False
            self._in_flight += 1
            self._bytes += size
            return True

    def acquire_some(self, sizes: Sequence[int], deadline: Deadline) -> int:
        """Take places for the first of these, as many as there is room for; for one at least, by the deadline.

        Returns:
            For how many; 0 if there was no place by the deadline.
        """
        if not self.acquire(sizes[0], deadline):
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
            self._in_flight = max(0, self._in_flight - messages)
            self._bytes = max(0, self._bytes - size)
            if self._waiting:
                self._changed.notify_all()

    def wait_empty(self, deadline: Deadline) -> bool:
        """Whether nothing is on its way, by the deadline at the latest.

        A publish that Ctrl-C broke off behind its place and before its hand-over has no outcome that would give the
        place back. Such are given up when all others must have ended, and nothing has moved between two looks.
        """
        seen: tuple[int, int, float] | None = None
        while not self._wait_until(lambda: not self._in_flight, Deadline.after(deadline.wait(_LOOK))):
            if deadline.over:
                return False
            with self._lock:
                last, seen = seen, (self._in_flight, self._bytes, self.until) if now() > self.until + _LOOK else None
            if last is not None and last == seen:
                self.release(last[0], last[1])
        return True

    def _wait_for_room(self, size: int, deadline: Deadline) -> bool:
        return self._wait_until(lambda: not self._in_flight or self._room(size), deadline)

    def _wait_until(self, is_so: Callable[[], bool], deadline: Deadline) -> bool:
        with self._lock:
            self._waiting += 1
            try:
                return self._changed.wait_for(is_so, deadline.left())
            finally:
                self._waiting -= 1

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
        self._window.release(len(legs), sum([leg.taken for leg in legs]))
        try:
            self._count_all(legs)
        except Exception:  # those who wait are told all the same
            log.exception("outcomes of publishes could not be counted")
        self._tell(legs)

    def _tell(self, legs: Sequence[Leg]) -> None:
        """Tell those who wait; one who has several in a row, as a batch, at once."""
        run: list[Leg] = []
        waiting: Waiter | None = None
        for leg in legs:  # ``groupby`` takes three times as long where nobody has several
            waiter = leg.waiter
            if waiter is not waiting and waiting is not None:
                _tell(waiting, run)
                run = []
            waiting = waiter
            run.append(leg)
        if waiting is not None:
            _tell(waiting, run)

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
        self.window.until = max(self.window.until, deadline.at or 0.0)
        self.broker.send_all(legs)


def _tell(waiter: Waiter, legs: Sequence[Leg]) -> None:
    try:
        waiter.finished(legs)
    except Exception:  # those behind it are to be told all the same
        log.exception("the outcome of a publish could not be told")


def _by_label(legs: Sequence[Leg]) -> Iterable[tuple[str, Sequence[Leg]]]:
    """The legs of each label; nearly always there is one."""
    if len({leg.label for leg in legs}) < 2:
        return [(leg.label, legs) for leg in legs[:1]]
    return [(label, list(run)) for label, run in groupby(sorted(legs, key=_LABEL), key=_LABEL)]


def _own(error: MessagingError) -> MessagingError:
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
