"""Rows of the table: contestants take turns on the same broker."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .processes import Failed, Process
from .stages import NatsStage, Stage
from .tasks import ROWS, SDK, Row

#: Part of its messages that a contestant warms up with.
_WARM = 0.05
#: Seconds that a contestant has for a turn.
_TIMEOUT = 90.0


def measure(name: str, on: Stage, peers: Path, messages: int, rounds: int) -> dict[str, Any]:
    """A row's raw result: seconds of each round, messages, versions, and who failed how."""
    row = ROWS[name]
    found: dict[str, Any] = {"rounds": [], "messages": {}, "failures": {}, "versions": {}}
    topic = f"bench.{name}"
    whole = max(200, int(messages * row.share))
    if row.source == "stored":
        on.store(topic, whole)
    else:
        on.prepare([topic])
    with ExitStack() as stack:
        playing: dict[str, Process] = {}

        def drop(who: str, error: Failed) -> None:
            found["failures"][who] = error.told(who)
            if who in playing:
                playing.pop(who).close()

        for who, share in {SDK: 1.0, **row.contestants}.items():
            count = found["messages"][who] = max(100, int(whole * share))
            try:
                process = stack.enter_context(Process(who, on.settings, peers))
                playing[who], found["versions"][who] = process, process.versions
                play(row, process, on, topic, max(100, int(count * _WARM)))
            except Failed as error:
                drop(who, error)
        for number in range(rounds):
            seconds: dict[str, float] = {}
            found["rounds"].append(seconds)
            for who in list(playing) if number % 2 == 0 else list(playing)[::-1]:
                try:
                    seconds[who] = play(row, playing[who], on, topic, found["messages"][who])
                except Failed as error:
                    drop(who, error)
    return found


def play(row: Row, process: Process, on: Stage, topic: str, count: int) -> float:
    """Seconds of one turn."""
    if row.source != "fed":
        seconds = process.ask(row.call, timeout=_TIMEOUT, topic=topic, count=count, **row.options)
    else:
        assert isinstance(on, NatsStage)
        with on.feed(topic, count) as progress:
            seconds = process.ask(
                row.call, timeout=_TIMEOUT, progress=progress, topic=topic, count=count, **row.options
            )
    return float(seconds)
