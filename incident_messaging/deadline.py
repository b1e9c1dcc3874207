"""The only clock arithmetic: one monotonic deadline per call.

Every time-out of the public API becomes a `Deadline` at the door and is handed on, so that the
steps of a call share one budget, and a changed system clock shortens none.
"""

from __future__ import annotations

import math
import time

from incident_messaging.errors import ConfigurationError

#: Seconds by which deadlines of one loop may be early: ten thousand that are kept are much for the collector.
_SAME = 0.002

#: Seconds that may be waited, thirty years: the system's own waits overflow at 292.
_MOST = 1e9

#: Seconds that `jump` added; only the memory backend's test helper moves it.
_offset = 0.0


def now() -> float:
    """The monotonic clock in seconds, ahead by what `jump` added."""
    return time.monotonic() + _offset


def jump(seconds: float) -> None:
    """Move the clock forward, for tests on the memory backend that will not wait for a delay."""
    global _offset
    _offset += seconds


class Deadline:
    """A point in time by which a call has to end.

    Attributes:
        at: The point on `now`'s clock in seconds, or ``None`` for no end.
    """

    __slots__ = ("at",)

    def __init__(self, at: float | None) -> None:
        self.at = at

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """A deadline so many seconds from now; ``None`` is never, 0 or less is already over.

        Raises:
            ConfigurationError: As `seconds`.
        """
        if type(seconds) is float and 0.0 <= seconds <= _MOST:
            deadline = cls.__new__(cls)  # as `__init__` does it, without the call
            deadline.at = now() + seconds
            return deadline
        return cls(None if seconds is None else now() + cls.seconds(seconds, "timeout"))

    @staticmethod
    def seconds(value: float, name: str) -> float:
        """A user's seconds, checked; none below 0.

        Raises:
            ConfigurationError: Not a number, or not a finite one, or more than can be waited.
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= _MOST:
            raise ConfigurationError(
                f"{name} {value!r} is not allowed: seconds as a finite number of at most {_MOST:,.0f}"
            )
        return max(0.0, value)

    def renewed(self, seconds: float) -> Deadline:
        """A deadline so many seconds from now: this one, where it is that to within two milliseconds."""
        at = now() + seconds
        return self if self.at is not None and at - self.at < _SAME else Deadline(at)

    def left(self) -> float | None:
        """Seconds left, never below 0; ``None`` where there is no end."""
        return None if self.at is None else max(0.0, self.at - now())

    def wait(self, most: float) -> float:
        """Seconds to wait in one slice: at most ``most``, and never past the end."""
        return most if self.at is None else max(0.0, min(most, self.at - now()))

    @property
    def over(self) -> bool:
        """Whether the time has run out."""
        return self.at is not None and now() >= self.at

    def __repr__(self) -> str:
        return "Deadline(never)" if self.at is None else f"Deadline({self.left():.3f} s left)"
