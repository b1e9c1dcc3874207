"""A circuit breaker: too many of the last messages are given up, so it is not the messages. Pure; the caller locks."""

from __future__ import annotations

from collections import deque

from incident_messaging.config import RetryPolicy


class Breaker:
    """How the last messages of a subscription ended, and whether that is enough of it.

    Once broken it stays so: no further message may be given up.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._share = policy.breaker_share
        self._last: deque[bool] = deque(maxlen=policy.breaker_window)
        self._given_up = 0
        self.broken = False

    @property
    def watches(self) -> bool:
        """Whether it ever breaks."""
        return self._share is not None

    def handled(self, count: int) -> None:
        """So many messages were handled."""
        if self._share is not None:
            for _ in range(count):
                self._note(given_up=False)

    def breaks(self) -> bool:
        """One more message is to be given up: whether that breaks it."""
        if self._share is not None and not self.broken:
            self._note(given_up=True)
            full = len(self._last) == self._last.maxlen
            self.broken = full and self._given_up >= self._share * len(self._last)
        return self.broken

    def __str__(self) -> str:
        return f"{self._given_up} of the last {len(self._last)} messages would have gone to the dead letters"

    def _note(self, *, given_up: bool) -> None:
        if len(self._last) == self._last.maxlen:
            self._given_up -= self._last[0]
        self._last.append(given_up)
        self._given_up += given_up
