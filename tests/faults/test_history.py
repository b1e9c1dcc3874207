"""The checker finds what it is there to find."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from history import History, judge


def history(*events: str) -> History:
    """A history of ``kind name`` in turn."""
    made = History()
    for event in events:
        made.note(*event.split())
    return made


GOOD = ("sent a/0", "acknowledged a/0", "started a/0", "handled a/0", "sent a/1", "acknowledged a/1", "started a/1")
DONE = (*GOOD, "handled a/1")


def test_a_good_history_passes() -> None:
    verdict = judge(history(*DONE), ["a/0", "a/1"])
    verdict.require(again=0)
    assert (verdict.sent, verdict.acknowledged) == (2, 2)


@pytest.mark.parametrize(
    ("events", "stored", "says"),
    [
        (GOOD, ["a/0", "a/1"], "1 of 2 acknowledged were lost"),
        (DONE, ["a/0"], "not in the log"),
        (DONE, ["a/0", "a/1", "a/1"], "in the log twice"),
        (DONE, ["a/1", "a/0"], "out of order in the log"),
        ((*DONE, "started b/7"), ["a/0", "a/1"], "never sent"),
        ((*DONE, "started a/1"), ["a/0", "a/1"], "handled again"),
        (("sent a/0", "sent a/1", "started a/1", "started a/0"), ["a/0", "a/1"], "handled out of order"),
    ],
)
def test_each_fault_is_found(events: Sequence[str], stored: list[str], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        judge(history(*events), stored).require(again=0)


def test_an_unknown_outcome_may_be_stored_or_not() -> None:
    for stored in ([], ["a/0"]):
        judge(history("sent a/0", "unknown a/0"), stored).require(again=0)


def test_a_dead_letter_is_not_lost() -> None:
    judge(history("sent a/0", "acknowledged a/0", "started a/0", "dead a/0"), ["a/0"]).require(again=0)


def test_a_call_that_ends_too_late_is_found() -> None:
    late = history(*DONE)
    late.call("publish", took=3.0, timeout=1.0)
    with pytest.raises(AssertionError, match="its time-out was"):
        judge(late, ["a/0", "a/1"]).require(again=0)
