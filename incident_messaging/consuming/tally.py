"""What is counted of messages in hand, told to the meter in bursts: one count for each costs as much as a hand-out."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from incident_messaging.metrics import Meter

#: Seconds and numbers after which what was counted is told, while one message follows the other.
_SOON = 0.001
_MANY = 256


class Tally:
    """The counts of one subscription; every method may be called from any thread.

    Guarantees: what was counted is told after a millisecond of busy handling, before a thread waits for more, and with
    every batch.
    """

    def __init__(self, meter: Meter, backend: str, label: Callable[[str], str]) -> None:
        self._meter = meter
        self._backend = backend
        self._label = label
        self._consumed: deque[str] = deque()
        self._handled: deque[tuple[str, float]] = deque()
        self._told = 0.0

    def __bool__(self) -> bool:
        """Whether something was counted and not told."""
        return bool(self._consumed or self._handled)

    def consumed(self, topic: str, time: float) -> None:
        """A message of a topic (its full name) reached a handler for the first time."""
        self._consumed.append(topic)
        if time - self._told > _SOON or len(self._consumed) > _MANY:
            self._told = time
            self.tell()

    def handled(self, topic: str, seconds: float) -> None:
        """A callback has ended."""
        self._handled.append((topic, seconds))
        if len(self._handled) > _MANY:
            self.tell()

    def tell(self) -> None:
        """Tell the meter what was counted."""
        for topic, count in Counter(_taken(self._consumed)).items():
            self._meter.consumed(self._label(topic), self._backend, count)
        times: dict[str, list[float]] = {}
        for topic, seconds in _taken(self._handled):
            times.setdefault(topic, []).append(seconds)
        for topic, each in times.items():
            self._meter.handled(self._label(topic), self._backend, each)


def _taken(queue: deque[Any]) -> Iterable[Any]:
    """What is in a queue now; each item goes to one thread only."""
    for _ in range(len(queue)):
        try:
            yield queue.popleft()
        except IndexError:  # another thread was faster
            return
