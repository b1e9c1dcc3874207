"""The schemas: valid by the official ones, and true of what is written and read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from codec_kit import record_of
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator
from test_codec_properties import UNHURRIED, json_values, known_events, scalars, unknown_events

from incident_messaging import (
    IncidentCreated,
    IncidentEvent,
    IncidentResolved,
    MessageEnvelope,
    MessagingConfig,
    SerializationError,
    to_json,
)
from incident_messaging.codec import Codec
from incident_messaging.consuming.graves import Grave, dead_letter
from incident_messaging.events import VARIANTS
from incident_messaging.record import Position, Received
from incident_messaging.schemas import asyncapi, json_schema

SCHEMA = json_schema()
#: One of each; the values do not matter.
EVENTS = [
    cls(
        **{
            field.name: {"str": "x", "int": 7, "float": 0.5, "bool": True}[str(field.type)]
            for field in attrs.fields(cls)
        }
    )
    for cls in VARIANTS.values()
]
WRITERS = [Codec(source="tests", timestamp_format=form) for form in ("unix", "rfc3339")]


def validator(name: str | None = None) -> Draft202012Validator:
    """For the whole document, or for one of its parts."""
    return Draft202012Validator(SCHEMA if name is None else {**SCHEMA, "allOf": [{"$ref": f"#/$defs/{name}"}]})


WRITTEN, RECEIVED, ANY_PAYLOAD = validator(), validator("ReceivedIncidentEvent"), validator("MessageEnvelope")
READ = Codec(source="tests").decoder(IncidentEvent)


def is_read(document: Any) -> bool:
    try:
        READ(received(json.dumps(document).encode()))
    except SerializationError:
        return False
    return True


def received(body: bytes, position: Position | None = None) -> Received:
    return Received(
        topic="t", body=body, key=None, headers={}, raw_headers=(), timestamp=1.0, fallback_id="t-0-0",
        position=position or Position(topic="t", partition=0, offset=0),
    )  # fmt: skip


# --- JSON Schema


def test_the_document_and_each_part_are_valid_by_the_metaschemas() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for part in SCHEMA["$defs"].values():
        Draft202012Validator.check_schema(part)
        Draft7Validator.check_schema(part)  # AsyncAPI's


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
@pytest.mark.parametrize("codec", WRITERS, ids=["unix", "rfc3339"])
def test_what_is_published_is_valid(codec: Codec, event: IncidentEvent) -> None:
    document = json.loads(record_of(codec, event, topic="t", correlation_id="c").body)
    WRITTEN.validate(document)
    RECEIVED.validate(document)
    validator(type(event).__name__).validate(document["payload"])


@UNHURRIED
@given(event=known_events | unknown_events, codec=st.sampled_from(WRITERS))
def test_whatever_an_event_holds_is_valid(event: IncidentEvent, codec: Codec) -> None:
    WRITTEN.validate(json.loads(record_of(codec, event, topic="t").body))


@UNHURRIED
@given(json_values)
def test_an_envelope_of_anything_is_valid(payload: Any) -> None:
    ANY_PAYLOAD.validate(json.loads(to_json(MessageEnvelope.new(payload))))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_each_field_is_required_and_has_its_type(event: IncidentEvent) -> None:
    document = json.loads(record_of(WRITERS[0], event, topic="t").body)
    for name in document["payload"]:
        without = {key: value for key, value in document["payload"].items() if key != name}
        assert not WRITTEN.is_valid(document | {"payload": without})
        assert not WRITTEN.is_valid(document | {"payload": without | {name: []}})
    for name in document["metadata"]:
        without = {key: value for key, value in document["metadata"].items() if key != name}
        assert not WRITTEN.is_valid(document | {"metadata": without})
        assert not WRITTEN.is_valid(document | {"metadata": without | {name: [1]}})


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("resolution_time_secs", 0, 2**64 - 1), ("escalation_level", 0, 2**32 - 1)],
)
def test_bounds_are_those_of_the_classes(name: str, low: int, high: int) -> None:
    [cls] = [cls for cls in VARIANTS.values() if name in attrs.fields_dict(cls)]
    for value in (low, high):
        validator(cls.__name__).validate({"type": cls._tag, **attrs.asdict(cls("INC-1", value))})
    for value in (low - 1, high + 1):
        assert not validator(cls.__name__).is_valid({"type": cls._tag, "incident_id": "INC-1", name: value})
        with pytest.raises(ValueError, match=name):
            cls("INC-1", value)


def test_every_field_is_told_and_has_an_example() -> None:
    for cls in VARIANTS.values():
        properties = SCHEMA["$defs"][cls.__name__]["properties"]
        assert list(properties) == ["type", *(field.name for field in attrs.fields(cls))]
        for field in attrs.fields(cls):
            assert properties[field.name]["description"].endswith(".")
            Draft202012Validator(properties[field.name]).validate(properties[field.name]["examples"][0])


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """Near what others write: events with fields lost, added and of other types, in envelopes of many forms."""
    event = json.loads(to_json(draw(known_events | unknown_events)))
    for name in draw(st.lists(st.sampled_from([*event, "type", "incident_id", "more"]), max_size=2)):
        if draw(st.booleans()):
            event.pop(name, None)
        else:
            event[name] = draw(scalars | st.sampled_from([2.0, 0, True, "", "Created", [], {}]))
    metadata = draw(
        st.dictionaries(st.sampled_from(["message_id", "timestamp", "headers", "x"]), json_values, max_size=3) | scalars
    )
    payload = draw(st.just(event) | scalars)
    bare = st.just(payload)
    envelope = st.just({"metadata": metadata, "payload": payload})
    looks_like_one = st.just({**event, "metadata": metadata, "payload": payload})
    return draw(bare | envelope | looks_like_one | json_values)


@UNHURRIED
@example({"type": "Escalated", "incident_id": "INC-1", "escalation_level": 2.0})
@example({"type": "Created", "incident_id": "INC-1"})
@example({"type": "", "incident_id": "INC-1"})
@example({"type": "New", "incident_id": ""})
@example({"type": "New", "incident_id": "INC-1", "more": [1]})
@example({"metadata": {"message_id": 1}, "payload": {"type": "New", "incident_id": "INC-1"}, "more": 1})
@example({"metadata": {}, "payload": {"type": "Assigned", "incident_id": "INC-1", "assignee": "a"}})
@example({"metadata": {}, "payload": {}, "type": "Assigned", "incident_id": "INC-1", "assignee": "a"})
@example({"metadata": {"message_id": "m"}, "payload": 1, "type": "Assigned", "incident_id": "I", "assignee": "a"})
@given(documents())
def test_what_is_read_is_what_the_schema_says(document: Any) -> None:
    assert RECEIVED.is_valid(document) == is_read(document)


# --- AsyncAPI

CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "memory": {"backend": "memory", "topic_prefix": ""},
    "both": {"backend": "both", "kafka": {"bootstrap_servers": "a:1,b:2", "partitions": 6, "replication_factor": 3}},
    "core": {"backend": "nats", "nats": {"delivery": "core", "servers": ["h", "h:1"]}, "enable_dlq": False},
    "user": {"nats": {"user": "the-user", "password": "hunter2", "servers": "wss://h/path"}},
    "token": {"nats": {"token": "hunter2", "servers": "tls://[::1]:4223"}},
    "nkey": {
        "nats": {"credentials": "/hunter2.creds", "enable_tls": True, "tls_cert_file": "c", "tls_key_file": "hunter2"}
    },
    **{
        mechanism: {
            "backend": "kafka",
            "kafka": {
                "enable_sasl": True, "sasl_mechanism": mechanism, "enable_ssl": True, "ssl_cert_file": "c",
                "ssl_key_file": "k", "ssl_key_password": "hunter2",
                **({"sasl_oauth_token": lambda: ("hunter2", 1.0)} if mechanism == "OAUTHBEARER"
                   else {"sasl_username": "the-user", "sasl_password": "hunter2"}),
            },
        }
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def official() -> Draft7Validator:
    packed = Path(__file__).parent / "asyncapi" / "3.0.0.json.gz"
    return Draft7Validator(json.loads(gzip.decompress(packed.read_bytes())))


def document_of(settings: dict[str, Any]) -> dict[str, Any]:
    return asyncapi(MessagingConfig.from_mapping(settings))


def part_of(document: dict[str, Any], part: str) -> Draft7Validator:
    return Draft7Validator({"$ref": f"#/components/messages/{part}", "components": document["components"]})


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_the_asyncapi_document_is_valid_and_whole(settings: dict[str, Any], official: Draft7Validator) -> None:
    document = document_of(settings)
    assert [error.message for error in official.iter_errors(document)] == []
    text = json.dumps(document)
    assert "hunter2" not in text
    assert "the-user" not in text
    for reference in set(_references(document)):
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        assert target


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for item in value for found in _references(item)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if "$ref" in value else []
    return own + [found for item in value.values() for found in _references(item)]


def test_a_wrong_asyncapi_document_is_not_valid(official: Draft7Validator) -> None:
    document = document_of({})
    assert not official.is_valid({**document, "asyncapi": "2.0.0"})
    document["operations"]["sendIncidentCreated"]["action"] = "publish"
    assert not official.is_valid(document)


def test_it_says_how_the_brokers_are_reached_and_what_is_where() -> None:
    document = document_of({**CONFIGS["both"], "topic_prefix": "ops", "dlq_topic": "dead"})
    assert {name: server["host"] for name, server in document["servers"].items()} == {
        "nats-1": "localhost:4222", "kafka-1": "a:1", "kafka-2": "b:2",
    }  # fmt: skip
    channels = {name: channel["address"] for name, channel in document["channels"].items()}
    events = {cls.__name__: f"ops.{event.topic}" for cls, event in zip(VARIANTS.values(), EVENTS, strict=True)}
    assert channels == events | {"DeadLetter": "ops.dead"}
    bindings = document["channels"]["IncidentCreated"]["bindings"]["kafka"]
    assert (bindings["topic"], bindings["partitions"], bindings["replicas"]) == ("ops.incidents.created", 6, 3)
    group = document["operations"]["receiveIncidentCreated"]["bindings"]["kafka"]["groupId"]["const"]
    assert group == "incident-manager-group:ops.incidents.created"
    hosts = {name: document_of(CONFIGS[name])["servers"]["nats-1"] for name in ("core", "user", "token")}
    assert hosts["core"]["host"] == "h:4222"
    assert (hosts["user"]["host"], hosts["user"]["pathname"]) == ("h", "/path")
    assert hosts["token"]["host"] == "[::1]:4223"
    assert "with TLS" in hosts["token"]["description"]
    assert document_of(CONFIGS["PLAIN"])["servers"]["kafka-1"]["protocol"] == "kafka-secure"


def test_messages_are_as_the_document_says() -> None:
    document = document_of({})
    for event in EVENTS:
        name = type(event).__name__
        record = record_of(WRITERS[0], event, topic="t", correlation_id="c", headers={"own": "x"})
        part_of(document, f"{name}/payload").validate(json.loads(record.body))
        part_of(document, f"{name}/headers").validate(dict(record.headers))
        [shown] = document["components"]["messages"][name]["examples"]
        part_of(document, f"{name}/payload").validate(shown["payload"])
        part_of(document, f"{name}/headers").validate(shown["headers"])
    other = json.loads(record_of(WRITERS[0], IncidentResolved("INC-1", 1), topic="t").body)
    assert not part_of(document, f"{IncidentCreated.__name__}/payload").is_valid(other)


@pytest.mark.parametrize("position", [Position(topic="t", partition=1, offset=2), Position(stream="S", sequence=3)])
def test_dead_letters_are_as_the_document_says(position: Position) -> None:
    headers = document_of({})["components"]["messages"]["DeadLetter"]["headers"]
    letter = dead_letter(
        received(b"{}", position), Grave.of(ValueError("no"), 3), topic="d", group="g", backend="kafka"
    )
    Draft7Validator(headers | {"additionalProperties": False}).validate(dict(letter.headers))
