"""The futures of publishes: what ``publish_nowait`` returns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from incident_messaging.callbacks import CallbackThread
from incident_messaging.errors import MessagingError
from incident_messaging.publishing.outlet import Outlet, Waiter
from incident_messaging.publishing.publication import Publication, PublishReceipt, Single

log = logging.getLogger("incident_messaging")


class PublishFuture(Future[PublishReceipt]):
    """The outcome of a ``publish_nowait``: running from birth, so that ``cancel`` is always false.

    It is completed on a broker's thread; its callbacks run on the callback thread, where they may
    publish. A failure that nobody asked for is logged.

    A future's own condition, lists and receipt take longer to make than all the rest of a publish, and nearly
    nobody looks at a future before the flush. So all of that is made when somebody does.
    """

    _asked = False
    _ended = False
    _whole = False
    _callback_thread: CallbackThread
    label: str

    def failure(self) -> MessagingError | None:
        """Why it was not acknowledged, once it has ended.

        It is not raised before somebody asks: the traceback would keep the frames of the broker's thread, and the
        client with them, alive for as long as somebody keeps the future.
        """
        raise NotImplementedError

    def receipt(self) -> PublishReceipt:
        """The receipt of what was acknowledged."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        """What the base's constructor makes; it is called by the first use of any of it."""
        self._make_whole()
        return super().__getattribute__(name)

    def _make_whole(self) -> None:
        # A lock of its own, made here, too; re-entrant: a signal handler may look at it in between.
        with vars(self).setdefault("_guard", threading.RLock()):
            if not self._whole:
                Future.__init__(self)
                super().set_running_or_notify_cancel()
                self._whole = True  # last: what Ctrl-C broke off is done again
        self._complete()

    def _end(self) -> None:
        # Who makes it whole at this moment writes and looks the other way round, so that one of both completes it.
        self._ended = True
        if self._whole:
            self._complete()

    def _complete(self) -> None:
        if not self._ended or super().done():
            return
        with suppress(InvalidStateError):  # both did
            error = self.failure()
            if error is not None:
                super().set_exception(error)
            else:
                super().set_result(self.receipt())

    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended and (not self._whole or super().done())

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

    def __del__(self) -> None:
        if self._ended and not self._asked and (error := self.failure()) is not None:
            log.error("publish_nowait to %s failed, and nobody asked for its outcome: %s", self.label, error)


class SingleFuture(Single, PublishFuture):
    """Nearly every ``publish_nowait``: the publication is its own future, one object for all of it."""

    def __init__(self, outlet: Outlet, message: Any, label: str, callbacks: CallbackThread) -> None:
        # Without the bases': see __getattr__, and `waiter`.
        self.sent, self.note = 0, None
        self.outlet, self.message, self.label = outlet, message, label
        self._callback_thread = callbacks

    __repr__ = Future.__repr__

    @property
    def waiter(self) -> Waiter:  # type: ignore[override]
        """Itself; an attribute would be a circle, which only the garbage collector takes apart."""
        return self

    def finished(self, _: Sequence[Any]) -> None:
        """It has ended; whoever keeps the future keeps no message with it."""
        self.message, self.body = None, b""
        self._end()


class OutcomeFuture(PublishFuture):
    """A future that another object tells: a publish to two brokers, or one that a tracer looks at, or none at all."""

    _error: MessagingError | None = None
    _receipt: Callable[[], PublishReceipt]

    def __init__(self, label: str, callbacks: CallbackThread) -> None:
        # Without the base's: see __getattr__.
        self.label = label
        self._callback_thread = callbacks

    def failure(self) -> MessagingError | None:
        """See `PublishFuture.failure`."""
        return self._error

    def receipt(self) -> PublishReceipt:
        """See `PublishFuture.receipt`."""
        return self._receipt()

    def finished(self, publications: Sequence[Publication]) -> None:
        """It has ended."""
        outcome = publications[0].outcome()
        if isinstance(outcome, MessagingError):
            self._error = outcome
        else:
            self._receipt = outcome
        self._end()

    def nothing(self, receipt: PublishReceipt) -> None:
        """It was not sent, and that is as it should be: messaging is disabled."""
        self._receipt = lambda: receipt
        self._end()
