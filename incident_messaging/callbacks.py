"""The thread on which the callbacks of futures run, and small things happen after a delay."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import MessagingError

if TYPE_CHECKING:
    from incident_messaging.publishing.publication import Publication, PublishReceipt

log = logging.getLogger("incident_messaging")

#: Seconds that an idle thread has to end, also where a call's time has run out.
LAST_WORDS = 0.1


class CallbackThread:
    """Runs callables one after another, on one daemon thread that starts with the first.

    A service has two: one for the users' callbacks, which may publish and wait, and one for what
    the SDK itself does after a delay, so that a slow callback holds none of that up.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._wake = threading.Condition()
        self._now: list[Callable[[], Any]] = []
        self._due: list[tuple[float, int, Callable[[], Any]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._done = threading.Event()

    def submit(self, run: Callable[[], Any], delay: float = 0.0) -> None:
        """Run it after ``delay`` seconds; what it raises is logged. Dropped after `close`."""
        with self._wake:
            if self._closing:
                return
            if delay > 0:
                heapq.heappush(self._due, (now() + delay, next(self._order), run))
            else:
                self._now.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self, deadline: Deadline) -> bool:
        """Run what is due now, drop what is delayed, end. False if a callback would not end."""
        with self._wake:
            self._closing = True
            running = self._thread is not None
            self._wake.notify()
        if not running or threading.current_thread() is self._thread:
            return True
        return self._done.wait(max(LAST_WORDS, deadline.left() or 0.0))

    def _run(self) -> None:
        try:
            # All that is due in one go: one by one they are slower than those who publish, and pile up.
            while batch := self._next():
                for run in batch:
                    try:
                        run()
                    except BaseException:
                        log.exception("a callback failed")
        finally:
            self._done.set()

    def _next(self) -> Sequence[Callable[[], Any]]:
        with self._wake:
            while True:
                batch, self._now = self._now, []
                while self._due and self._due[0][0] <= now():
                    batch.append(heapq.heappop(self._due)[2])
                if batch or self._closing:
                    return batch
                self._wake.wait(self._due[0][0] - now() if self._due else None)


class PublishFuture(Future["PublishReceipt"]):
    """The outcome of a ``publish_nowait``: running from birth, so that ``cancel`` is always false.

    It is completed on a broker's thread; its callbacks run on the callback thread, where they may
    publish. A failure that nobody asked for is logged.

    A future's own condition, lists and receipt take longer to make than all the rest of a publish, and nearly
    nobody looks at a future before the flush. So all of that is made when somebody does.
    """

    def __init__(self, callbacks: CallbackThread, topic: str) -> None:
        # Without the base's: see __getattr__.
        self._callback_thread = callbacks
        self._topic = topic
        self._asked = False
        self._guard = threading.RLock()  # re-entrant: a signal handler may look at it in between
        self._outcome: MessagingError | Callable[[], PublishReceipt] | None = None
        self._whole = False

    def __getattr__(self, name: str) -> Any:
        """What the base's constructor makes; it is called by the first use of any of it."""
        self._make_whole()
        return super().__getattribute__(name)

    def _make_whole(self) -> None:
        with self._guard:
            if not self._whole:
                super().__init__()
                super().set_running_or_notify_cancel()
                self._whole = True  # last: what Ctrl-C broke off is done again
                self._complete()

    def finished(self, publications: Sequence[Publication]) -> None:
        """It has ended."""
        # An error is not raised here: its traceback would keep the frames of the broker's thread, and the client with
        # them, alive for as long as somebody keeps the future.
        outcome = publications[0].outcome()
        with self._guard:
            self._outcome = outcome
            whole = self._whole
        if whole:
            self._complete()

    def nothing(self, receipt: PublishReceipt) -> None:
        """It was not sent, and that is as it should be: messaging is disabled."""
        self._outcome = lambda: receipt

    def done(self) -> bool:
        """Whether it has ended."""
        return self._outcome is not None and (not self._whole or super().done())

    def add_done_callback(self, fn: Callable[[Future[PublishReceipt]], object]) -> None:
        """Call ``fn`` with the future when it is done, on the callback thread."""
        self._asked = True
        self._make_whole()
        super().add_done_callback(lambda future: self._callback_thread.submit(lambda: fn(future)))

    def result(self, timeout: float | None = None) -> PublishReceipt:
        """The receipt, or the publish's error raised; ``TimeoutError`` after ``timeout`` seconds."""
        self._asked = True
        self._make_whole()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The publish's error or ``None``; ``TimeoutError`` after ``timeout`` seconds."""
        self._asked = True
        self._make_whole()
        return super().exception(timeout)

    def _complete(self) -> None:
        if isinstance(self._outcome, MessagingError):
            super().set_exception(self._outcome)
        elif self._outcome is not None:
            super().set_result(self._outcome())

    def __del__(self) -> None:
        if not self._asked and isinstance(self._outcome, MessagingError):
            log.error("publish_nowait to %s failed, and nobody asked for its outcome: %s", self._topic, self._outcome)
