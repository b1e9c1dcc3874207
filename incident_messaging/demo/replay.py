"""A service desk's log as incident events.

The log is a CSV file with one row for each update of an incident, as the data set "Incident management
process enriched event log" has them; see ``docs/examples/data/README.rst``.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import chain, zip_longest
from pathlib import Path

from incident_messaging.events import (
    AlertCorrelated,
    IncidentAssigned,
    IncidentCommentAdded,
    IncidentCreated,
    IncidentEscalated,
    IncidentEvent,
    IncidentResolved,
    IncidentStateChanged,
    PlaybookCompleted,
    PlaybookStarted,
)

__all__ = ["SAMPLE", "ReplayError", "changes", "made_up_events", "read_log"]

SAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "data" / "incident_event_log_sample.csv"
"""Part of a checkout; an installed package has none."""

Row = Mapping[str, str]

_COLUMNS = (
    "number", "incident_state", "priority", "assigned_to", "category", "u_symptom", "opened_at",
    "resolved_at", "sys_updated_by",
)  # fmt: skip
_UNKNOWN = "?"
_LOWEST_PRIORITY = 4


class ReplayError(ValueError):
    """A log could not be read; the text names file, line and cause."""


def read_log(path: Path) -> list[IncidentEvent]:
    """The events of a log, in its order.

    Raises:
        ReplayError: The file cannot be read, lacks a column, or a row does not hold what it should.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(_events(path, csv.DictReader(file, restval=_UNKNOWN)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReplayError(f"{path} cannot be read as CSV: {error}") from error


def changes(row: Row, before: Row) -> Iterator[IncidentEvent]:
    """What an update of an incident tells, against the row before it: nothing, or up to four events.

    Raises:
        ValueError: A time or a priority is not in the form of the log.
    """
    incident, state = row["number"], row["incident_state"]
    if state != before["incident_state"]:
        yield IncidentStateChanged(incident, old_state=before["incident_state"], new_state=state)
    if row["assigned_to"] not in (before["assigned_to"], _UNKNOWN):
        yield IncidentAssigned(incident, assignee=row["assigned_to"])
    if _level(row) > _level(before):
        yield IncidentEscalated(incident, escalation_level=_level(row))
    if state == "Resolved" != before["incident_state"] and row["resolved_at"] != _UNKNOWN:
        yield IncidentResolved(incident, resolution_time_secs=_time(row["resolved_at"]) - _time(row["opened_at"]))


def made_up_events(incidents: int = 120) -> list[IncidentEvent]:
    """The lives of so many incidents side by side, all nine variants among them; the same at every call."""
    lives = [_made_up_life(number) for number in range(1, incidents + 1)]
    return [event for event in chain.from_iterable(zip_longest(*lives)) if event is not None]


def _events(path: Path, rows: csv.DictReader[str]) -> Iterator[IncidentEvent]:
    missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise ReplayError(f"{path} is not a log that can be replayed: it has no column {', '.join(missing)}")
    latest: dict[str, Row] = {}
    updates: Counter[str] = Counter()
    for row in rows:
        incident = row["number"]
        updates[incident] += 1
        try:
            yield from _update(row, latest.get(incident), updates[incident])
        except ValueError as error:
            raise ReplayError(f"{path}, line {rows.line_num}: {error}") from error
        latest[incident] = row


def _update(row: Row, before: Row | None, count: int) -> Iterator[IncidentEvent]:
    """The events of one row, at least one; ``count`` says which update of its incident it is, 1 the first."""
    if before is None:
        yield _created(row)
        yield from changes(row, {**row, "incident_state": "New", "assigned_to": _UNKNOWN})
        return
    told = list(changes(row, before))
    yield from told or [
        IncidentCommentAdded(row["number"], comment_id=f"{row['number']}-{count}", author=row["sys_updated_by"])
    ]


def _created(row: Row) -> IncidentCreated:
    return IncidentCreated(
        row["number"],
        severity=row["priority"].partition(" - ")[2].lower(),
        incident_type=row["category"],
        title=f"{row['category']}, {row['u_symptom']}".replace(_UNKNOWN, "unknown"),
    )


def _level(row: Row) -> int:
    """How far an incident is escalated: 3 is the priority ``1 - Critical``, 0 is ``4 - Low``."""
    return _LOWEST_PRIORITY - int(row["priority"].partition(" - ")[0])


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%d-%m-%Y %H:%M")


def _made_up_life(number: int) -> list[IncidentEvent]:
    incident, analyst = f"DEMO-{number:04}", f"analyst-{number % 7}"
    severity = ("low", "moderate", "high", "critical")[number % 4]
    life: list[IncidentEvent] = [
        IncidentCreated(incident, severity=severity, incident_type="database", title="no connections left"),
        AlertCorrelated(incident, alert_id=f"alert-{number}", correlation_score=number % 10 / 10),
        IncidentAssigned(incident, assignee=analyst),
        IncidentStateChanged(incident, old_state="New", new_state="Active"),
    ]
    if severity == "critical":
        life.append(IncidentEscalated(incident, escalation_level=3))
    if number % 3 == 0:
        playbook = "restart-pool"
        life += [
            PlaybookStarted(incident, playbook),
            PlaybookCompleted(incident, playbook, success=number % 2 == 0),
        ]
    life += [
        IncidentCommentAdded(incident, comment_id=f"{incident}-1", author=analyst),
        IncidentStateChanged(incident, old_state="Active", new_state="Resolved"),
        IncidentResolved(incident, resolution_time_secs=900 * number),
    ]
    return life
