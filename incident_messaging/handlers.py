"""The handlers that an application declares, and the wait for the signal that ends them."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import attrs

from incident_messaging.consuming.options import HandlerOptions
from incident_messaging.consuming.subscription import Subscription
from incident_messaging.errors import ConfigurationError, MessagingError

#: Seconds between two looks at the subscriptions.
_LOOK_EVERY = 0.2


@attrs.frozen
class Declared:
    """A function, and what it wants to be called with."""

    topic: str
    message_type: Any
    function: Callable[..., object]
    options: HandlerOptions

    def with_concurrency(self, concurrency: int | None) -> dict[str, Any]:
        """The options for ``subscribe``; ``concurrency`` counts where none was declared."""
        options: dict[str, Any] = {"callback": self.function, **self.options}
        if concurrency is not None:
            options.setdefault("concurrency", concurrency)
        return options


class Handlers:
    """The declared handlers of one service: those that wait, and the subscriptions of those that were started."""

    def __init__(self) -> None:
        self._waiting: deque[Declared] = deque()
        self._started: list[Subscription[Any]] = []

    def __len__(self) -> int:
        """How many are declared and not subscribed."""
        return len(self._waiting)

    def declare(self, declared: Declared) -> None:
        """Take one in."""
        self._waiting.append(declared)

    def start(
        self, subscribe: Callable[..., Subscription[Any]], concurrency: int | None = None
    ) -> list[Subscription[Any]]:
        """Subscribe those that wait, each once; the first that fails waits on, with those behind it."""
        new = []
        while self._waiting:
            declared = self._waiting[0]
            new.append(subscribe(declared.topic, declared.message_type, **declared.with_concurrency(concurrency)))
            self._started.append(new[-1])
            self._waiting.popleft()
        return new

    def error(self) -> MessagingError | None:
        """Why one of them ended by itself, if one did."""
        return next((one.error for one in self._started if one.error is not None), None)

    def wait(self, stop: Stop, start: Callable[[], object]) -> None:
        """Start, and return at a signal, or when a subscription has ended by itself."""
        with suppress(_Stopped), stop.at_once():
            start()
        while not stop.wait(_LOOK_EVERY) and self.error() is None:
            pass


class _Stopped(BaseException):
    """A signal came while the handlers were being started: that may take long where a broker is away."""


class Stop(threading.Event):
    """An event that a signal handler may set.

    A plain one may not: its lock is not re-entrant, and the handler runs on the thread that waits, which has that lock
    at every end of a wait. Here nothing is done that a signal could come into the middle of.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_set = False
        self._closed = threading.Lock()
        self._closed.acquire()
        self._raises = False

    def is_set(self) -> bool:
        """Whether it is."""
        return self._is_set

    def set(self) -> None:
        """Set it, and let all go who wait."""
        self._is_set = True
        with suppress(RuntimeError):  # it is open already
            self._closed.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was set within so many seconds."""
        if not self._is_set and self._closed.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            self.set()  # for whoever waits, too
        return self._is_set

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In the block a signal raises `_Stopped`."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def handle(self, *_: object) -> None:
        """Take a signal."""
        self.set()
        if self._raises:
            self._raises = False
            raise _Stopped


@contextmanager
def signalled(signals: Sequence[signal.Signals]) -> Iterator[Stop]:
    """In the block the signals only set the event; what they did before comes back behind it.

    Raises:
        ConfigurationError: Not called on the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError("run_until_signal is for the main thread: no other receives signals")
    stop = Stop()
    before = {number: signal.signal(number, stop.handle) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
