"""The futures of publishes: what ``publish_nowait`` returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, NoReturn, SupportsIndex

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
    _whole = False
    _outcome: MessagingError | Callable[[], PublishReceipt] | None = None
    _callback_thread: CallbackThread
    label: str

    def __getattr__(self, name: str) -> Any:
        """What the base's constructor makes; it is called by the first use of any of it."""
        self._make_whole()
        return super().__getattribute__(name)

    def _make_whole(self) -> None:
        self._whole = True  # first: from now on `_end` completes it
        mine = vars(self)
        if "_condition" not in mine:
            made: Future[PublishReceipt] = Future()
            made.set_running_or_notify_cancel()
            # Several threads may do this at once, and each keeps what it finds. The condition, the first that the
            # constructor makes, comes last: nobody looks at the rest without it.
            for name, value in reversed(vars(made).items()):
                mine.setdefault(name, value)
        self._complete()

    def _end(self, outcome: MessagingError | Callable[[], PublishReceipt]) -> None:
        """Keep how it ended.

        An error is not raised here: its traceback would keep the frames of the broker's thread, and the client with
        them, alive for as long as somebody keeps the future.
        """
        # Each side writes its own flag before it reads the other's, so that one of both completes it.
        self._outcome = outcome
        if self._whole:
            self._complete()

    def _complete(self) -> None:
        if self._outcome is None or super().done():
            return
        with suppress(InvalidStateError):  # another thread was first
            if isinstance(self._outcome, MessagingError):
                super().set_exception(self._outcome)
            else:
                super().set_result(self._outcome())

    def done(self) -> bool:
        """Whether it has ended."""
        if self._whole:
            self._complete()
        return self._outcome is not None

    def add_done_callback(self, fn: Callable[[Future[PublishReceipt]], object]) -> None:
        """Call ``fn`` with the future when it is done, on the callback thread."""
        self._asked = True
        self._make_whole()
        super().add_done_callback(lambda future: self._callback_thread.submit(lambda: fn(future)))

    def result(self, timeout: float | None = None) -> PublishReceipt:
        """The receipt, or the publish's error raised; ``TimeoutError`` after ``timeout`` seconds."""
        self._asked = True
        self._make_whole()
        try:
            return super().result(timeout)
        finally:
            del self  # a circle with the traceback of the error that it keeps

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The publish's error or ``None``; ``TimeoutError`` after ``timeout`` seconds."""
        self._asked = True
        self._make_whole()
        return super().exception(timeout)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """It belongs to this process, and is told once."""
        raise TypeError("the future of a publish cannot be copied or pickled; its receipt can")

    def __del__(self) -> None:
        if not self._asked and isinstance(self._outcome, MessagingError):
            log.error("publish_nowait to %s failed, and nobody asked for its outcome: %s", self.label, self._outcome)


class SingleFuture(Single, PublishFuture):
    """Nearly every ``publish_nowait``: the publication is its own future, one object for all of it."""

    def __init__(self, outlet: Outlet, message: Any, label: str, callbacks: CallbackThread) -> None:
        # Neither base's: `PublishFuture` makes its own later, and `Leg` would set `waiter`.
        self.sent, self.note = 0, None
        self.outlet, self.message, self.label, self.index = outlet, message, label, 0
        self._callback_thread = callbacks

    __repr__ = Future.__repr__

    @property
    def waiter(self) -> Waiter:  # type: ignore[override]
        """Itself; an attribute would be a circle, which only the garbage collector takes apart."""
        return self

    def finished(self, _: Sequence[Any]) -> None:
        """It has ended; whoever keeps the future keeps neither the message nor the broker's client with it."""
        self._end(self.outcome())
        del self.message, self.body, self.headers, self.outlet


class OutcomeFuture(PublishFuture):
    """A future that another object tells: a publish to two brokers, or one that a tracer looks at, or none at all."""

    def __init__(self, label: str, callbacks: CallbackThread) -> None:
        # Without the base's, which comes later.
        self.label = label
        self._callback_thread = callbacks

    def finished(self, publications: Sequence[Publication]) -> None:
        """It has ended."""
        self._end(publications[0].outcome())

    def nothing(self, receipt: PublishReceipt) -> None:
        """It was not sent, and that is as it should be: messaging is disabled."""
        self._end(lambda: receipt)
