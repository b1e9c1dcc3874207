"""A condition that costs next to nothing while nobody waits."""

from __future__ import annotations

import threading
from typing import Any


class Bell(threading.Condition):
    """As its base; also says whether somebody waits.

    Attributes:
        awaited: How many threads wait. Under the lock.
    """

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self.awaited = 0

    def wait(self, timeout: float | None = None) -> bool:
        """As every condition."""
        self.awaited += 1
        try:
            return super().wait(timeout)
        finally:
            self.awaited -= 1

    def notify(self, n: int = 1) -> None:
        """As every condition."""
        if self.awaited:
            super().notify(n)
