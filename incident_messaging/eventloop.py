"""The border between threads and asyncio: one event loop on a thread of its own.

This is the only module that imports both. User threads hand items over collected (`Mailbox`: one
wake-up of the loop for a burst, not one for each item) or wait for a coroutine (`EventLoop.run`).
uvloop is used when it is installed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import encodings.idna  # noqa: F401  # else imported by the first look-up of a name, where a fork may come in between
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, Timeout

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Seconds that tasks get to end after their cancellation, when the loop ends.
_LAST_WORDS = 0.2
#: Turns of the loop until a transport that was aborted is closed.
_LAST_TURNS = 5


class EventLoop:
    """An asyncio loop on one daemon thread, started by the first use.

    Guarantees: whatever waits for the loop ends when the loop does, however it ends; a blocking call
    made on the loop's own thread raises at once instead of waiting for itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        # Own event: an interrupted Thread.join() marks a running thread as ended (before 3.13).
        self._ended = threading.Event()
        self._mailboxes: list[Mailbox[Any]] = []
        self._calls: Mailbox[_Call[Any]] = self.mailbox(_start_calls, _refuse_calls)

    def mailbox(self, handle: Callable[[list[T]], None], lost: Callable[[list[T]], None]) -> Mailbox[T]:
        """A way for any thread to hand items to ``handle``, which is called on the loop with batches.

        ``lost`` gets those that the loop did not live to see, on any thread.
        """
        mailbox = Mailbox(self, handle, lost)
        self._mailboxes.append(mailbox)
        return mailbox

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], deadline: Deadline, what: str) -> T:
        """Run a coroutine on the loop and return its result; ``what`` names it in errors.

        However the call ends early, the coroutine is cancelled.

        Raises:
            Timeout: Not done by the deadline.
            BackendUnavailable: ``loop_thread``: called on the loop's thread; ``closed``: the loop is over.
        """
        self.refuse_own_thread(what)
        call = _Call(work, what)
        self._calls.put(call)
        try:
            return call.future.result(deadline.left())
        except concurrent.futures.CancelledError as exc:
            raise BackendUnavailable(f"{what}: closed meanwhile", code="closed") from exc
        except TimeoutError as exc:
            # On 3.11 and later the same class comes out of the coroutine: ask whose it is.
            if call.future.done():
                return call.future.result()
            self._cancel(call)
            raise Timeout(f"{what} took longer than allowed") from exc
        except BaseException:
            self._cancel(call)
            raise

    def refuse_own_thread(self, what: str) -> None:
        """Raise `BackendUnavailable` (``loop_thread``) when called on the loop's thread."""
        if self._thread is not None and self._thread.ident == threading.get_ident():
            raise BackendUnavailable(
                f"{what} would wait for its own thread ({self.name}): call it from another one",
                code="loop_thread",
            )

    @property
    def started(self) -> bool:
        """Whether the thread was ever started."""
        return self._thread is not None

    def stop(self, deadline: Deadline) -> bool:
        """End the loop and its thread for good; returns whether it ended in time. Idempotent."""
        with self._lock:
            self._stopped = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            self._spill()
            return True
        with suppress(RuntimeError):  # already closed
            loop.call_soon_threadsafe(loop.stop)
        if not self._ended.wait(deadline.left()):
            _log.warning("thread %s did not end in time and is left behind", self.name)
            return False
        thread.join(0.2)  # a few instructions after the event; so that nobody counts it any more
        return True

    def call(self, callback: Callable[[], None]) -> None:
        """Have a callback called on the loop soon, from any thread.

        Raises:
            RuntimeError: The loop is over.
        """
        loop = self._loop or self._start()
        loop.call_soon_threadsafe(callback)

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                if self._stopped:
                    raise RuntimeError(f"{self.name} is over")
                loop = new_event_loop()
                self._thread = threading.Thread(target=self._live, args=(loop,), name=self.name, daemon=True)
                self._thread.start()
                self._loop = loop
            return self._loop

    def _live(self, loop: asyncio.AbstractEventLoop) -> None:
        resolver = ThreadPoolExecutor(max_workers=2, thread_name_prefix=f"{self.name}-resolver")
        loop.set_default_executor(resolver)
        loop.set_exception_handler(_note)
        try:
            loop.run_forever()
        except BaseException:
            _log.exception("thread %s died", self.name)
        finally:
            with suppress(Exception):
                loop.run_until_complete(_cancel_tasks())
            resolver.shutdown(wait=False, cancel_futures=True)
            with suppress(Exception):
                loop.close()
            self._spill()
            self._ended.set()

    def _spill(self) -> None:
        for mailbox in self._mailboxes:
            mailbox.spill()

    def _cancel(self, call: _Call[Any]) -> None:
        with suppress(RuntimeError):
            self.call(call.cancel)


class Mailbox(Generic[T]):
    """A queue into the loop: only the first item of a burst wakes it, all are handed over together."""

    def __init__(
        self,
        loop: EventLoop,
        handle: Callable[[list[T]], None],
        lost: Callable[[list[T]], None],
    ) -> None:
        self._loop = loop
        self._handle = handle
        self._lost = lost
        self._items: deque[T] = deque()
        self._awake = False

    def put(self, item: T) -> None:
        """Hand an item over; never blocks, keeps the order of each thread."""
        self._items.append(item)
        self._wake()

    def put_all(self, items: Sequence[T]) -> None:
        """Hand several over, with none of another thread between them."""
        self._items.extend(items)
        self._wake()

    def _wake(self) -> None:
        if self._awake:
            return
        self._awake = True
        try:
            self._loop.call(self._drain)
        except RuntimeError:
            self.spill()
        except BaseException:  # Ctrl-C: whoever comes next has to wake the loop, and takes this along
            self._awake = False
            raise

    def _drain(self) -> None:
        items = self._take()
        if items:
            try:
                self._handle(items)
            except Exception:
                _log.exception("the loop could not handle what was handed over")

    def spill(self) -> None:
        """Hand what is left to ``lost``: the loop is over."""
        items = self._take()
        if items:
            self._lost(items)

    def _take(self) -> list[T]:
        # The flag first: an item put after it wakes the loop anew, one put before it is taken here.
        self._awake = False
        # More may come meanwhile, and wake the loop again.
        items: list[T] = []
        with suppress(IndexError):  # the loop's end may take them on another thread
            for _ in range(len(self._items)):
                items.append(self._items.popleft())
        return items


class _Call(Generic[T]):
    """One `EventLoop.run`."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> None:
        self.work = work
        self.what = what
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.task: asyncio.Task[T] | None = None
        self.unwanted = False

    def start(self) -> None:
        if self.unwanted:
            return
        self.task = asyncio.get_running_loop().create_task(self.work())
        self.task.add_done_callback(partial(_copy, self.future))

    def cancel(self) -> None:
        self.unwanted = True
        if self.task is not None:
            self.task.cancel()


def _copy(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        future.set_exception(concurrent.futures.CancelledError())
        return
    error = task.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _start_calls(calls: list[_Call[Any]]) -> None:
    for call in calls:
        call.start()


def _refuse_calls(calls: list[_Call[Any]]) -> None:
    for call in calls:
        call.future.set_exception(BackendUnavailable(f"{call.what}: closed", code="closed"))


def _note(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody caught goes to our log, not to asyncio's, which would write to stderr."""
    _log.error("%s", context.get("message"), exc_info=context.get("exception"))


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        # Bounded: nats-py swallows cancellations.
        await asyncio.wait(tasks, timeout=_LAST_WORDS)
    for _ in range(_LAST_TURNS):
        await asyncio.sleep(0)
