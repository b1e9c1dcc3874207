"""Publishers and handlers that note what they do."""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

from history import History, name_of
from waiting import until

from incident_messaging import BackendUnavailable, Delivery, MessagingError, MessagingService, Timeout


class Load(ABC):
    """Threads that publish until the block is left, each its own keys; what ended one of them fails the test."""

    def __init__(self, service: MessagingService, history: History, threads: int) -> None:
        self._service = service
        self._history = history
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name="test-publisher") for lane in range(threads)
        ]
        self.died: list[BaseException] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60.0)
        assert not [thread for thread in self._threads if thread.is_alive()], "a publisher hangs"
        assert not self.died, self.died

    def _run(self, lane: int) -> None:
        try:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                self._one(lane, number)
        except BaseException as error:
            self.died.append(error)

    @abstractmethod
    def _one(self, lane: int, number: int) -> None:
        """Publish the next message of a thread."""


class Publishers(Load):
    """Publish in order and wait, and repeat what failed until it is acknowledged.

    A repetition goes under the same id (``error.envelope``); where it is not known whether the first one was
    stored, Kafka may have it twice, so ``repeat_unknown`` says whether to.
    """

    def __init__(
        self, service: MessagingService, history: History, *, topic: str = "load", threads: int = 4,
        timeout: float = 10.0, repeat_unknown: bool = True, pause: float = 0.0, tries: int = 100,
    ) -> None:  # fmt: skip
        super().__init__(service, history, threads)
        self._topic = topic
        self._timeout = timeout
        self._repeat_unknown = repeat_unknown
        self._pause = pause
        self._tries = tries

    def _one(self, lane: int, number: int) -> None:
        self._publish({"key": f"p{lane}", "n": number})
        if self._pause:
            self._stop.wait(self._pause)

    def _publish(self, payload: dict[str, Any]) -> None:
        name = name_of(payload)
        message: Any = payload
        self._history.note("sent", name)
        for _ in range(self._tries):
            begun = time.monotonic()
            try:
                self._service.publish(self._topic, message, key=payload["key"], timeout=self._timeout)
            except MessagingError as error:
                self._history.call(f"publish of {name}", time.monotonic() - begun, self._timeout)
                unknown = isinstance(error, Timeout) and error.maybe_delivered
                self._history.note("unknown" if unknown else "failed", name)
                if self._stop.is_set() or (unknown and not self._repeat_unknown):
                    return
                message = error.envelope or message
            else:
                self._history.note("acknowledged", name)
                return


class Pipeline(Load):
    """Publish without waiting, as fast as the window lets them.

    What failed is not repeated: its outcome may be unknown, and the next of its key are on their way. Where
    handlers are far behind they are waited for.
    """

    #: How many may be acknowledged and not handled.
    BACKLOG = 50_000

    def __init__(self, service: MessagingService, history: History, *, threads: int = 2, timeout: float = 30.0) -> None:
        super().__init__(service, history, threads)
        self._timeout = timeout

    def stop(self) -> None:
        super().stop()
        self._service.flush(60.0)

    def _one(self, lane: int, number: int) -> None:
        while number % 100 == 0 and self._backlog() > self.BACKLOG and not self._stop.wait(0.01):
            pass
        self._hand_over({"key": f"p{lane}-{number % 10}", "n": number})

    def _backlog(self) -> int:
        return self._history.acknowledged - self._history.count("handled")

    def _hand_over(self, payload: dict[str, Any]) -> None:
        name = name_of(payload)
        self._history.note("sent", name)
        while True:
            begun = time.monotonic()
            try:
                future = self._service.publish_nowait("load", payload, key=payload["key"], block=1.0)
            except BackendUnavailable:  # the window is full: that is how a broker that is away is felt
                self._history.call(f"handing over {name}", time.monotonic() - begun, 1.0)
                if self._stop.is_set():
                    return
            else:
                future.add_done_callback(partial(self._ended, name, begun))
                return

    def _ended(self, name: str, begun: float, future: Any) -> None:
        self._history.call(f"publish of {name}", time.monotonic() - begun, self._timeout)
        error = future.exception()
        unknown = isinstance(error, Timeout) and error.maybe_delivered
        self._history.note("acknowledged" if error is None else "unknown" if unknown else "failed", name)


def last(seconds: float) -> None:
    """Let a fault last: what is tested is that nothing else than time ends it."""
    time.sleep(seconds)


def flows(history: History, more: int, patience: float) -> None:
    """Wait for so many more acknowledgements, so that every fault meets traffic."""
    goal = history.acknowledged + more
    assert until(lambda: history.acknowledged >= goal, patience), "the load does not flow again"


@contextmanager
def handlers(
    service: MessagingService, history: History, *, topic: str = "load", group: str = "g",
    act: Callable[[Delivery[Any]], object] | None = None, **options: Any,
) -> Iterator[Any]:  # fmt: skip
    """A subscription whose callback notes its starts and ends."""

    def handle(delivery: Delivery[Any]) -> None:
        name = name_of(delivery.payload)
        history.note("started", name)
        if act is not None:
            act(delivery)
        history.note("handled", name)

    with service.subscribe(topic, group=group, callback=handle, timeout=30.0, **options) as subscription:
        yield subscription


def all_handled(history: History) -> Callable[[], bool]:
    """Whether everything that was acknowledged was handled."""

    def all_ended() -> bool:
        noted = history.noted()
        ended = [noted.get("handled", {}), noted.get("dead", {})]
        return all(
            set(numbers) <= set().union(*(each.get(key, ()) for each in ended))
            for key, numbers in noted.get("acknowledged", {}).items()
        )

    return all_ended
