"""A subscription from its opening to its end, and what its consumer tells in between.

The backend's thread delivers into the schedule; whoever handles messages takes from it (`handout`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from incident_messaging.backends.base import MessageConsumer
from incident_messaging.consuming.handout import HandOut
from incident_messaging.consuming.plan import Plan
from incident_messaging.consuming.ward import WARD
from incident_messaging.consuming.workers import Workers
from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import BackendUnavailable, MessagingError
from incident_messaging.record import Received

T = TypeVar("T")

log = logging.getLogger("incident_messaging")

#: Seconds that callbacks have to end where `open` is broken off just after it has started them.
INTERRUPTED_TIMEOUT = 1.0


class Intake(HandOut[T]):
    """The messages of one subscription, from the consumer to whoever handles them, and to their end.

    Guarantees: those of `Subscription`, which shows a user only what is for users, and of `HandOut`.
    """

    def __init__(self, plan: Plan, ended: Callable[[Intake[Any]], None]) -> None:
        super().__init__(plan)
        self._ended = ended
        self._closed = threading.Event()
        self._finishing = threading.Lock()  # held by whoever closes; a Ctrl-C there lets another finish
        self._workers = Workers(self, plan.name, plan.concurrency, plan.handler_timeout)
        self._left: list[str] = []
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
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    @property
    def unfinished(self) -> list[str]:
        """What a close that goes on has not finished so far, in words."""
        return list(self._left) or ([] if self.closed else [f"{self.plan.name} is still being closed"])

    def drain(self, timeout: float = 10.0) -> list[str]:
        """Take no more, let what has arrived be handled, settle, close.

        Returns:
            What could not be finished in time, in words.
        """
        self.check_usable()
        deadline = Deadline.after(timeout)
        with self._lock:
            self._draining = True
            self._changed.notify_all()
        if self._workers.mine():
            return self._close_elsewhere(partial(self.drain, timeout))
        with self._lock:
            self._changed.watch_for(lambda: not len(self._schedule) or self._over(), deadline.left())
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
        self._left = left = [f"callback still running in thread {name}" for name in self._workers.join(deadline)]
        with self._lock:
            if not self._changed.watch_for(lambda: not self._failures.burying, deadline.left()):
                left.append(f"{self._failures.burying} dead letters of {self.plan.name} not acknowledged")
        self._note_stall(False)
        self._tally.tell()
        if self._consumer is not None:
            self._take_marks_back(deadline)
            if (unfinished := self._consumer.close(deadline)) is not None:
                left.append(unfinished)
        self._closed.set()
        with self._lock:
            self._changed.notify_all()
        self._ended(self)
        return left

    def _take_marks_back(self, deadline: Deadline) -> None:
        """Whoever ends this process now, it is not the suspect that a handler has still in hand."""
        with self._lock:
            unfinished = [entry for entry in self._schedule.handed() if entry.received.suspect]
        for entry in unfinished:
            self._mark(entry, entry.attempt - 1, deadline)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it is closed; false when ``timeout`` seconds ran out first.

        Raises:
            MessagingError: It ended by itself, and this is why.
        """
        self.check_usable()
        with self._lock:
            self._changed.watch_for(self._over, Deadline.after(timeout).left())
        if self._error is not None:
            raise self._error
        return self._closed.is_set()

    def is_busy(self, besides: int) -> bool:
        """See `HandOut.is_busy`; what an iterating thread still has of a closed one went back to the group."""
        return not (self.closed and self.plan.callback is None) and super().is_busy(besides)

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
        with self._lock:
            self._closing = True
            self._changed.notify_all()

    def oldest_age(self) -> float | None:
        """Seconds since the oldest unsettled message arrived, or ``None``."""
        if self._forked:
            return None
        with self._lock:
            oldest = self._schedule.oldest()
        return None if oldest is None else max(0.0, now() - oldest.arrived)

    def next_due(self) -> float | None:
        """When the callback gets a delayed message again, on the monotonic clock."""
        if self.plan.callback is None:
            return None
        with self._lock:
            return self._schedule.next_due()

    def after_fork(self) -> None:
        """The child cannot use it: its threads and its place are the parent's."""
        self._forked = True

    # -- what the consumer tells (Sink) -----------------------------------------------------------

    def deliver(self, batch: Sequence[Received]) -> None:
        """Take a batch from the consumer."""
        with self._lock:
            if self._draining or self._closing:
                return  # close gives it back
            self._schedule.add(batch, now())
            self._changed.notify(len(batch))

    def forget(self, gone: Callable[[Received], bool]) -> None:
        """Drop what is no longer ours and in nobody's hand."""
        with self._lock:
            self._schedule.forget(gone)
            self._changed.notify_all()

    def ended(self, error: MessagingError) -> None:
        """The consumer is over by itself."""
        with self._lock:
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

    def _over(self) -> bool:
        return self._closed.is_set() or self._error is not None
