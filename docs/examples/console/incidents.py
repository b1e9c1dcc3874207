"""Incidents as their events tell them. Pure: no broker, no clock, no web.

Every kind of event has a topic of its own, and Kafka keeps no order between topics: an assignment may
arrive before the incident it belongs to. So the latest event wins field by field, and any arrival order
that keeps the order within each topic gives the same incidents.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from incident_messaging import (
    IncidentAssigned,
    IncidentCreated,
    IncidentEscalated,
    IncidentEvent,
    IncidentResolved,
    IncidentStateChanged,
)

MAX_INCIDENTS = 1_000  # kept in memory; of more, the quietest are forgotten, resolved ones first
BACKLOG = 5_000  # events whose ids are known, to catch up from

_Stamp = tuple[int, bool]


@attrs.frozen(kw_only=True)
class Incident:
    """What is known of one incident; times are Unix seconds, and no title means that it was not seen opening."""

    incident_id: str
    title: str = ""
    severity: str = ""
    incident_type: str = ""
    state: str = "open"
    level: int = 0
    assignee: str = ""
    opened_at: int | None = None
    updated_at: int = 0
    resolution_time_secs: int | None = None
    _set_at: Mapping[str, _Stamp] = attrs.field(factory=dict, eq=False, repr=False)

    @property
    def is_resolved(self) -> bool:
        return self.state == "resolved"

    def after(self, event: IncidentEvent, at: int) -> Incident:
        """The incident after an event that was made at a time."""
        # Times are whole seconds: within one, being resolved wins, and else what came later.
        stamp = (at, isinstance(event, IncidentResolved))
        news = {name: value for name, value in _says(event, at).items() if stamp >= self._set_at.get(name, stamp)}
        set_at = {**self._set_at, **dict.fromkeys(news, stamp)}
        return attrs.evolve(self, **news, set_at=set_at, updated_at=max(at, self.updated_at))

    def to_dict(self) -> dict[str, Any]:
        return attrs.asdict(self, filter=attrs.filters.exclude("_set_at"))


def _says(event: IncidentEvent, at: int) -> dict[str, Any]:
    match event:
        case IncidentCreated(severity=severity, incident_type=kind, title=title):
            return {"severity": severity, "incident_type": kind, "title": title, "opened_at": at}
        case IncidentStateChanged(new_state=state):
            return {"state": state}
        case IncidentAssigned(assignee=assignee):
            return {"assignee": assignee}
        case IncidentEscalated(escalation_level=level):
            return {"level": level}
        case IncidentResolved(resolution_time_secs=seconds):
            return {"state": "resolved", "resolution_time_secs": seconds}
    return {}  # a comment, a playbook, an alert: it only shows that something happened


def fold(events: Iterable[tuple[IncidentEvent, int]]) -> dict[str, Incident]:
    """The incidents, by id, that events and the times when they were made amount to."""
    incidents: dict[str, Incident] = {}
    for event, at in events:
        known = incidents.get(event.incident_id) or Incident(incident_id=event.incident_id)
        incidents[event.incident_id] = known.after(event, at)
    return incidents


class Board:
    """The incidents and how far they were read, so that a page can be told what it has missed.

    How far is written as the last message of every source (a stream, or a topic's partition):
    ``SOURCE:NUMBER:CHECK,...``. That means the same in every process that reads the same broker. The check
    is of the message's id: a stream that was deleted and made anew counts from one again.
    """

    def __init__(self) -> None:
        self._incidents: OrderedDict[str, Incident] = OrderedDict()  # the one that changed last is the last
        self._marks: dict[str, tuple[int, str]] = {}
        self._backlog: OrderedDict[tuple[str, int], tuple[str, str]] = OrderedDict()
        self._forgotten: set[str] = set()  # sources of which the backlog has lost the beginning

    @property
    def id(self) -> str:
        """How far it was read."""
        return ",".join(f"{source}:{number}:{check}" for source, (number, check) in sorted(self._marks.items()))

    def incidents(self) -> list[Incident]:
        return list(self._incidents.values())

    def get(self, incident_id: str) -> Incident | None:
        return self._incidents.get(incident_id)

    def add(self, source: str, number: int, message_id: str, event: IncidentEvent, at: int) -> Incident | None:
        """Take an event in; the incident after it, or ``None`` if that message was here before."""
        if number <= self._marks.get(source, (-1, ""))[0]:
            return None
        check = f"{zlib.crc32(message_id.encode('utf-8', 'replace')):08x}"
        self._marks[source] = (number, check)
        self._backlog[source, number] = (check, event.incident_id)
        if len(self._backlog) > BACKLOG:
            (forgotten, _), _ = self._backlog.popitem(last=False)
            self._forgotten.add(forgotten)
        known = self._incidents.pop(event.incident_id, None) or Incident(incident_id=event.incident_id)
        self._incidents[event.incident_id] = incident = known.after(event, at)
        if len(self._incidents) > MAX_INCIDENTS:
            resolved = (known.incident_id for known in self._incidents.values() if known.is_resolved)
            del self._incidents[next(resolved, next(iter(self._incidents)))]
        return incident

    def since(self, read: str) -> list[Incident] | None:
        """The incidents that changed since then, as they are now; ``None`` if that is not known any more."""
        theirs = _marks(read)
        if theirs is None or any(self._check(source, *mark) for source, mark in theirs.items()):
            return None
        if self._forgotten - theirs.keys():
            return None
        changed = {
            incident_id
            for (source, number), (_, incident_id) in self._backlog.items()
            if number > theirs.get(source, (-1, ""))[0]
        }
        return [incident for incident in self._incidents.values() if incident.incident_id in changed]

    def _check(self, source: str, number: int, check: str) -> bool:
        """Whether a mark names another message than the one that is known there."""
        return self._backlog.get((source, number), ("", ""))[0] != check


def _marks(read: str) -> dict[str, tuple[int, str]] | None:
    marks = {}
    for part in read.split(",") if read else ():
        source, _, rest = part.partition(":")
        number, _, check = rest.partition(":")
        if not (number.isascii() and number.isdigit() and check):
            return None
        marks[source] = (int(number[:20]), check)
    return marks
