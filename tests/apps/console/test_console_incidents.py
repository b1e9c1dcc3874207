"""The console's incidents: what events amount to, and what a page has missed."""

from __future__ import annotations

import pytest
from console_kit import incidents
from hypothesis import given
from hypothesis import strategies as st

from incident_messaging import (
    IncidentAssigned,
    IncidentCommentAdded,
    IncidentCreated,
    IncidentEscalated,
    IncidentResolved,
    IncidentStateChanged,
)

CREATED = IncidentCreated("INC-1", "high", "database", "replica lags")
ASSIGNED = IncidentAssigned("INC-1", "on-call database")


@pytest.fixture
def board():
    return incidents.Board()


def add(board, number, incident_id="INC-1", *, source="events", message_id=None):
    event = IncidentCreated(incident_id, "low", "network", "a title")
    return board.add(source, number, message_id or f"{source}-{number}", event, 100 + number)


def since(board, read):
    found = board.since(read)
    return None if found is None else {incident.incident_id for incident in found}


def test_an_incident_is_what_its_events_say():
    history = [
        (CREATED, 100),
        (IncidentEscalated("INC-1", 1), 110),
        (ASSIGNED, 120),
        (IncidentStateChanged("INC-1", "open", "investigating"), 130),
        (IncidentCommentAdded("INC-1", "C-1", "on-call database"), 140),
        (IncidentEscalated("INC-1", 2), 150),
        (IncidentResolved("INC-1", 60), 160),
    ]

    assert incidents.fold(history[:5])["INC-1"].state == "investigating"
    assert incidents.fold(history)["INC-1"].to_dict() == {
        "incident_id": "INC-1",
        "title": "replica lags",
        "severity": "high",
        "incident_type": "database",
        "state": "resolved",
        "level": 2,
        "assignee": "on-call database",
        "opened_at": 100,
        "updated_at": 160,
        "resolution_time_secs": 60,
    }


@given(st.data())
def test_the_order_between_topics_does_not_matter(data):
    kinds = st.sampled_from(["open", "investigating", "resolved"])
    times = st.lists(st.integers(100, 104), max_size=4).map(sorted)
    made = {
        "assigned": [(IncidentAssigned("INC-1", data.draw(st.text(max_size=2))), at) for at in data.draw(times)],
        "escalated": [(IncidentEscalated("INC-1", data.draw(st.integers(0, 9))), at) for at in data.draw(times)],
        "statechanged": [(IncidentStateChanged("INC-1", "", data.draw(kinds)), at) for at in data.draw(times)],
        "resolved": [(IncidentResolved("INC-1", data.draw(st.integers(0, 9))), at) for at in data.draw(times)],
        "created": [(CREATED, 100)],
    }
    turns = data.draw(st.permutations([topic for topic, some in made.items() for _ in some]))

    queues = {topic: iter(some) for topic, some in made.items()}
    arrived = [next(queues[topic]) for topic in turns]

    in_turn = [event for some in made.values() for event in some]
    assert incidents.fold(arrived) == incidents.fold(in_turn)


def test_an_event_that_arrives_before_the_opening_is_kept():
    assert incidents.fold([(ASSIGNED, 110)])["INC-1"].title == ""
    incident = incidents.fold([(ASSIGNED, 110), (CREATED, 100)])["INC-1"]
    assert (incident.title, incident.assignee) == ("replica lags", "on-call database")


def test_a_message_that_comes_again_changes_nothing(board):
    assert add(board, 7) is not None
    assert add(board, 7) is None
    assert add(board, 6) is None


def test_a_page_is_told_what_changed_since_as_it_is_now(board):
    add(board, 1, "INC-1")
    read = board.id
    add(board, 2, "INC-2")
    add(board, 3, "INC-3")
    board.add("events", 4, "m-4", IncidentAssigned("INC-2", "on-call network"), 104)

    assert since(board, read) == {"INC-2", "INC-3"}
    assert {incident.assignee for incident in board.since(read)} == {"on-call network", ""}
    assert since(board, board.id) == set()


def test_how_far_was_read_counts_for_each_source(board):
    other = incidents.Board()  # of another process, which met the partitions in another order
    add(other, 1, "INC-1", source="incidents.created/0")
    read = other.id
    add(board, 5, "INC-5", source="incidents.created/1")
    add(board, 1, "INC-1", source="incidents.created/0")

    assert since(board, read) == {"INC-5"}


def test_a_stream_that_was_made_anew_is_noticed(board):
    add(board, 1, message_id="of the stream before")
    read = board.id
    again = incidents.Board()
    add(again, 1)
    add(again, 2)

    assert since(again, read) is None


def test_what_has_left_the_backlog_is_not_known_any_more(board, monkeypatch):
    monkeypatch.setattr(incidents, "BACKLOG", 3)
    add(board, 1)
    old = board.id
    for number in range(2, 5):
        add(board, number)
        recent = board.id

    assert since(board, old) is None
    assert since(board, "") is None
    assert since(board, recent) == set()


@pytest.mark.parametrize(
    "read", ["nonsense", "events", "events:", "events:1", "events:-1:x", "events:²:x", "a:1:b:c", ","]
)
def test_an_id_that_nobody_gave_is_not_known(board, read):
    add(board, 1)
    assert since(board, read) is None


def test_of_too_many_incidents_a_resolved_one_is_forgotten_first(board, monkeypatch):
    monkeypatch.setattr(incidents, "MAX_INCIDENTS", 2)
    add(board, 1, "INC-1")
    add(board, 2, "INC-2")
    board.add("events", 3, "m-3", IncidentResolved("INC-2", 60), 103)
    add(board, 4, "INC-3")

    assert {incident.incident_id for incident in board.incidents()} == {"INC-1", "INC-3"}


def test_of_too_many_incidents_the_quietest_are_forgotten(board, monkeypatch):
    monkeypatch.setattr(incidents, "MAX_INCIDENTS", 2)
    add(board, 1, "INC-1")
    add(board, 2, "INC-2")
    add(board, 3, "INC-1")
    add(board, 4, "INC-3")

    assert {incident.incident_id for incident in board.incidents()} == {"INC-1", "INC-3"}
    assert since(board, "") == {"INC-1", "INC-3"}
