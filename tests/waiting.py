"""Waiting in tests: for a condition, with a deadline, never for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def until(condition: Callable[[], object], timeout: float = 10.0) -> bool:
    """Whether the condition came true within the time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return bool(condition())
        time.sleep(0.01)
    return True


@contextmanager
def takes(at_most: float, at_least: float = 0.0) -> Iterator[None]:
    """The block ends within the time, and not before."""
    begun = time.monotonic()
    yield
    seconds = time.monotonic() - begun
    assert at_least <= seconds <= at_most, f"took {seconds:.2f} s, allowed are {at_least} to {at_most} s"
