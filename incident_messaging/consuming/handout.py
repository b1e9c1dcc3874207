"""Messages on their way to whoever handles them, and back: handed out, opened, settled.

Workers and iterators share one way. What follows a failure is decided under the lock (`failures`), and acted on
outside it.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from incident_messaging import topics, tracing
from incident_messaging.backends.base import MessageConsumer
from incident_messaging.codec import SKIPPED
from incident_messaging.consuming.bell import Bell
from incident_messaging.consuming.delivery import Delivery, Reject, Retry
from incident_messaging.consuming.failures import Failures
from incident_messaging.consuming.plan import Plan
from incident_messaging.consuming.schedule import HANDED, Entry, Hand, Schedule
from incident_messaging.consuming.tally import Tally
from incident_messaging.consuming.ward import LOOK, WARD, ProcessDied
from incident_messaging.context import Handling
from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import BackendUnavailable, ConfigurationError, MessagingError, SerializationError
from incident_messaging.record import Received

T = TypeVar("T")

log = logging.getLogger("incident_messaging")

#: Seconds that a confirmation may take where no other time is said.
CONFIRM_TIMEOUT = 5.0
#: Seconds that one try to store a mark may take; in between is seen whether the subscription is over.
MARK_TIMEOUT = 1.0


class HandOut(ABC, Generic[T]):
    """What is in the hands of threads, and what may be handed to them next; `Intake` says how it begins and ends.

    Guarantees: those of `Subscription`. Every method may be called from any thread; the lock is held for a few
    assignments, never over a call outside.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._schedule = Schedule()
        self._lock = threading.RLock()  # re-entrant: a finalizer may come in between
        self._changed = Bell(self._lock)
        self._consumer: MessageConsumer | None = None
        self._error: MessagingError | None = None
        self._forked = False
        self._draining = False
        self._closing = False
        self._stalled = False
        self._told_of_suspects = False
        self._failures = Failures(plan, self._schedule, self._changed, acknowledge=self._acknowledge, end=self.ended)
        self._tally = Tally(plan.meter, plan.broker.name, plan.short)
        self._dead_letters = plan.dlq_topic if topics.is_pattern(plan.spec.topic) else None  # met by a wildcard

    @abstractmethod
    def ended(self, error: MessagingError) -> None:
        """It is over by itself."""

    @property
    def ending(self) -> bool:
        """Whether it hands out nothing more."""
        return self._closing or self._error is not None

    @property
    def in_hand(self) -> bool:
        """Whether a delivery was handed out and is not settled."""
        with self._lock:
            return bool(self._schedule.handed())

    def is_busy(self, besides: int) -> bool:
        """Whether a thread other than this one has a delivery in its hand."""
        with self._lock:
            return any(entry.hand is not None and entry.hand.thread != besides for entry in self._schedule.handed())

    # -- what an iterating thread asks --------------------------------------------------------------

    def hand_out(self, hand: Hand, most: int, deadline: Deadline) -> list[Delivery[T]]:
        """Hand an iterating thread at most so many; none when the deadline comes first.

        What it had is acknowledged before (``auto_ack``), or only let go.

        Raises:
            MessagingError: The subscription ended by itself, and this is why.
            BackendUnavailable: It is closed, or was inherited over a fork.
            ConfigurationError: It has a callback.
        """
        self.check_usable()
        if hand.entries:
            self.move_on(hand)
        if self.plan.callback is not None:
            raise ConfigurationError(f"subscription {self.plan.name} has a callback: it cannot be iterated too")
        taken = self._take(hand, most, deadline)
        if not taken and self._closing and not self._draining:
            raise self._gone()
        return taken

    def check_open(self) -> None:
        """Raise what a closed subscription, or one that ended by itself, says to who would iterate it."""
        if self._closing:
            raise self._error or self._gone()

    def check_usable(self) -> None:
        """Raise where it was inherited over a fork."""
        if self._forked:
            raise BackendUnavailable(
                f"subscription {self.plan.name} was inherited over a fork; subscribe again in this process",
                code="forked",
                topic=self.plan.topic,
            )

    def move_on(self, hand: Hand) -> None:
        """A thread is done with what it had: it is acknowledged (``auto_ack``), or only let go."""
        entries, hand.entries = hand.entries, []
        if self.plan.auto_ack:
            self.acknowledge(entries)
        else:
            self._let_go(entries)

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """A thread has handled these."""
        self._ack(entries, self._confirm_by(None) if self.plan.confirm else None)

    def refuse(self, entries: Sequence[Entry], delay: float | None) -> None:
        """A thread has failed with these."""
        for entry in entries:
            self._failures.fail(entry, Retry(delay))

    def give_back(self, hand: Hand) -> None:
        """What a thread had is handed out again as if it never had been."""
        entries, hand.entries = hand.entries, []
        if self._forked:
            return
        with self._lock:
            for entry in entries:
                if entry.state == HANDED:
                    entry.attempt -= 1
                    self._schedule.delay(entry, now())
            self._failures.wake()
        self._tally.tell()

    # -- what a delivery asks -----------------------------------------------------------------------

    def settle(self, deliveries: Sequence[Delivery[T]], *, confirm: bool = False, timeout: float | None = None) -> None:
        """Acknowledge deliveries of this subscription."""
        self.check_usable()
        entries = [entry for delivery in deliveries if (entry := delivery.current()) is not None]
        self._ack(entries, self._confirm_by(timeout, confirm))

    def fail(self, delivery: Delivery[T], error: Exception) -> None:
        """Settle a delivery as failed."""
        self.check_usable()
        if isinstance(error, Reject) and not self.plan.dead_letters and self.plan.group is not None:
            raise ConfigurationError("reject needs the dead letters: enable_dlq is False")
        entry = delivery.current()
        if entry is not None:
            self._failures.fail(entry, error)

    def extend(self, delivery: Delivery[T]) -> None:
        """A delivery is being worked on."""
        self.check_usable()
        entry = delivery.current()
        if entry is not None and self._consumer is not None:
            entry.since = now()
            self._consumer.extend([entry.received])

    # -- what a worker asks -------------------------------------------------------------------------

    def step(self, hand: Hand, deadline: Deadline, *, reraise: bool = False) -> bool:
        """Let the callback handle one message; false if there was none by the deadline, or it is over.

        With ``reraise`` what the callback raised is raised again, after it was acted on.
        """
        if self.plan.callback is None:  # its messages are for whoever iterates
            return False
        taken = self._take(hand, 1, deadline)
        for delivery in taken:
            with Handling(delivery):
                self._call(hand.entries[0], delivery, reraise=reraise)
            hand.entries = []
        return bool(taken)

    def overdue(self, hand: Hand, thread: str) -> bool:
        """Whether the hand's callback has run out of ``handler_timeout``; then it counts as failed."""
        limit = self.plan.handler_timeout
        for entry in list(hand.entries):
            if limit is not None and entry.state == HANDED and now() - entry.since > limit:
                log.error("callback of %s in thread %s exceeded handler_timeout of %s s", self.plan.name, thread, limit)
                self._failures.fail(entry, TimeoutError(f"handler_timeout of {limit} s exceeded in thread {thread}"))
                return True
        return False

    def _call(self, entry: Entry, delivery: Delivery[T], *, reraise: bool) -> None:
        assert self.plan.callback is not None
        begun, attempt = now(), entry.attempt
        try:
            with tracing.handling(delivery):
                self.plan.callback(delivery)
        except BaseException as error:  # a callback that calls sys.exit has failed, too
            if delivery.current() is not None:
                self._failures.fail(entry, error)
            if reraise and not isinstance(error, (Retry, Reject)):
                raise
        else:
            if self.plan.auto_ack and entry.attempt == attempt:
                self._acknowledge_quietly(entry)
        finally:
            self._tally.handled(entry.received.topic, now() - begun)
            if entry.state == HANDED and entry.attempt == attempt:
                self._let_go([entry])

    def _acknowledge_quietly(self, entry: Entry) -> None:
        try:
            self.acknowledge([entry])
        except MessagingError as error:
            log.warning("%s: acknowledged, but not confirmed: %s", self.plan.name, error)

    # -- handing out --------------------------------------------------------------------------------

    def _take(self, hand: Hand, most: int, deadline: Deadline) -> list[Delivery[T]]:
        while entries := self._wait(hand, most, deadline):
            hand.entries = entries
            taken: list[Delivery[T]] = []
            try:
                if not entries[0].received.suspect or self._may_start(entries[0], deadline):
                    self._open_up(entries, taken)
            except BaseException:  # Ctrl-C: nobody has seen them
                self._take_back(hand, taken)
                raise
            if len(taken) != len(entries):
                hand.entries = [entry for delivery in taken if (entry := delivery.current()) is not None]
            if taken:
                return taken
        return []

    def _wait(self, hand: Hand, most: int, deadline: Deadline) -> list[Entry]:
        """What the schedule lets go; none when the deadline comes first, or it is over."""
        hand.thread = threading.get_ident()
        while True:
            with self._lock:
                if self._error is not None:
                    raise self._error
                if self._closing or (self._draining and not len(self._schedule)):
                    break
                closed = WARD.closed_to(self)
                entries = [] if closed else self._schedule.take(now(), hand, most)
                if entries or deadline.over:
                    if self._stalled:
                        self._note_stall(False)
                    if entries:
                        return entries
                    break
                if not self._tally:
                    self._note_stall(self._full())
                    due = now() + LOOK if closed else self._schedule.next_due()
                    self._changed.wait(deadline.left() if due is None else deadline.wait(max(0.0, due - now())))
            self._tally.tell()
        self._tally.tell()
        return []

    def _take_back(self, hand: Hand, taken: Sequence[Delivery[T]]) -> None:
        """Undo a hand-out that was broken off; some of it may have been opened."""
        for delivery in taken:
            delivery.undo()
        for entry in hand.entries:
            entry.attempt += entry.state == HANDED
        self.give_back(hand)

    def _may_start(self, entry: Entry, deadline: Deadline) -> bool:
        """Whether a suspect may go to a handler: only alone, and once its start is stored."""
        received = entry.received
        if entry.grave is not None:
            return True
        if self._failures.ends_here(entry):
            self._failures.fail(entry, ProcessDied(received.starts))
            return False
        if not self._told_of_suspects:
            self._told_of_suspects = True
            words = "%s: messages from %s on were not given back by who had them; they are handled one at a time"
            log.warning(words, self.plan.name, received.position)
        if WARD.admit(self, entry, deadline) and self._mark(entry, entry.attempt + 1, deadline):
            return True
        with self._lock:
            if entry.state == HANDED:
                self._schedule.delay(entry, now())
            self._failures.wake()
        return False

    def _mark(self, entry: Entry, starts: int, deadline: Deadline) -> bool:
        """Store the start of a handler on a suspect, or take it back; false where the broker did not answer."""
        if self._consumer is not None:
            try:
                self._consumer.mark(entry.received, starts, Deadline.after(deadline.wait(MARK_TIMEOUT)))
            except MessagingError as error:
                log.debug("%s: a start could not be stored: %s", self.plan.name, error)
                return False
        return True

    def _open_up(self, entries: Sequence[Entry], taken: list[Delivery[T]]) -> None:
        """Decode what was taken; what no handler is to see is settled on the way."""
        unseen: list[Entry] = []
        for entry in entries:
            if entry.grave is not None:
                self._failures.bury(entry)
                continue
            received = entry.received
            reason = self._unseen(received)
            envelope = None if reason else self._decode(entry)
            if reason or envelope is SKIPPED:
                self.plan.meter.skipped(self._label(entry), self.plan.broker.name, reason or "variant")
                unseen.append(entry)
            elif envelope is not None:
                taken.append(Delivery(self, entry, envelope))
                entry.attempt += 1
                if entry.attempt == 1:
                    self._tally.consumed(received.topic, entry.since)
        if len(taken) > 1:
            self._tally.tell()
        if unseen:
            self._ack(unseen, None, handled=False)

    def _decode(self, entry: Entry) -> Any:
        try:
            return self.plan.decode(entry.received)
        except SerializationError as error:
            entry.attempt += 1
            self._failures.fail(entry, error.about(topic=self._label(entry)))
        return None

    def _unseen(self, received: Received) -> str | None:
        """Why no handler is to see a message, if so."""
        if received.body is None:
            return "tombstone"
        if received.topic == self._dead_letters:
            return "dead_letter"
        group = received.header("x-redrive-group")
        if group is not None and self.plan.group not in (None, group):
            return "redriven_for_another_group"
        return None

    # -- settling -----------------------------------------------------------------------------------

    def _ack(self, entries: Sequence[Entry], deadline: Deadline | None, *, handled: bool = True) -> None:
        settled = []
        with self._lock:
            for entry in entries:
                if entry.state == HANDED:
                    self._schedule.settle(entry)
                    settled.append(entry.received)
            if handled:
                self._failures.handled(len(settled))
            self._failures.wake()
        if settled and self._consumer is not None:
            self._consumer.ack(settled, deadline)

    def _acknowledge(self, entry: Entry) -> None:
        """An entry left by its dead letter, or was dropped by a broadcast."""
        if self._consumer is not None:
            self._consumer.ack([entry.received])

    def _let_go(self, entries: Sequence[Entry]) -> None:
        with self._lock:
            for entry in entries:
                if entry.state == HANDED:
                    self._schedule.let_go(entry)
            self._failures.wake()

    # -- small --------------------------------------------------------------------------------------

    def _full(self) -> bool:
        """Whether the prefetch is full of messages that wait. Under the lock."""
        full = self._schedule.waiting > 0 and len(self._schedule) >= self.plan.spec.prefetch
        return full and not self._schedule.handed()

    def _note_stall(self, stalled: bool) -> None:
        if stalled == self._stalled:
            return
        self._stalled = stalled
        self.plan.meter.stalled(self.plan.topic, self.plan.broker.name, 1 if stalled else -1)
        if stalled:
            log.warning("%s takes no more: its prefetch of %d is full of messages that wait for another attempt",
                        self.plan.name, self.plan.spec.prefetch)  # fmt: skip

    def _confirm_by(self, timeout: float | None, confirm: bool = False) -> Deadline | None:
        if not (confirm or self.plan.confirm):
            return None
        return Deadline.after(CONFIRM_TIMEOUT if timeout is None else timeout)

    def _label(self, entry: Entry) -> str:
        return self.plan.short(entry.received.topic)

    def _gone(self) -> BackendUnavailable:
        return BackendUnavailable(f"subscription {self.plan.name} is closed", code="closed", topic=self.plan.topic)
