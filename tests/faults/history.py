"""What happened in a run with faults, and whether it was allowed to: the one checker of all cases.

Publishers note each message before it is handed over and what became of it; handlers note each start and
each end. The log of the broker is read at the end by a raw client. Times are on one monotonic clock.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

#: Seconds that a call may end later than its time-out (docs: "errors").
LATE = 0.2
#: The same on a machine where brokers and tests share two cores, for a call that has to be scheduled first.
SCHEDULED = 1.0


@attrs.frozen
class Event:
    """One line of a history.

    Attributes:
        kind: ``sent``, ``acknowledged``, ``failed``, ``unknown``, ``started``, ``handled`` or ``dead``.
        message: Its name, ``key/number``.
        at: When, in seconds.
        process: The process id.
    """

    kind: str
    message: str
    at: float
    process: int


class History:
    """Events of any thread; with a file also of other processes, a line each, written before the call returns.

    Attributes:
        acknowledged: How many publishes were acknowledged, without a file.
        stall: The longest time between two of them, in seconds.
        overruns: Calls that ended later than they may.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.path = file or Path()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self.overruns: list[str] = []
        self.stall = 0.0
        self.acknowledged = 0
        self._last_acknowledged: float | None = None

    def note(self, kind: str, message: str) -> None:
        event = Event(kind, message, time.monotonic(), os.getpid())
        if self._file is not None:
            line = json.dumps([event.kind, event.message, event.at, event.process]) + "\n"
            with self._file.open("a") as file:  # one write: lines of several processes do not mix
                file.write(line)
            return
        with self._lock:
            self._events.append(event)
            if kind == "acknowledged":
                self.acknowledged += 1
                last, self._last_acknowledged = self._last_acknowledged, event.at
                self.stall = max(self.stall, event.at - (last if last is not None else event.at))

    def call(self, what: str, took: float, timeout: float) -> None:
        """Note a call that had a time-out."""
        if took > timeout + LATE + SCHEDULED:
            self.overruns.append(f"{what} took {took:.2f} s, its time-out was {timeout} s")

    @property
    def events(self) -> Sequence[Event]:
        if self._file is None:
            with self._lock:
                return list(self._events)
        return [Event(*json.loads(line)) for line in self._file.read_text().splitlines()] if self._file.exists() else []

    def of(self, *kinds: str) -> list[str]:
        return [event.message for event in self.events if event.kind in kinds]


@attrs.frozen(kw_only=True)
class Verdict:
    """What a history came to.

    Attributes:
        sent: Messages handed over.
        acknowledged: Those that a broker has acknowledged.
        lost: Acknowledged, and neither handled nor among the dead letters.
        unexpected: Handled, and never handed over.
        not_stored: Acknowledged, and not in the broker's log.
        stored_twice: More than once in the log.
        handled_again: Starts of a handler beyond the first of each message.
        disordered: Keys whose messages were first handled in another order than sent.
        log_disordered: Keys whose messages lie in the log in another order than sent.
    """

    sent: int
    acknowledged: int
    lost: Sequence[str]
    unexpected: Sequence[str]
    not_stored: Sequence[str]
    stored_twice: Sequence[str]
    handled_again: int
    disordered: Sequence[str]
    log_disordered: Sequence[str]
    overruns: Sequence[str]
    stall: float

    def require(self, *, again: int, order: bool = True) -> None:
        """Fail unless nothing was lost or invented, and no more than so many were handled again."""
        assert not self.lost, f"{len(self.lost)} of {self.acknowledged} acknowledged were lost: {self.lost[:10]}"
        assert not self.not_stored, f"{len(self.not_stored)} acknowledged are not in the log: {self.not_stored[:10]}"
        assert not self.stored_twice, f"{len(self.stored_twice)} are in the log twice: {self.stored_twice[:10]}"
        assert not self.unexpected, f"never sent: {self.unexpected[:10]}"
        assert self.handled_again <= again, f"{self.handled_again} were handled again, allowed are {again}"
        assert not self.log_disordered, f"out of order in the log: {self.log_disordered[:10]}"
        assert not (order and self.disordered), f"handled out of order: {self.disordered[:10]}"
        assert not self.overruns, self.overruns


def judge(history: History, stored: Iterable[str] | None) -> Verdict:
    """The verdict over a history; ``stored`` is what the broker's log has, ``None`` where nobody looked."""
    events = history.events
    sent = set(history.of("sent"))
    acknowledged = set(history.of("acknowledged"))
    started = Counter(event.message for event in events if event.kind == "started")
    ended = {event.message for event in events if event.kind in ("handled", "dead")}
    log = None if stored is None else Counter(stored)
    return Verdict(
        sent=len(sent),
        acknowledged=len(acknowledged),
        lost=sorted(acknowledged - ended) if started else (),
        unexpected=sorted(set(started) - sent),
        not_stored=() if log is None else sorted(acknowledged - set(log)),
        stored_twice=() if log is None else sorted(message for message, count in log.items() if count > 1),
        handled_again=sum(started.values()) - len(started),
        disordered=_disordered(event.message for event in events if event.kind == "started"),
        log_disordered=_disordered(log or ()),
        overruns=tuple(history.overruns),
        stall=history.stall,
    )


def _disordered(messages: Iterable[str]) -> list[str]:
    """The keys whose numbers do not rise, going by the first time that each message comes."""
    seen: dict[str, list[int]] = defaultdict(list)
    for message in dict.fromkeys(messages):
        key, _, number = message.rpartition("/")
        seen[key].append(int(number))
    return [key for key, numbers in seen.items() if numbers != sorted(numbers)]


def name_of(payload: Any) -> str:
    """A message's name, from its payload."""
    return f"{payload['key']}/{payload['n']}"
