"""The border between threads and asyncio."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from waiting import takes, until

from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, Timeout
from incident_messaging.eventloop import EventLoop


@pytest.fixture(scope="module", autouse=True)
def _pipes_of_the_process() -> None:
    """libuv opens two pipes with the first loop of a process and keeps them."""
    first = EventLoop("incident-messaging-first-loop")
    first.call(lambda: None)
    first.stop(Deadline.after(5.0))


@pytest.fixture
def loop(nothing_left_behind: None) -> Iterator[EventLoop]:
    loop = EventLoop("incident-messaging-test-loop")
    yield loop
    assert loop.stop(Deadline.after(20.0))


#: Seconds that a busy machine may need beside those that are promised.
SLACK = 5.0


def soon() -> Deadline:
    return Deadline.after(20.0)


async def forever() -> None:
    await asyncio.Event().wait()


def test_no_thread_before_the_first_use(loop: EventLoop) -> None:
    assert not loop.started
    assert "incident-messaging-test-loop" not in [thread.name for thread in threading.enumerate()]


def test_run_returns_what_the_coroutine_does_and_raises_what_it_raises(loop: EventLoop) -> None:
    async def value() -> int:
        return 7

    async def error() -> int:
        raise KeyError("its own")

    assert loop.run(value, soon(), "it") == 7
    with pytest.raises(KeyError):
        loop.run(error, soon(), "it")


def test_the_time_out_of_a_call_and_that_of_its_coroutine_are_told_apart(loop: EventLoop) -> None:
    """From 3.11 on both are the built-in TimeoutError."""

    async def own() -> None:
        raise TimeoutError("the coroutine's own")

    with pytest.raises(TimeoutError, match="the coroutine's own"):
        loop.run(own, soon(), "it")
    with takes(at_most=0.2 + SLACK, at_least=0.1), pytest.raises(Timeout, match="reading took longer"):
        loop.run(forever, Deadline.after(0.2), "reading")


@pytest.mark.parametrize("how", ["deadline", "interrupt"])
def test_a_call_that_ends_early_cancels_its_coroutine(loop: EventLoop, how: str) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        try:
            begun.set()
            if how == "interrupt":
                signal.setitimer(signal.ITIMER_REAL, 0.2)
            await forever()
        finally:
            cancelled.set()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    loop.run(lambda: asyncio.sleep(0), Deadline(None), "its start")
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for seconds in (0.2, 2.0, 10.0):  # what never began in its time need not be cancelled
            with pytest.raises((Timeout, KeyboardInterrupt)):
                loop.run(work, Deadline.after(seconds if how == "deadline" else None), "it")
            if begun.is_set():
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert cancelled.wait(20.0)


def test_a_call_on_the_loops_own_thread_raises_at_once(loop: EventLoop) -> None:
    async def call() -> None:
        loop.run(forever, Deadline.after(None), "it")

    with takes(at_most=2 * SLACK), pytest.raises(BackendUnavailable) as caught:
        loop.run(call, soon(), "outer")
    assert caught.value.code == "loop_thread"


def test_whoever_waits_when_the_loop_ends_is_told(
    loop: EventLoop, later: Callable[[Callable[[], object]], threading.Thread]
) -> None:
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            loop.run(forever, Deadline.after(None), "it")
        except BackendUnavailable as exc:
            errors.append(exc)

    waiting = [later(wait) for _ in range(5)]
    assert until(lambda: loop.started)
    loop.stop(soon())
    for thread in waiting:
        thread.join(20.0)
    assert [error.code for error in errors if isinstance(error, BackendUnavailable)] == ["closed"] * 5
    with pytest.raises(BackendUnavailable):
        loop.run(forever, soon(), "it")


def test_stop_is_bounded_when_the_loop_is_busy(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    loop.call(lambda: release.wait(20.0) and None)
    with takes(at_most=0.2 + SLACK):
        assert not loop.stop(Deadline.after(0.2))
    assert "incident-messaging-test-loop did not end" in caplog.text
    release.set()


def test_items_of_a_burst_are_handed_over_together_and_in_order(loop: EventLoop) -> None:
    batches: list[list[int]] = []
    mailbox = loop.mailbox(batches.append, lambda lost: None)
    release = threading.Event()
    loop.call(lambda: release.wait(10.0) and None)  # busy while the burst comes
    for number in range(1000):
        mailbox.put(number)
    release.set()
    assert until(lambda: sum(map(len, batches)) == 1000)
    assert [number for batch in batches for number in batch] == list(range(1000))
    assert len(batches) < 5


def test_no_item_is_lost_however_the_loop_ends(loop: EventLoop, later: Callable[..., threading.Thread]) -> None:
    handled: list[int] = []
    lost: list[int] = []
    mailbox = loop.mailbox(handled.extend, lost.extend)

    def put(begin: int) -> None:
        for number in range(begin, begin + 2000):
            mailbox.put(number)

    threads = [later(lambda begin=begin: put(begin)) for begin in range(0, 8000, 2000)]
    assert until(lambda: handled)
    loop.stop(soon())
    for thread in threads:
        thread.join(20.0)
    assert sorted(handled + lost) == list(range(8000))


def test_a_handler_that_raises_does_not_end_the_loop(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    def handle(items: list[int]) -> None:
        raise ValueError(items)

    mailbox = loop.mailbox(handle, lambda lost: None)
    mailbox.put(1)

    async def value() -> int:
        return 7

    assert loop.run(value, soon(), "it") == 7
    assert "could not handle" in caplog.text


def test_what_nobody_caught_goes_to_our_log(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("nobody caught this")

    loop.call(fail)
    assert until(lambda: "nobody caught this" in caplog.text)
    assert {record.name for record in caplog.records} == {"incident_messaging.eventloop"}
