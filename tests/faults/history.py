"""What happened in a run with faults, and whether it was allowed to: the one checker of all cases.

Publishers note each message before it is handed over and what became of it; handlers note each start and
each end. The log of the broker is read at the end by a raw client. Times are on one monotonic clock.
"""

from __future__ import annotations

import json
import os
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

#: Seconds that a call may end later than its time-out (docs: "errors").
LATE = 0.2
#: The same on a machine where brokers and tests share two cores, for a call that has to be scheduled first.
SCHEDULED = 1.0

#: Numbers of messages by key, in the order in which they were noted.
Noted = Mapping[str, Sequence[int]]


class History:
    """What was noted, by any thread; with a file also by other processes, a line each, written before the call returns.

    Kinds are ``sent``, ``acknowledged``, ``failed``, ``unknown``, ``started``, ``handled``, ``dead``; messages are
    named ``key/number``. A line of a file has kind, name, time and process; in memory a million messages take a few
    dozen bytes each.

    Attributes:
        stall: The longest time between two acknowledgements, in seconds, without a file.
        overruns: Calls that ended later than they may.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.path = file or Path()
        self._lock = threading.Lock()
        self._noted: dict[str, dict[str, array[int]]] = _empty()
        self._counts: Counter[str] = Counter()
        self.overruns: list[str] = []
        self.stall = 0.0
        self._last_acknowledged: float | None = None

    def note(self, kind: str, message: str) -> None:
        at = time.monotonic()
        if self._file is not None:
            line = json.dumps([kind, message, at, os.getpid()]) + "\n"
            with self._file.open("a") as file:  # one write: lines of several processes do not mix
                file.write(line)
            return
        key, _, number = message.rpartition("/")
        with self._lock:
            self._noted[kind][key].append(int(number))
            self._counts[kind] += 1
            if kind == "acknowledged":
                last, self._last_acknowledged = self._last_acknowledged, at
                self.stall = max(self.stall, at - (last if last is not None else at))

    def call(self, what: str, took: float, timeout: float) -> None:
        """Note a call that had a time-out."""
        if took > timeout + LATE + SCHEDULED:
            self.overruns.append(f"{what} took {took:.2f} s, its time-out was {timeout} s")

    def count(self, kind: str) -> int:
        """How often a kind was noted, without a file."""
        return self._counts[kind]

    @property
    def acknowledged(self) -> int:
        """How many publishes were acknowledged, without a file."""
        return self.count("acknowledged")

    def noted(self) -> Mapping[str, Noted]:
        """All that was noted, by kind."""
        if self._file is None:
            with self._lock:
                return {
                    kind: {key: array("q", each) for key, each in keys.items()} for kind, keys in self._noted.items()
                }
        read = _empty()
        text = self._file.read_text() if self._file.exists() else ""
        for line in text[: text.rfind("\n") + 1].splitlines():  # the last one may be on its way
            kind, message, _, _ = json.loads(line)
            key, _, number = message.rpartition("/")
            read[kind][key].append(int(number or 0))
        return read

    def of(self, *kinds: str) -> list[str]:
        """The names of the messages of some kinds."""
        noted = self.noted()
        return [name for kind in kinds for name in _names(noted.get(kind, {}))]


def _empty() -> dict[str, dict[str, array[int]]]:
    return defaultdict(lambda: defaultdict(lambda: array("q")))


def _names(noted: Mapping[str, Iterable[int]]) -> list[str]:
    return [f"{key}/{number}" for key, numbers in noted.items() for number in numbers]


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
    noted = history.noted()
    sent, acknowledged, started = (_sets(noted.get(kind, {})) for kind in ("sent", "acknowledged", "started"))
    ended = _sets(noted.get("handled", {}), noted.get("dead", {}))
    log = None if stored is None else _read(stored)
    logged = _sets(log or {})
    starts = sum(len(numbers) for numbers in noted.get("started", {}).values())
    return Verdict(
        sent=_size(sent),
        acknowledged=_size(acknowledged),
        lost=_missing(acknowledged, ended) if started else (),
        unexpected=_missing(started, sent),
        not_stored=() if log is None else _missing(acknowledged, logged),
        stored_twice=_twice(log or {}),
        handled_again=starts - _size(started),
        disordered=_disordered(noted.get("started", {})),
        log_disordered=_disordered(log or {}),
        overruns=tuple(history.overruns),
        stall=history.stall,
    )


def _read(names: Iterable[str]) -> Noted:
    read: dict[str, array[int]] = defaultdict(lambda: array("q"))
    for name in names:
        key, _, number = name.rpartition("/")
        read[key].append(int(number))
    return read


def _sets(*noted: Noted) -> dict[str, set[int]]:
    sets: dict[str, set[int]] = defaultdict(set)
    for each in noted:
        for key, numbers in each.items():
            sets[key].update(numbers)
    return sets


def _size(sets: Mapping[str, set[int]]) -> int:
    return sum(map(len, sets.values()))


def _missing(wanted: Mapping[str, set[int]], there: Mapping[str, set[int]]) -> list[str]:
    return _names({key: sorted(numbers - there.get(key, set())) for key, numbers in wanted.items()})


def _twice(noted: Noted) -> list[str]:
    return _names({
        key: [number for number, count in Counter(numbers).items() if count > 1] for key, numbers in noted.items()
        if len(set(numbers)) < len(numbers)
    })  # fmt: skip


def _disordered(noted: Noted) -> list[str]:
    """The keys whose numbers do not rise, going by the first time that each message comes."""
    firsts = {key: list(dict.fromkeys(numbers)) for key, numbers in noted.items()}
    return [key for key, numbers in firsts.items() if numbers != sorted(numbers)]


def name_of(payload: Any) -> str:
    """A message's name, from its payload."""
    return f"{payload['key']}/{payload['n']}"
