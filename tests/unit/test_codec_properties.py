"""What holds for every message and for all bytes, with and without orjson."""

from __future__ import annotations

import base64
import enum
import math
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import attrs
from codec_kit import record_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from incident_messaging import jsontext
from incident_messaging.codec import SKIPPED, Codec, from_json, sent_envelope, to_json
from incident_messaging.envelope import MessageEnvelope, MessageMetadata, read_metadata
from incident_messaging.errors import SerializationError
from incident_messaging.events import VARIANTS, IncidentCreated, IncidentEvent, UnknownIncidentEvent
from incident_messaging.record import Position, Received

#: A machine that is busy with brokers is no reason to fail.
UNHURRIED = settings(deadline=None)

JSON, ORJSON = jsontext.select("json"), jsontext.select("orjson")
BOTH = (JSON, ORJSON)
CODECS = tuple(Codec(source="tests", json=json) for json in BOTH)

text = st.text(st.characters(exclude_categories=["Cs"]))
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(jsontext.MIN_INT, jsontext.MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5), max_leaves=30
)

#: Also what JSON cannot carry.
wild_values = st.recursive(
    scalars
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary(max_size=3)
    | st.sampled_from([2**64, -(2**63) - 1, math.nan, math.inf, "\ud800", object()]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters()) | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=15,
)

#: Bytes near JSON: pieces of it in any order, and documents with some bytes replaced.
pieces = st.lists(
    st.sampled_from(
        [
            *'{}[]",:.-+eE0123456789 \t\n\\/',
            "null",
            "true",
            "false",
            "NaN",
            "Infinity",
            "1e999",
            '"a"',
            '"a":',
            "\\u00e9",
            "\\ud83d",
            "\\ude00",
            "\\uD800",
            "\\u0041",
            "\\\\",
            '\\"',
            "9" * 19,
            "9" * 25,
            "\ufeff",
            "\x00",
            "\x7f",
            "é",
            "😀",
        ]
    ),
    max_size=25,
).map(lambda parts: "".join(parts).encode())
quoted = pieces.map(lambda inner: b'"' + inner.replace(b'"', b"") + b'"')


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(JSON.dumps(draw(json_values)))
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


near_json = pieces | quoted | mutated() | st.binary(max_size=20)


def field_values(field: attrs.Attribute[Any]) -> st.SearchStrategy[Any]:
    ranges: dict[str, st.SearchStrategy[Any]] = {
        "incident_id": words,
        "resolution_time_secs": st.integers(0, 2**64 - 1),
        "escalation_level": st.integers(0, 2**32 - 1),
        "correlation_score": st.floats(allow_nan=False, allow_infinity=False),
        "success": st.booleans(),
    }
    return ranges.get(field.name, text)


known_events = st.sampled_from(sorted(VARIANTS.items())).flatmap(
    lambda item: st.builds(item[1], **{field.name: field_values(field) for field in attrs.fields(item[1])})
)
unknown_events = st.builds(
    UnknownIncidentEvent,
    words.filter(lambda tag: tag not in VARIANTS),
    words,
    st.dictionaries(text, json_values, max_size=3).filter(lambda data: not data.keys() & {"type", "incident_id"}),
)
events = known_events | unknown_events

zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC) | zones)


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


@attrs.define
class Sample:
    at: datetime
    day: date
    id: uuid.UUID
    price: Decimal
    raw: bytes
    colour: Colour
    count: int
    score: float
    name: str
    flag: bool
    maybe: int | None
    either: int | str | None
    tags: frozenset[str]
    pairs: list[tuple[int, str]]
    by_name: dict[str, list[float]]
    event: IncidentEvent
    free: Any


samples = st.builds(
    Sample,
    at=moments,
    day=st.dates(),
    id=st.uuids(),
    raw=st.binary(max_size=5),
    colour=st.sampled_from(Colour),
    flag=st.booleans(),
    price=st.decimals(allow_nan=False),
    count=st.integers(jsontext.MIN_INT, jsontext.MAX_INT),
    score=st.floats(allow_nan=False, allow_infinity=False),
    name=text,
    maybe=st.none() | st.integers(0, 5),
    either=st.none() | st.integers(0, 5) | text,
    tags=st.frozensets(text, max_size=3),
    pairs=st.lists(st.tuples(st.integers(0, 5), text), max_size=3),
    by_name=st.dictionaries(text, st.lists(st.floats(0, 1)), max_size=3),
    event=events,
    free=json_values,
)


def received(body: bytes) -> Received:
    return Received(
        topic="t", body=body, key=None, headers={}, raw_headers=(), position=Position(), timestamp=1.5,
        fallback_id="t-0-1",
    )  # fmt: skip


def outcome(function: Any, value: Any) -> Any:
    """A result that tells -0.0 from 0.0 and 1 from 1.0, or that it was refused."""
    try:
        return repr(function(value))
    except SerializationError:
        return SerializationError


@given(json_values)
@UNHURRIED
def test_a_json_value_comes_back_whichever_writes_and_whichever_reads(value: Any) -> None:
    for writer in BOTH:
        for reader in BOTH:
            assert repr(reader.loads(writer.dumps(value))) == repr(value)


@given(wild_values)
@UNHURRIED
def test_both_write_and_refuse_the_same_values(value: Any) -> None:
    assert outcome(lambda v: JSON.loads(JSON.dumps(v)), value) == outcome(lambda v: JSON.loads(ORJSON.dumps(v)), value)


@given(near_json)
@example(b'{"a":"\\ud800","a":1}')
@example(b'"\\\\ud83d\\udc00"')
@example(b"-9223372036854775809")
@UNHURRIED
def test_both_read_and_refuse_the_same_bytes(data: bytes) -> None:
    assert outcome(JSON.loads, data) == outcome(ORJSON.loads, data)


@given(events)
@UNHURRIED
def test_an_event_comes_back_as_its_variant(event: IncidentEvent) -> None:
    for codec in CODECS:
        record = record_of(codec, event, topic="t", key=event.incident_id)
        for message_type in (IncidentEvent, type(event)):
            envelope = codec.decoder(message_type)(received(record.body))
            assert envelope is not SKIPPED
            assert (envelope.payload, type(envelope.payload)) == (event, type(event))
        if not isinstance(event, IncidentCreated):
            assert codec.decoder(IncidentCreated)(received(record.body)) is SKIPPED
    assert from_json(to_json(event), IncidentEvent) == event


@given(samples)
@UNHURRIED
def test_a_class_with_fields_of_every_kind_comes_back(sample: Sample) -> None:
    for codec in CODECS:
        envelope = codec.decoder(Sample)(received(record_of(codec, sample, topic="t").body))
        assert envelope is not SKIPPED
        assert envelope.payload == sample


@given(
    st.builds(
        MessageMetadata,
        message_id=words,
        correlation_id=st.none() | text,
        timestamp=st.integers(0, 253_402_300_799),
        source=words,
        version=text,
        headers=st.dictionaries(text, text, max_size=3),
    ),
    json_values,
    st.sampled_from(["unix", "rfc3339"]),
)
@UNHURRIED
def test_an_envelope_comes_back_in_either_form_of_time(metadata: MessageMetadata, payload: Any, form: str) -> None:
    given_envelope = MessageEnvelope(metadata, payload)
    for json in BOTH:
        codec = Codec(source="tests", timestamp_format=form, json=json)
        record = record_of(codec, given_envelope, topic="t")
        assert sent_envelope(given_envelope, record) is given_envelope
        assert codec.decoder(Any)(received(record.body)) == given_envelope
    assert from_json(to_json(given_envelope), MessageEnvelope[Any]) == given_envelope


@given(st.binary(max_size=200))
@UNHURRIED
def test_bytes_are_written_as_base64(raw: bytes) -> None:
    assert from_json(to_json(raw), str) == base64.b64encode(raw).decode()
    assert from_json(to_json(raw), bytes) == raw


def attempt(decode: Any, body: bytes) -> Any:
    try:
        return decode(received(body))
    except SerializationError as error:
        return error


metadata_like = st.dictionaries(
    st.sampled_from(["message_id", "correlation_id", "timestamp", "source", "version", "headers", "other"]), json_values
)
event_like = st.dictionaries(st.sampled_from(["type", "incident_id", "severity", "title"]), json_values) | st.builds(
    lambda tag, fields: {"type": tag, **fields}, st.sampled_from(sorted(VARIANTS)), st.dictionaries(text, json_values)
)
documents = st.fixed_dictionaries({"metadata": metadata_like | json_values, "payload": event_like | json_values})
bodies = near_json | (documents | event_like | json_values).map(JSON.dumps)


@given(bodies)
@UNHURRIED
def test_whatever_arrives_is_decoded_skipped_or_one_error_with_the_bytes(body: bytes) -> None:
    for codec in CODECS:
        for message_type in (IncidentEvent, IncidentCreated, dict, Sample, bytes, Any):
            result = attempt(codec.decoder(message_type), body)
            if isinstance(result, SerializationError):
                assert (result.code, result.data) == ("decode", body)
                assert message_type is not bytes
            else:
                assert result is SKIPPED or result.metadata.message_id


@given(metadata_like)
@UNHURRIED
def test_metadata_of_any_kind_becomes_metadata_that_can_be_sent(fields: dict[str, Any]) -> None:
    metadata = read_metadata(fields, "spare", 1.5)

    record_of(CODECS[0], MessageEnvelope(metadata, None), topic="t")
    assert metadata.time.tzinfo is UTC


@given(wild_values)
@UNHURRIED
def test_whatever_is_published_is_written_or_one_error(value: Any) -> None:
    results = [outcome(lambda v, codec=codec: jsontext.loads(codec.to_json(v)), value) for codec in CODECS]

    assert results[0] == results[1]
