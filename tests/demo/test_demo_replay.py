"""The log as events: the facts of the sample, and what a log that is none is told."""

from __future__ import annotations

import csv
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from incident_messaging import (
    IncidentAssigned,
    IncidentCommentAdded,
    IncidentCreated,
    IncidentEscalated,
    IncidentEvent,
    IncidentResolved,
    IncidentStateChanged,
)
from incident_messaging.demo.replay import SAMPLE, ReplayError, made_up_events, read_log
from incident_messaging.events import VARIANTS

HEAD = "number,incident_state,priority,assigned_to,category,u_symptom,opened_at,resolved_at,sys_updated_by"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def events() -> list[IncidentEvent]:
    return read_log(SAMPLE)


def log(folder: Path, *lines: str, head: str = HEAD) -> Path:
    path = folder / "log.csv"
    path.write_text("\n".join([head, *lines, ""]), "utf-8")
    return path


def test_sample_is_a_few_hundred_rows_of_whole_incidents(rows: list[dict[str, str]]) -> None:
    numbers = [row["number"] for row in rows]
    assert 300 <= len(rows) <= 500
    assert numbers == sorted(numbers)
    assert all(row["incident_state"] == "Closed" for row, following in pairwise(rows)
               if row["number"] != following["number"])  # fmt: skip


def test_every_incident_is_created_once_and_first(events: list[IncidentEvent], rows: list[dict[str, str]]) -> None:
    firsts: dict[str, IncidentEvent] = {}
    for event in events:
        firsts.setdefault(event.incident_id, event)
    assert list(firsts) == list(dict.fromkeys(row["number"] for row in rows))
    assert all(isinstance(event, IncidentCreated) for event in firsts.values())
    assert Counter(type(event) for event in events)[IncidentCreated] == len(firsts)


def test_events_count_as_the_rows_say(events: list[IncidentEvent]) -> None:
    assert Counter(event.type for event in events) == {
        "Created": 60,
        "StateChanged": 186,
        "Assigned": 57,
        "Escalated": 25,
        "Resolved": 60,
        "CommentAdded": 189,
    }


def test_every_row_gives_an_event(tmp_path: Path) -> None:
    head, *lines = SAMPLE.read_text("utf-8").splitlines()
    counts = [len(read_log(log(tmp_path, *lines[:taken], head=head))) for taken in range(0, 40)]
    assert all(fewer < more for fewer, more in pairwise(counts))


def test_resolved_takes_from_opened_to_resolved(events: list[IncidentEvent], rows: list[dict[str, str]]) -> None:
    def time(text: str) -> datetime:
        return datetime.strptime(text, "%d-%m-%Y %H:%M")

    taken = {
        row["number"]: int((time(row["resolved_at"]) - time(row["opened_at"])).total_seconds())
        for row in rows
        if row["resolved_at"] != "?"
    }
    resolved = [event for event in events if isinstance(event, IncidentResolved)]
    assert resolved
    assert all(event.resolution_time_secs == taken[event.incident_id] for event in resolved)


def test_one_row_may_tell_several_things(tmp_path: Path) -> None:
    path = log(
        tmp_path,
        "INC1,New,3 - Moderate,?,Category 1,?,29-02-2016 01:16,29-02-2016 02:16,Updated by 1",
        "INC1,Resolved,1 - Critical,Ann,Category 1,?,29-02-2016 01:16,29-02-2016 02:16,Updated by 2",
        "INC1,Resolved,1 - Critical,?,Category 1,?,29-02-2016 01:16,29-02-2016 02:16,Updated by 3",
    )
    assert read_log(path) == [
        IncidentCreated("INC1", severity="moderate", incident_type="Category 1", title="Category 1, unknown"),
        IncidentStateChanged("INC1", old_state="New", new_state="Resolved"),
        IncidentAssigned("INC1", assignee="Ann"),
        IncidentEscalated("INC1", escalation_level=3),
        IncidentResolved("INC1", resolution_time_secs=3600),
        IncidentCommentAdded("INC1", comment_id="INC1-3", author="Updated by 3"),
    ]


def test_incidents_whose_rows_are_mixed_are_told_apart(tmp_path: Path) -> None:
    row = "{},{},3 - Moderate,?,Category 1,Symptom 1,29-02-2016 01:16,?,Updated by 1"
    path = log(tmp_path, *(row.format(*of) for of in [("A", "New"), ("B", "New"), ("A", "Active"), ("B", "Active")]))
    assert [(event.incident_id, event.type) for event in read_log(path)] == [
        ("A", "Created"), ("B", "Created"), ("A", "StateChanged"), ("B", "StateChanged"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("INC1,New,high,?,C,S,29-02-2016 01:16,?,U", "line 2: .*high"),
        ("INC1,Resolved,1 - Critical,?,C,S,2016-02-29,29-02-2016 01:16,U", "line 2: .*2016-02-29"),
        (
            "INC1,Resolved,1 - Critical,?,C,S,29-02-2016 01:16,28-02-2016 01:16,U",
            "line 2: .*resolution_time_secs",
        ),
        (",New,1 - Critical,?,C,S,29-02-2016 01:16,?,U", "line 2: .*incident_id"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ReplayError, match=words):
        read_log(log(tmp_path, line))


def test_a_file_that_is_no_log_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="no column incident_state, priority"):
        read_log(log(tmp_path, head="number,assigned_to,category,u_symptom,opened_at,resolved_at,sys_updated_by"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "picture.csv"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ReplayError, match=r"picture\.csv cannot be read as CSV"):
        read_log(path)


def test_made_up_events_are_the_same_at_every_call_and_of_every_variant() -> None:
    events = made_up_events()
    assert events == made_up_events()
    assert {event.type for event in events} == set(VARIANTS)
    assert all(isinstance(event, IncidentCreated) for event in events[:100])
