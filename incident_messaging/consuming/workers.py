"""The threads that call a subscription's callback."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from incident_messaging.consuming.schedule import Hand
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError

log = logging.getLogger("incident_messaging")

_FOREVER = Deadline(None)
#: Seconds that a worker without a message has to end, also where no time is left.
_WAKING = 0.1


class Work(Protocol):
    """What there is to do: an `Intake`."""

    def step(self, hand: Hand, deadline: Deadline) -> bool:
        """Handle one message; false when there are no more."""

    def overdue(self, hand: Hand, thread: str) -> bool:
        """Whether the hand's callback has run out of time."""

    def broken(self, error: BaseException) -> None:
        """A worker died of a fault of the SDK's own."""


class _Worker:
    """One thread and its hand; ``left`` when its callback ran out of time and another took its place."""

    def __init__(self, workers: Workers, name: str) -> None:
        self.hand = Hand()
        self.left = False
        # An interrupted Thread.join marks a running thread as dead on 3.9-3.12: an own event does not.
        self.done = threading.Event()
        self.thread = threading.Thread(target=workers.run, args=(self,), name=name, daemon=True)


class Workers:
    """As many threads as the subscription's ``concurrency``, and one that watches their time."""

    def __init__(self, work: Work, name: str, concurrency: int, handler_timeout: float | None) -> None:
        self._work = work
        self._name = name
        self._concurrency = concurrency
        self._handler_timeout = handler_timeout
        self._workers: list[_Worker] = []
        self._stop = threading.Event()
        self._started = 0

    def start(self) -> None:
        """Start them all."""
        for _ in range(self._concurrency):
            self._add()
        if self._handler_timeout is not None:
            name = f"incident-messaging-worker-{self._name}-watch"
            threading.Thread(target=self._watch, args=(self._handler_timeout,), name=name, daemon=True).start()

    def join(self, deadline: Deadline) -> list[str]:
        """Wait for their end (but not for the calling thread's own); the names of those still running."""
        self._stop.set()
        running = []
        for worker in self._workers:
            if worker.thread is threading.current_thread():
                continue
            idle = not worker.hand.entries  # it only has to wake up
            if not worker.done.wait(_WAKING if idle and deadline.over else deadline.left()) and worker.hand.entries:
                log.error("the callback in thread %s has not ended in time", worker.thread.name)
                running.append(worker.thread.name)
        return running

    def mine(self) -> bool:
        """Whether the calling thread is one of them."""
        return any(worker.thread is threading.current_thread() for worker in self._workers)

    def run(self, worker: _Worker) -> None:
        """What a worker does: one message after the other, until the subscription is over."""
        try:
            while not worker.left and self._work.step(worker.hand, _FOREVER):
                pass
        except MessagingError:
            pass  # the subscription ended by itself, and has logged why
        except BaseException as error:
            self._work.broken(error)
        finally:
            worker.done.set()

    def _add(self) -> None:
        name = f"incident-messaging-worker-{self._name}-{self._started}"
        self._started += 1
        worker = _Worker(self, name)
        self._workers.append(worker)
        worker.thread.start()

    def _watch(self, handler_timeout: float) -> None:
        while not self._stop.wait(min(handler_timeout / 4, 0.25)):
            for worker in list(self._workers):
                if not worker.left and self._work.overdue(worker.hand, worker.thread.name):
                    worker.left = True
                    self._add()
