"""Incident events: the nine variants, and one for those that this version does not know.

Each variant is a frozen class, built by position or by keyword and checked when built. On the wire
an event is an object tagged with its ``type``; the platform's other services fix names and fields.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar, Never

import attrs

from incident_messaging.errors import ConfigurationError
from incident_messaging.forms import shown

_U32 = 2**32 - 1
_U64 = 2**64 - 1


def _refuse(name: str, value: object, allowed: str) -> Never:
    raise ConfigurationError(f"{name} {shown(value)} is not allowed: {allowed}")


def _plain(value: str) -> str:
    """Text as it is; of a text enum's member, or any other subclass, the plain text."""
    return value if type(value) is str or not isinstance(value, str) else str.__str__(value)


def _is_text(_: object, field: attrs.Attribute[str], value: object) -> None:
    if type(value) is not str:
        _refuse(field.name, value, "text")


def _is_id(_: object, field: attrs.Attribute[str], value: object) -> None:
    if type(value) is not str or not value:
        _refuse(field.name, value, "text that is not empty")


def _whole(name: str, value: float, most: int) -> int:
    is_whole = not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )
    if not is_whole or not 0 <= value <= most:
        _refuse(name, value, f"a whole number from 0 to {most}")
    return int(value)


def _seconds(value: int | timedelta) -> int:
    if isinstance(value, timedelta):
        value = value // timedelta(seconds=1)
    return _whole("resolution_time_secs", value, _U64)


def _level(value: int) -> int:
    return _whole("escalation_level", value, _U32)


def _score(value: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:  # NaN compares false
        _refuse("correlation_score", value, "a finite number")
    return float(value)


def _flag(value: bool) -> bool:
    if not isinstance(value, bool):
        _refuse("success", value, "True or False")
    return value


# Without slots an event's fields are its __dict__, in the order of the wire: nothing is faster to
# write, and a frozen class keeps strangers out of it.
# Without an __init__ the base cannot be built by mistake.
@attrs.frozen(slots=False, init=False)
class IncidentEvent:
    """What all incident events share; the variants are built, not this class.

    As a ``message_type`` it stands for all of them: each message arrives as its variant, one that
    this version does not know as `UnknownIncidentEvent`.

    Attributes:
        incident_id: Which incident; also the key that keeps its events in order. Not empty.

    Raises:
        ConfigurationError: A field has another type than it should, or is out of range. It is a
            ``ValueError``, and raised when the event is built, where the mistake is.
    """

    _tag: ClassVar[str] = ""

    incident_id: str = attrs.field(converter=_plain, validator=_is_id)

    @property
    def type(self) -> str:
        """The variant's name on the wire, such as ``StateChanged``."""
        return self._tag

    @property
    def topic(self) -> str:
        """The topic that the event belongs to, such as ``incidents.statechanged``."""
        return f"incidents.{self.type.lower()}"


@attrs.frozen(slots=False)
class IncidentCreated(IncidentEvent):
    """An incident was opened.

    Attributes:
        severity: How bad it is, in the platform's words; a text enum's member is taken as its value.
        incident_type: Of what kind it is.
        title: One line about it.
    """

    _tag: ClassVar[str] = "Created"

    severity: str = attrs.field(converter=_plain, validator=_is_text)
    incident_type: str = attrs.field(converter=_plain, validator=_is_text)
    title: str = attrs.field(converter=_plain, validator=_is_text)


@attrs.frozen(slots=False)
class IncidentStateChanged(IncidentEvent):
    """An incident went from one state to another.

    Attributes:
        old_state: The state before.
        new_state: The state now.
    """

    _tag: ClassVar[str] = "StateChanged"

    old_state: str = attrs.field(converter=_plain, validator=_is_text)
    new_state: str = attrs.field(converter=_plain, validator=_is_text)


@attrs.frozen(slots=False)
class IncidentAssigned(IncidentEvent):
    """Somebody was made responsible.

    Attributes:
        assignee: Who.
    """

    _tag: ClassVar[str] = "Assigned"

    assignee: str = attrs.field(converter=_plain, validator=_is_text)


@attrs.frozen(slots=False)
class IncidentResolved(IncidentEvent):
    """An incident was resolved.

    Attributes:
        resolution_time_secs: How long it took, in whole seconds (u64); a ``timedelta`` is taken too,
            without its fraction of a second.
    """

    _tag: ClassVar[str] = "Resolved"

    resolution_time_secs: int = attrs.field(converter=_seconds)


@attrs.frozen(slots=False)
class IncidentEscalated(IncidentEvent):
    """An incident went up to another level.

    Attributes:
        escalation_level: The level now (u32).
    """

    _tag: ClassVar[str] = "Escalated"

    escalation_level: int = attrs.field(converter=_level)


@attrs.frozen(slots=False)
class IncidentCommentAdded(IncidentEvent):
    """Somebody commented.

    Attributes:
        comment_id: Which comment.
        author: Who wrote it.
    """

    _tag: ClassVar[str] = "CommentAdded"

    comment_id: str = attrs.field(converter=_plain, validator=_is_text)
    author: str = attrs.field(converter=_plain, validator=_is_text)


@attrs.frozen(slots=False)
class PlaybookStarted(IncidentEvent):
    """A playbook was started for the incident.

    Attributes:
        playbook_id: Which playbook.
    """

    _tag: ClassVar[str] = "PlaybookStarted"

    playbook_id: str = attrs.field(converter=_plain, validator=_is_text)


@attrs.frozen(slots=False)
class PlaybookCompleted(IncidentEvent):
    """A playbook ended.

    Attributes:
        playbook_id: Which playbook.
        success: Whether it did what it should.
    """

    _tag: ClassVar[str] = "PlaybookCompleted"

    playbook_id: str = attrs.field(converter=_plain, validator=_is_text)
    success: bool = attrs.field(converter=_flag)


@attrs.frozen(slots=False)
class AlertCorrelated(IncidentEvent):
    """An alert was found to belong to the incident.

    Attributes:
        alert_id: Which alert.
        correlation_score: How sure that is; any finite number.
    """

    _tag: ClassVar[str] = "AlertCorrelated"

    alert_id: str = attrs.field(converter=_plain, validator=_is_text)
    correlation_score: float = attrs.field(converter=_score)


# With slots, because a slot named `type` wins over the base's property and an instance's dict does not.
@attrs.frozen(slots=True)
class UnknownIncidentEvent(IncidentEvent):
    """A variant that this version does not know; published again, it goes out as it came in.

    Attributes:
        type: The variant's name on the wire.
        incident_id: Which incident.
        data: The fields besides these two, as JSON values.
    """

    # Named again for their place: a variant's type comes first, as on the wire.
    type: str = attrs.field(converter=_plain, validator=_is_id)
    incident_id: str = attrs.field(converter=_plain, validator=_is_id)
    data: Mapping[str, Any] = attrs.field(factory=dict, hash=False)


#: Any incident event, for annotations that a type checker narrows by ``match`` or ``isinstance``.
AnyIncidentEvent = (
    IncidentCreated
    | IncidentStateChanged
    | IncidentAssigned
    | IncidentResolved
    | IncidentEscalated
    | IncidentCommentAdded
    | PlaybookStarted
    | PlaybookCompleted
    | AlertCorrelated
    | UnknownIncidentEvent
)

#: The variants by their names on the wire.
VARIANTS: Mapping[str, type[IncidentEvent]] = {
    variant._tag: variant
    for variant in (
        IncidentCreated,
        IncidentStateChanged,
        IncidentAssigned,
        IncidentResolved,
        IncidentEscalated,
        IncidentCommentAdded,
        PlaybookStarted,
        PlaybookCompleted,
        AlertCorrelated,
    )
}
