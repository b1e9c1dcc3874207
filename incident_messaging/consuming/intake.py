"""What a subscription does inside: receive, decode, hand out, settle. Workers and iterators share one way.

The backend's thread delivers into the schedule; whoever handles messages takes from it. What
follows a failure is decided here, under the lock, and acted on outside it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from incident_messaging import topics, tracing
from incident_messaging.backends.base import MessageConsumer
from incident_messaging.codec import SKIPPED
from incident_messaging.consuming.delivery import Delivery, Reject, Retry
from incident_messaging.consuming.failures import Failures
from incident_messaging.consuming.plan import Plan
from incident_messaging.consuming.schedule import HANDED, Entry, Hand, Schedule
from incident_messaging.consuming.ward import LOOK, WARD, ProcessDied
from incident_messaging.consuming.workers import Workers
from incident_messaging.context import Handling
from incident_messaging.deadline import Deadline, now
from incident_messaging.envelope import MessageEnvelope
from incident_messaging.errors import (
    BackendUnavailable,
    ConfigurationError,
    MessagingError,
    SerializationError,
)
from incident_messaging.record import Received

T = TypeVar("T")

log = logging.getLogger("incident_messaging")

#: Seconds that a confirmation may take where no other time is said.
CONFIRM_TIMEOUT = 5.0
#: Seconds that callbacks have to end where `open` is broken off just after it has started them.
INTERRUPTED_TIMEOUT = 1.0
#: Seconds that one try to store a mark may take; in between is seen whether the subscription is over.
MARK_TIMEOUT = 1.0


class Intake(Generic[T]):
    """The messages of one subscription, from the consumer to whoever handles them, and to their end.

    Guarantees: those of `Subscription`, which shows a user only what is for users. Every method may
    be called from any thread; the lock is held for a few assignments, never over a call outside.
    """

    def __init__(self, plan: Plan, ended: Callable[[Intake[Any]], None]) -> None:
        self.plan = plan
        self._schedule = Schedule()
        self._changed = threading.Condition()  # re-entrant: a finalizer may come in between
        self._consumer: MessageConsumer | None = None
        self._ended = ended
        self._error: MessagingError | None = None
        self._forked = False
        self._draining = False
        self._closing = False
        self._closed = threading.Event()
        self._finishing = threading.Lock()  # held by whoever closes; a Ctrl-C there lets another finish
        self._stalled = False
        self._failures = Failures(plan, self._schedule, self._changed, acknowledge=self._acknowledge, end=self.ended)
        self._workers = Workers(self, plan.name, plan.concurrency, plan.handler_timeout)
        self._told_of_suspects = False
        WARD.enroll(self)

    # -- what the subscription asks ---------------------------------------------------------------

    @property
    def error(self) -> MessagingError | None:
        """Why it ended by itself, if it did."""
        return self._error

    @property
    def mine(self) -> bool:
        """Whether the calling thread is one of its workers."""
        return self._workers.mine()

    @property
    def in_hand(self) -> bool:
        """Whether a delivery was handed out and is not settled."""
        with self._changed:
            return bool(self._schedule.handed())

    @property
    def ending(self) -> bool:
        """Whether it hands out nothing more."""
        return self._closing or self._error is not None

    def is_busy(self, besides: int) -> bool:
        """Whether a thread other than this one has a delivery in its hand."""
        with self._changed:
            return any(entry.hand is not None and entry.hand.thread != besides for entry in self._schedule.handed())

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    def hand_out(self, hand: Hand, most: int, deadline: Deadline) -> list[Delivery[T]]:
        """Hand an iterating thread at most so many; none when the deadline comes first.

        Raises:
            MessagingError: The subscription ended by itself, and this is why.
            BackendUnavailable: It is closed, or was inherited over a fork.
            ConfigurationError: It has a callback.
        """
        self.check_usable()
        if self.plan.callback is not None:
            raise ConfigurationError(f"subscription {self.plan.name} has a callback: it cannot be iterated too")
        taken = self._take(hand, most, deadline)
        if not taken and self._closing and not self._draining:
            raise self._gone()
        return [delivery for _, delivery in taken]

    def check_open(self) -> None:
        """Raise what a closed subscription, or one that ended by itself, says to who would iterate it."""
        if self._closing:
            raise self._error or self._gone()

    def move_on(self, hand: Hand) -> None:
        """A thread asks for more: what it had is acknowledged (``auto_ack``), or only let go."""
        entries, hand.entries = hand.entries, []
        if entries and self.plan.auto_ack:
            self.acknowledge(entries)
        elif entries:
            self._let_go(entries)

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """A thread has handled these."""
        self._ack(entries, self._confirm_by(None))

    def refuse(self, entries: Sequence[Entry], delay: float | None) -> None:
        """A thread has failed with these."""
        for entry in entries:
            self._failures.fail(entry, Retry(delay))

    def give_back(self, hand: Hand) -> None:
        """What a thread had is handed out again as if it never had been."""
        entries, hand.entries = hand.entries, []
        if self._forked:
            return
        with self._changed:
            for entry in entries:
                if entry.state == HANDED:
                    entry.attempt -= 1
                    self._schedule.delay(entry, now())
            self._failures.wake()

    def drain(self, timeout: float = 10.0) -> list[str]:
        """Take no more, let what has arrived be handled, settle, close.

        Returns:
            What could not be finished in time, in words.
        """
        self.check_usable()
        deadline = Deadline.after(timeout)
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        if self._workers.mine():
            return self._close_elsewhere(partial(self.drain, timeout))
        with self._changed:
            self._changed.wait_for(lambda: not len(self._schedule) or self._over(), deadline.left())
        return self.close(deadline.left() or 0.0)

    def close(self, timeout: float = 10.0) -> list[str]:
        """Hand out nothing more, let running callbacks end, settle, give back the rest. Idempotent.

        Called by one of its own callbacks it returns at once, and the rest follows when that ends.

        Returns:
            What could not be finished in time, in words.
        """
        if self._forked:
            return []
        deadline = Deadline.after(timeout)
        self.stop()
        if self._workers.mine():
            return self._close_elsewhere(partial(self.close, timeout))
        if not self._finishing.acquire(timeout=deadline.left() or 0.0):
            return [f"{self.plan.name} is being closed by another thread"]
        try:
            return [] if self._closed.is_set() else self._finish(deadline)
        finally:
            self._finishing.release()

    def _close_elsewhere(self, close: Callable[[], object]) -> list[str]:
        """A callback cannot wait for its own end."""
        threading.Thread(target=close, name=f"incident-messaging-close-{self.plan.name}", daemon=True).start()
        return []

    def _finish(self, deadline: Deadline) -> list[str]:
        left = [f"callback still running in thread {name}" for name in self._workers.join(deadline)]
        with self._changed:
            if not self._changed.wait_for(lambda: not self._failures.burying, deadline.left()):
                left.append(f"{self._failures.burying} dead letters of {self.plan.name} not acknowledged")
        self._note_stall(False)
        if self._consumer is not None:
            self._take_marks_back(deadline)
            if (unfinished := self._consumer.close(deadline)) is not None:
                left.append(unfinished)
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._ended(self)
        return left

    def _take_marks_back(self, deadline: Deadline) -> None:
        """Whoever ends this process now, it is not the suspect that a handler has still in hand."""
        with self._changed:
            unfinished = [entry for entry in self._schedule.handed() if entry.received.suspect]
        for entry in unfinished:
            self._mark(entry, entry.attempt - 1, deadline)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it is closed; false when ``timeout`` seconds ran out first.

        Raises:
            MessagingError: It ended by itself, and this is why.
        """
        self.check_usable()
        with self._changed:
            self._changed.wait_for(self._over, Deadline.after(timeout).left())
        if self._error is not None:
            raise self._error
        return self._closed.is_set()

    # -- what the service and a delivery ask ------------------------------------------------------

    def open(self, consumer: MessageConsumer, deadline: Deadline) -> None:
        """Open the place on the broker, then start the workers; a place that fails is left again."""
        self._consumer = consumer
        try:
            consumer.open(deadline)
            if self.plan.callback is not None and self.plan.threads:
                self._workers.start()
        except BaseException:
            self.stop()
            self._workers.join(Deadline.after(INTERRUPTED_TIMEOUT))  # there are some only after a Ctrl-C
            consumer.close(Deadline.after(0.1))  # the caller's time may be over
            raise

    def stop(self) -> None:
        """Hand out nothing more; `close` does the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def oldest_age(self) -> float | None:
        """Seconds since the oldest unsettled message arrived, or ``None``."""
        if self._forked:
            return None
        with self._changed:
            oldest = self._schedule.oldest()
        return None if oldest is None else max(0.0, now() - oldest.arrived)

    def next_due(self) -> float | None:
        """When the callback gets a delayed message again, on the monotonic clock."""
        if self.plan.callback is None:
            return None
        with self._changed:
            return self._schedule.next_due()

    def after_fork(self) -> None:
        """The child cannot use it: its threads and its place are the parent's."""
        self._forked = True

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

    # -- what the consumer tells (Sink) -----------------------------------------------------------

    def deliver(self, batch: Sequence[Received]) -> None:
        """Take a batch from the consumer."""
        with self._changed:
            if self._draining or self._closing:
                return  # close gives it back
            self._schedule.add(batch, now())
            self._changed.notify(len(batch))

    def forget(self, gone: Callable[[Received], bool]) -> None:
        """Drop what is no longer ours and in nobody's hand."""
        with self._changed:
            self._schedule.forget(gone)
            self._changed.notify_all()

    def ended(self, error: MessagingError) -> None:
        """The consumer is over by itself."""
        with self._changed:
            if self._error is not None or self._closing:
                return
            self._error = error.about(topic=self.plan.topic)
            self._changed.notify_all()
        self.plan.meter.consume_failed(self.plan.topic, self.plan.broker.name, type(error).__name__)
        log.error("subscription %s ended: %s", self.plan.name, error)
        # The caller is the backend's own thread, which must not wait; what is held goes back now.
        self._close_elsewhere(self.close)

    def broken(self, error: BaseException) -> None:
        """A worker died: rather an end that is seen than a subscription that stands still."""
        log.critical("a worker of %s died", self.plan.name, exc_info=error)
        self.ended(BackendUnavailable(f"a worker of {self.plan.name} died: {type(error).__name__}", code="down"))

    # -- handing out ------------------------------------------------------------------------------

    def step(self, hand: Hand, deadline: Deadline, *, reraise: bool = False) -> bool:
        """Let the callback handle one message; false if there was none by the deadline, or it is over.

        With ``reraise`` what the callback raised is raised again, after it was acted on.
        """
        if self.plan.callback is None:  # its messages are for whoever iterates
            return False
        taken = self._take(hand, 1, deadline)
        for entry, delivery in taken:
            self._handle(entry, delivery, reraise=reraise)
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

    def _handle(self, entry: Entry, delivery: Delivery[T], *, reraise: bool) -> None:
        with Handling(delivery):
            self._call(entry, delivery, reraise=reraise)

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
            self.plan.meter.handled(delivery.topic, self.plan.broker.name, now() - begun)
            if entry.attempt == attempt:
                self._let_go([entry])

    def _acknowledge_quietly(self, entry: Entry) -> None:
        try:
            self.acknowledge([entry])
        except MessagingError as error:
            log.warning("%s: acknowledged, but not confirmed: %s", self.plan.name, error)

    def _take(self, hand: Hand, most: int, deadline: Deadline) -> list[tuple[Entry, Delivery[T]]]:
        while True:
            entries = self._wait(hand, most, deadline)
            if not entries:
                return []
            hand.entries = entries
            attempts = [entry.attempt for entry in entries]
            try:
                taken = self._open_up(entries) if self._may_start(entries[0], deadline) else []
            except BaseException:  # Ctrl-C: nobody has seen them
                for entry, attempt in zip(entries, attempts, strict=True):
                    entry.attempt = attempt + 1
                self.give_back(hand)
                raise
            hand.entries = [entry for entry, _ in taken]
            if taken:
                return taken

    def _may_start(self, entry: Entry, deadline: Deadline) -> bool:
        """Whether what was taken may go to a handler: a suspect only alone, and once its start is stored."""
        received = entry.received
        if not received.suspect or entry.grave is not None:
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
        with self._changed:
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

    def _wait(self, hand: Hand, most: int, deadline: Deadline) -> list[Entry]:
        hand.thread = threading.get_ident()
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._closing or (self._draining and not len(self._schedule)):
                    return []
                closed = WARD.closed_to(self)
                entries = [] if closed else self._schedule.take(now(), hand, most)
                if entries or deadline.over:
                    self._note_stall(False)
                    return entries
                self._note_stall(self._full())
                due = now() + LOOK if closed else self._schedule.next_due()
                self._changed.wait(deadline.left() if due is None else deadline.wait(max(0.0, due - now())))

    def _open_up(self, entries: list[Entry]) -> list[tuple[Entry, Delivery[T]]]:
        """Decode what was taken; what no handler is to see is settled on the way."""
        taken: list[tuple[Entry, Delivery[T]]] = []
        unseen: list[Entry] = []
        for entry in entries:
            if entry.grave is not None:
                self._failures.bury(entry)
                continue
            reason = self._unseen(entry.received)
            envelope = None if reason else self._decode(entry)
            if reason or envelope is SKIPPED:
                self.plan.meter.skipped(self._label(entry), self.plan.broker.name, reason or "variant")
                unseen.append(entry)
            elif envelope is not None:
                taken.append((entry, self._delivery(entry, envelope)))
        if unseen:
            self._ack(unseen, None)
        return taken

    def _decode(self, entry: Entry) -> Any:
        try:
            return self.plan.decode(entry.received)
        except SerializationError as error:
            entry.attempt += 1
            self._failures.fail(entry, error.about(topic=self._label(entry)))
        return None

    def _delivery(self, entry: Entry, envelope: MessageEnvelope[T]) -> Delivery[T]:
        entry.attempt += 1
        if entry.attempt == 1:
            self.plan.meter.consumed(self._label(entry), self.plan.broker.name)
        return Delivery(self, entry, envelope)

    def _unseen(self, received: Received) -> str | None:
        """Why no handler is to see a message, if so."""
        if received.body is None:
            return "tombstone"
        spec = self.plan.spec
        if received.topic == self.plan.dlq_topic and topics.is_pattern(spec.topic):
            return "dead_letter"
        group = received.headers.get("x-redrive-group")
        if group is not None and spec.group is not None and group != spec.group:
            return "redriven_for_another_group"
        return None

    # -- settling ---------------------------------------------------------------------------------

    def _ack(self, entries: Sequence[Entry], deadline: Deadline | None) -> None:
        with self._changed:
            mine = [entry for entry in entries if entry.state == HANDED]
            for entry in mine:
                self._schedule.settle(entry)
            self._failures.handled(mine)
            self._failures.wake()
        if mine and self._consumer is not None:
            self._consumer.ack([entry.received for entry in mine], deadline)

    def _acknowledge(self, entry: Entry) -> None:
        """An entry left by its dead letter, or was dropped by a broadcast."""
        if self._consumer is not None:
            self._consumer.ack([entry.received])

    def _let_go(self, entries: Sequence[Entry]) -> None:
        with self._changed:
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

    def _over(self) -> bool:
        return self._closed.is_set() or self._error is not None

    def _gone(self) -> BackendUnavailable:
        return BackendUnavailable(f"subscription {self.plan.name} is closed", code="closed", topic=self.plan.topic)

    def check_usable(self) -> None:
        """Raise where it was inherited over a fork."""
        if self._forked:
            raise BackendUnavailable(
                f"subscription {self.plan.name} was inherited over a fork; subscribe again in this process",
                code="forked",
                topic=self.plan.topic,
            )
