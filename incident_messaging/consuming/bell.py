"""A condition that costs next to nothing while nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Bell(threading.Condition):
    """As its base; also says whether somebody waits.

    Attributes:
        awaited: How many threads wait. Under the lock.
        watched: How many of them only look on (`watch_for`): a notification is never used up by one of those.
    """

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self.awaited = 0
        self.watched = 0

    def wait(self, timeout: float | None = None) -> bool:
        """As every condition."""
        self.awaited += 1
        try:
            return super().wait(timeout)
        finally:
            self.awaited -= 1

    def watch_for(self, is_so: Callable[[], object], timeout: float | None) -> bool:
        """As ``wait_for``, for a thread that takes nothing of what others are woken for."""
        self.watched += 1
        try:
            return bool(self.wait_for(is_so, timeout))
        finally:
            self.watched -= 1

    def notify(self, n: int = 1) -> None:
        """As every condition; those who look on are woken besides."""
        if self.awaited:
            super().notify(n + self.watched)
