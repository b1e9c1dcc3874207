"""JSON Schema (2020-12) of incident events and of the envelope on the wire, made of the events' classes.

The parts use only keywords that mean the same in draft 7, and nothing stands beside a ``$ref``, so that AsyncAPI 3.0
takes them as they are.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, Final

import attrs

from incident_messaging.envelope import VERSION
from incident_messaging.events import VARIANTS, IncidentEvent
from incident_messaging.jsontext import MAX_DEPTH, MAX_INT, MIN_INT

Schema = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

#: The last second of year 9999.
_LAST_SECOND: Final = 253_402_300_799

_TYPES: Final = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}

#: What a field's type does not say, and an example.
_FIELDS: Final[dict[str, Schema]] = {
    "incident_id": {"minLength": 1, "examples": ["INC-1"]},
    "severity": {"examples": ["critical"]},
    "incident_type": {"examples": ["database"]},
    "title": {"examples": ["primary is down"]},
    "old_state": {"examples": ["open"]},
    "new_state": {"examples": ["in progress"]},
    "assignee": {"examples": ["on-call"]},
    "resolution_time_secs": {"minimum": 0, "maximum": 2**64 - 1, "examples": [5400]},
    "escalation_level": {"minimum": 0, "maximum": 2**32 - 1, "examples": [2]},
    "comment_id": {"examples": ["C-7"]},
    "author": {"examples": ["on-call"]},
    "playbook_id": {"examples": ["restart-database"]},
    "success": {"examples": [True]},
    "alert_id": {"examples": ["A-12"]},
    "correlation_score": {"examples": [0.93]},
}

_METADATA: Final[dict[str, Schema]] = {
    "message_id": {"type": "string", "minLength": 1, "description": "Which message; the same when it comes again."},
    "correlation_id": {"type": ["string", "null"], "description": "What it belongs to."},
    "timestamp": {
        "description": "When it was made: whole Unix seconds, or RFC 3339 where timestamp_format is rfc3339.",
        "oneOf": [
            {"type": "integer", "minimum": 0, "maximum": _LAST_SECOND},
            {"type": "string", "format": "date-time"},
        ],
    },
    "source": {"type": "string", "description": "Which program made it."},
    "version": {"type": "string", "description": "Of this format.", "examples": [VERSION]},
    "headers": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "Text that travels inside the body; the broker's headers travel beside it.",
    },
}

_LIMITS: Final = (
    f"UTF-8 without a byte order mark, at most {MAX_DEPTH} levels deep; whole numbers from {MIN_INT} to {MAX_INT}, "
    "no NaN and no infinities, no lone surrogates."
)

#: How the reader tells an envelope from a payload of the same looks.
_LOOKS_LIKE_AN_ENVELOPE: Final[Schema] = {
    "required": ["metadata", "payload"],
    "properties": {"metadata": {"type": "object"}},
    "anyOf": [
        {"properties": {"metadata": {"required": ["message_id"], "properties": {"message_id": {"type": "string"}}}}},
        {"maxProperties": 2},
    ],
}


def json_schema() -> Schema:
    """One document: as a whole an envelope with an incident event as it is written, in ``$defs`` every part."""
    return {
        "$schema": DIALECT,
        "$id": f"urn:incident-messaging:wire:{VERSION}",
        "title": "Incident events on the wire",
        "description": (
            "As a whole: an envelope with an incident event, as incident-messaging writes it. In $defs: every event; "
            "the envelope of any payload (MessageEnvelope); what is read as an incident event (ReceivedIncidentEvent), "
            f"which is more. All of it is JSON in {_LIMITS}"
        ),
        "allOf": [{"$ref": "#/$defs/IncidentEventEnvelope"}],
        "$defs": definitions("#/$defs/"),
    }


def definitions(where: str) -> dict[str, Schema]:
    """Every part by its name; they refer to one another as ``where`` and the name."""
    events = {variant.__name__: _event(tag, variant) for tag, variant in VARIANTS.items()}
    events["UnknownIncidentEvent"] = _unknown_event()
    return {
        **events,
        "IncidentEvent": {
            "description": "Any incident event.",
            "oneOf": [{"$ref": f"{where}{name}"} for name in events],
        },
        "MessageMetadata": {
            "type": "object",
            "description": "What is known about a message.",
            "required": list(_METADATA),
            "properties": _METADATA,
        },
        "MessageEnvelope": envelope({}, where),
        "IncidentEventEnvelope": envelope({"$ref": f"{where}IncidentEvent"}, where),
        "ReceivedIncidentEvent": _received(where),
    }


def envelope(payload: Schema, where: str) -> Schema:
    """An envelope round a payload, as it is written."""
    return {
        "type": "object",
        "description": "A message with its metadata.",
        "required": ["metadata", "payload"],
        "properties": {"metadata": {"$ref": f"{where}MessageMetadata"}, "payload": payload},
    }


def example(variant: type[IncidentEvent], tag: str) -> dict[str, Any]:
    """A variant's payload, made of its fields' examples."""
    return {"type": tag} | {field.name: _FIELDS[field.name]["examples"][0] for field in attrs.fields(variant)}


def _event(tag: str, variant: type[IncidentEvent]) -> Schema:
    """A variant; additional fields are allowed, since readers pass over those that they do not know."""
    told = _told(variant) | _told(IncidentEvent)
    fields = {
        field.name: {"type": _TYPES[str(field.type)]} | told.get(field.name, {}) | _FIELDS[field.name]
        for field in attrs.fields(variant)
    }
    return {
        "type": "object",
        "description": (inspect.getdoc(variant) or "").partition("\n")[0],
        "required": ["type", *fields],
        "properties": {"type": {"const": tag}, **fields},
    }


def _unknown_event() -> Schema:
    return {
        "type": "object",
        "description": "A variant that this version does not know; its other fields are kept.",
        "required": ["type", "incident_id"],
        "properties": {
            "type": {"type": "string", "minLength": 1, "not": {"enum": list(VARIANTS)}},
            "incident_id": {"type": "string", **_FIELDS["incident_id"]},
        },
    }


def _received(where: str) -> Schema:
    event = {"$ref": f"{where}IncidentEvent"}
    return {
        "type": "object",
        "description": (
            "What is read as an incident event: an event in an envelope, whose metadata may lack anything or hold it "
            "in another form, or an event without an envelope. What is missing or not usable is filled with the "
            "broker's own: the time, and an id that is the same at every redelivery. A timestamp is taken in Unix "
            "seconds, with a fraction too, or as RFC 3339. Whole numbers may be written as 2.0. Additional fields are "
            "passed over."
        ),
        "if": _LOOKS_LIKE_AN_ENVELOPE,
        "then": {"properties": {"payload": event}},
        "else": event,
    }


def _told(cls: type) -> dict[str, Schema]:
    """What a class's docstring says about its fields, without what concerns Python alone."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    first = re.findall(r"^    (\w+): ((?:[^;.]|\n {8})+)", section, re.MULTILINE)
    return {name: {"description": f"{' '.join(text.split())}."} for name, text in first}
