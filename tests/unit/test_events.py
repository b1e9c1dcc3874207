"""The nine variants of incident events, and the one for all others."""

from __future__ import annotations

import copy
import enum
import math
import pickle
from datetime import timedelta
from typing import Any

import attrs
import pytest

from incident_messaging import payloads
from incident_messaging.errors import ConfigurationError, MessagingError
from incident_messaging.events import (
    VARIANTS,
    AlertCorrelated,
    AnyIncidentEvent,
    IncidentAssigned,
    IncidentCommentAdded,
    IncidentCreated,
    IncidentEscalated,
    IncidentEvent,
    IncidentResolved,
    IncidentStateChanged,
    PlaybookCompleted,
    PlaybookStarted,
    UnknownIncidentEvent,
)

EVENTS: list[tuple[IncidentEvent, str, str, dict[str, Any]]] = [
    (
        IncidentCreated("INC-1", "critical", "database", "db down"),
        "Created",
        "incidents.created",
        {"severity": "critical", "incident_type": "database", "title": "db down"},
    ),
    (
        IncidentStateChanged("INC-1", "open", "resolved"),
        "StateChanged",
        "incidents.statechanged",
        {"old_state": "open", "new_state": "resolved"},
    ),
    (IncidentAssigned("INC-1", "ops"), "Assigned", "incidents.assigned", {"assignee": "ops"}),
    (IncidentResolved("INC-1", 3600), "Resolved", "incidents.resolved", {"resolution_time_secs": 3600}),
    (IncidentEscalated("INC-1", 2), "Escalated", "incidents.escalated", {"escalation_level": 2}),
    (
        IncidentCommentAdded("INC-1", "c-1", "ops"),
        "CommentAdded",
        "incidents.commentadded",
        {"comment_id": "c-1", "author": "ops"},
    ),
    (PlaybookStarted("INC-1", "pb"), "PlaybookStarted", "incidents.playbookstarted", {"playbook_id": "pb"}),
    (
        PlaybookCompleted("INC-1", "pb", True),
        "PlaybookCompleted",
        "incidents.playbookcompleted",
        {"playbook_id": "pb", "success": True},
    ),
    (
        AlertCorrelated("INC-1", "a-1", 0.93),
        "AlertCorrelated",
        "incidents.alertcorrelated",
        {"alert_id": "a-1", "correlation_score": 0.93},
    ),
]


def test_there_are_nine_variants() -> None:
    assert {tag for _, tag, _, _ in EVENTS} == set(VARIANTS)
    assert len(VARIANTS) == 9


@pytest.mark.parametrize(("event", "tag", "topic", "fields"), EVENTS, ids=[tag for _, tag, _, _ in EVENTS])
def test_a_variant_knows_its_name_topic_and_fields(
    event: IncidentEvent, tag: str, topic: str, fields: dict[str, Any]
) -> None:
    assert (event.type, event.topic) == (tag, topic)
    assert attrs.asdict(event) == {"incident_id": "INC-1", **fields}
    assert type(event)(incident_id="INC-1", **fields) == event
    assert isinstance(event, IncidentEvent)
    assert isinstance(event, AnyIncidentEvent)


@pytest.mark.parametrize("event", [event for event, *_ in EVENTS], ids=lambda event: event.type)
def test_a_variant_is_a_value(event: IncidentEvent) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    assert copy.deepcopy(event) == event
    assert len({event, copy.copy(event)}) == 1
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.incident_id = "INC-2"  # type: ignore[misc]


def test_a_variant_is_matched_by_position() -> None:
    match EVENTS[0][0]:
        case IncidentCreated(incident_id, severity):
            assert (incident_id, severity) == ("INC-1", "critical")
        case _:
            pytest.fail("not matched")


def test_a_member_of_a_text_enum_is_taken_as_its_value() -> None:
    class Severity(str, enum.Enum):  # noqa: UP042  (what users with older code have)
        CRITICAL = "critical"

    event = IncidentCreated("INC-1", Severity.CRITICAL, "database", "db down")

    assert event.severity == "critical"
    assert type(event.severity) is str


def test_a_duration_is_taken_in_whole_seconds() -> None:
    assert IncidentResolved("INC-1", timedelta(hours=1, milliseconds=999)).resolution_time_secs == 3600
    assert IncidentResolved("INC-1", timedelta(0)).resolution_time_secs == 0


def test_numbers_are_kept_in_their_kind() -> None:
    assert IncidentResolved("INC-1", 2**64 - 1).resolution_time_secs == 2**64 - 1
    assert IncidentEscalated("INC-1", 2**32 - 1).escalation_level == 2**32 - 1
    assert repr(IncidentEscalated("INC-1", 3.0).escalation_level) == "3"  # type: ignore[arg-type]
    assert repr(AlertCorrelated("INC-1", "a-1", 1).correlation_score) == "1.0"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: IncidentAssigned("", "ops"), "incident_id '' is not allowed: text that is not empty"),
        (lambda: IncidentAssigned(5, "ops"), "incident_id 5 is not allowed"),  # type: ignore[arg-type]
        (lambda: IncidentAssigned("INC-1", None), "assignee None is not allowed: text"),  # type: ignore[arg-type]
        (lambda: IncidentAssigned("INC-1", b"ops"), "assignee b'ops' is not allowed"),  # type: ignore[arg-type]
        (lambda: IncidentResolved("INC-1", -1), "resolution_time_secs -1 .* from 0 to 18446744073709551615"),
        (lambda: IncidentResolved("INC-1", 2**64), "resolution_time_secs"),
        (lambda: IncidentResolved("INC-1", 10**5000), "resolution_time_secs <int>"),
        (lambda: IncidentResolved("INC-1", timedelta(seconds=-1)), "resolution_time_secs"),
        (lambda: IncidentResolved("INC-1", 1.5), "resolution_time_secs"),  # type: ignore[arg-type]
        (lambda: IncidentResolved("INC-1", math.nan), "resolution_time_secs"),  # type: ignore[arg-type]
        (lambda: IncidentResolved("INC-1", True), "resolution_time_secs True"),
        (lambda: IncidentResolved("INC-1", "60"), "resolution_time_secs '60'"),  # type: ignore[arg-type]
        (lambda: IncidentEscalated("INC-1", 2**32), "escalation_level .* from 0 to 4294967295"),
        (lambda: AlertCorrelated("INC-1", "a-1", math.nan), "correlation_score nan .* a finite number"),
        (lambda: AlertCorrelated("INC-1", "a-1", math.inf), "correlation_score inf"),
        (lambda: AlertCorrelated("INC-1", "a-1", 10**400), "correlation_score"),
        (lambda: AlertCorrelated("INC-1", "a-1", True), "correlation_score True"),
        (lambda: AlertCorrelated("INC-1", "a-1", "1"), "correlation_score '1'"),  # type: ignore[arg-type]
        (lambda: PlaybookCompleted("INC-1", "pb", 1), "success 1 is not allowed: True or False"),  # type: ignore[arg-type]
        (lambda: UnknownIncidentEvent("", "INC-1"), "type '' is not allowed"),
        (lambda: UnknownIncidentEvent("Merged", ""), "incident_id '' is not allowed"),
    ],
)
def test_a_bad_field_is_refused_where_the_event_is_built(build: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        build()

    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MessagingError)


def test_the_base_is_not_built() -> None:
    with pytest.raises(TypeError):
        IncidentEvent("INC-1")  # type: ignore[call-arg]


def test_an_unknown_variant_keeps_what_it_brought() -> None:
    event = UnknownIncidentEvent("Merged", "INC-1", {"into": "INC-2"})

    assert (event.type, event.topic, event.incident_id) == ("Merged", "incidents.merged", "INC-1")
    assert event.data == {"into": "INC-2"}
    assert pickle.loads(pickle.dumps(event)) == event
    assert hash(event) == hash(copy.deepcopy(event))


@attrs.frozen(slots=False)
class OfText(IncidentEvent):
    """What a later version may make of a variant: one field more."""

    reason: str = attrs.field()
    added: str = attrs.field(default="nowhere")


@attrs.frozen(slots=False)
class OfNumbers(IncidentEvent):
    reason: str = attrs.field()
    added: int = attrs.field(default=7)


@pytest.mark.parametrize(("variant", "given"), [(OfText, "north"), (OfNumbers, 8)])
def test_a_field_with_a_default_may_be_missing_on_the_wire(
    variant: Any, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(payloads._TAGS, variant, "Later")
    read = payloads._variant_reader(variant)
    older = {"type": "Later", "incident_id": "INC-1", "reason": "again"}

    assert read(older) == variant("INC-1", "again")
    assert read({**older, "added": given}) == variant("INC-1", "again", given)
    with pytest.raises(ValueError, match="Later without 'reason'"):
        read({"type": "Later", "incident_id": "INC-1"})
