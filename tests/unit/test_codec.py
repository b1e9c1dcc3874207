"""From messages to records, and from what a broker hands over to envelopes."""

from __future__ import annotations

import dataclasses
import enum
import math
import subprocess
import sys
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, Optional, TypedDict, TypeVar, Union

import attrs
import cattrs
import cattrs.preconf.json
import pydantic
import pytest
from codec_kit import record_of

from incident_messaging import jsontext
from incident_messaging.codec import SKIPPED, Codec, from_json, sent_envelope, to_json
from incident_messaging.envelope import MessageEnvelope, MessageMetadata
from incident_messaging.errors import ConfigurationError, SerializationError
from incident_messaging.events import (
    AlertCorrelated,
    AnyIncidentEvent,
    IncidentCreated,
    IncidentEvent,
    IncidentResolved,
    UnknownIncidentEvent,
)
from incident_messaging.record import Position, Received, Record

T = TypeVar("T")
CREATED = IncidentCreated("INC-1", "critical", "database", "db down")
RESOLVED = IncidentResolved("INC-1", 60)
NOON = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)


@pytest.fixture(params=["json", "orjson"])
def json(request: pytest.FixtureRequest) -> jsontext.JsonText:
    return jsontext.select(request.param)


@pytest.fixture
def codec(json: jsontext.JsonText) -> Codec:
    return Codec(source="tests", json=json)


def received(body: bytes | None, headers: Mapping[str, str] | None = None) -> Received:
    return Received(
        topic="llm-im.t", body=body, key=None, headers=headers or {}, raw_headers=(),
        position=Position(topic="llm-im.t", partition=0, offset=7), timestamp=1_700_000_000.5,
        fallback_id="llm-im.t-0-7",
    )  # fmt: skip


def encode(codec: Codec, message: Any, **options: Any) -> Record:
    return record_of(codec, message, topic="llm-im.t", **options)


def document(codec: Codec, message: Any, **options: Any) -> Any:
    return jsontext.loads(encode(codec, message, **options).body)


def decode(codec: Codec, body: bytes, message_type: Any) -> MessageEnvelope[Any]:
    envelope = codec.decoder(message_type)(received(body))
    assert envelope is not SKIPPED
    return envelope


def round_trip(codec: Codec, message: Any, message_type: Any) -> Any:
    return decode(codec, encode(codec, message).body, message_type).payload


# --- the record -----------------------------------------------------------------------------------


def test_an_event_is_written_as_the_platform_reads_it(codec: Codec) -> None:
    record = record_of(codec, CREATED, topic="llm-im.incidents.created", key="INC-1")
    envelope = sent_envelope(CREATED, record)

    metadata = envelope.metadata
    assert jsontext.loads(record.body) == {
        "metadata": {
            "message_id": metadata.message_id, "correlation_id": None, "timestamp": metadata.timestamp,
            "source": "tests", "version": "1.0", "headers": {},
        },
        "payload": {
            "type": "Created", "incident_id": "INC-1", "severity": "critical", "incident_type": "database",
            "title": "db down",
        },
    }  # fmt: skip
    assert envelope.payload is CREATED
    assert (record.topic, record.key) == ("llm-im.incidents.created", "INC-1")
    assert record.headers == {"x-message-id": metadata.message_id, "content-type": "application/json"}
    assert record.dedup_id == f"{metadata.message_id}:llm-im.incidents.created"


def test_the_timestamp_is_written_as_rfc_3339_on_demand(json: jsontext.JsonText) -> None:
    codec = Codec(source="tests", timestamp_format="rfc3339", json=json)
    envelope = MessageEnvelope(MessageMetadata(timestamp=1_700_000_000), "x")

    assert document(codec, envelope)["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"


def test_the_correlation_id_is_in_the_metadata_and_in_a_header(codec: Codec) -> None:
    record = encode(codec, "x", correlation_id="c-1")

    assert jsontext.loads(record.body)["metadata"]["correlation_id"] == "c-1"
    assert record.headers["x-correlation-id"] == "c-1"


def test_headers_are_the_brokers_and_metadata_headers_the_bodys(codec: Codec) -> None:
    envelope = MessageEnvelope.new("x")
    envelope.metadata.headers["tenant"] = "a"
    record = encode(codec, envelope, headers={"region": "ö\n"})

    assert jsontext.loads(record.body)["metadata"]["headers"] == {"tenant": "a"}
    assert record.headers["region"] == "ö\n"
    assert "tenant" not in record.headers


def test_an_envelopes_metadata_is_kept(codec: Codec) -> None:
    metadata = MessageMetadata("m-1", "c-1", 7, "elsewhere", "2.0", {"a": "b"})
    given = MessageEnvelope(metadata, {"n": 1})
    record = record_of(codec, given, topic="t")
    envelope = sent_envelope(given, record)

    assert envelope is given
    assert jsontext.loads(record.body)["metadata"] == attrs.asdict(metadata)
    assert record.dedup_id == "m-1:t"


def test_what_an_envelope_lacks_is_filled_without_changing_it(codec: Codec) -> None:
    given = MessageEnvelope.new("x", correlation_id="old")
    record = record_of(codec, given, topic="t", correlation_id="new")
    envelope = sent_envelope(given, record)

    assert jsontext.loads(record.body)["metadata"]["source"] == "tests"
    assert (envelope.metadata.correlation_id, envelope.metadata.source) == ("new", "tests")
    assert (given.metadata.correlation_id, given.metadata.source) == ("old", "")
    assert envelope.metadata.message_id == given.metadata.message_id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("message_id", ""), ("message_id", 5), ("correlation_id", 5), ("timestamp", 1.5), ("timestamp", -1),
        ("timestamp", True), ("timestamp", NOON), ("timestamp", 10**18), ("source", None), ("version", 1),
        ("headers", None), ("headers", {"a": 1}), ("headers", {1: "a"}),
    ],
)  # fmt: skip
def test_metadata_that_cannot_travel_is_refused(codec: Codec, field: str, value: Any) -> None:
    envelope = MessageEnvelope.new("x")
    setattr(envelope.metadata, field, value)

    with pytest.raises(SerializationError, match=rf"metadata\.{field} .* is not allowed") as caught:
        encode(codec, envelope)
    assert (caught.value.code, caught.value.envelope) == ("encode", envelope)


def test_a_key_may_be_text_also_of_foreign_bytes(codec: Codec) -> None:
    class Tenant(str, enum.Enum):  # noqa: UP042  (what users with older code have)
        A = "tenant-a"

    assert encode(codec, "x").key is None
    assert encode(codec, "x", key="").key == ""
    assert encode(codec, "x", key="ö").key == "ö"
    assert encode(codec, "x", key=b"\xff".decode("utf-8", "surrogateescape")).key == "\udcff"
    assert encode(codec, "x", key=Tenant.A).key == "tenant-a"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": 5}, "key 5 is not allowed: text or None"),
        ({"key": b"k"}, "key b'k' is not allowed"),
        ({"key": "\ud800"}, "key"),
        ({"correlation_id": uuid.UUID(int=0)}, r"correlation_id UUID\("),
        ({"headers": {"a": 1}}, "header 'a' has the value 1: allowed is text"),
        ({"headers": {"a": "\ud800"}}, "header 'a' has the value"),
        ({"headers": {1: "a"}}, "header name 1 is not allowed"),
        ({"headers": {"": "a"}}, "header name '' is not allowed"),
        ({"headers": {"a b": "a"}}, "header name 'a b'"),
        ({"headers": {"a:b": "a"}}, "header name 'a:b'"),
        ({"headers": {"a\r\nb": "a"}}, "header name"),
        ({"headers": {"ä": "a"}}, "header name 'ä'"),
    ],
)
def test_what_a_broker_does_not_take_is_refused(codec: Codec, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        encode(codec, "x", **options)


@pytest.mark.parametrize(
    "name",
    [
        "x-message-id", "X-Key", "x-correlation-id", "Content-Type", "traceparent", "x-dlq-attempts", "X-DLQ-New",
        "x-redrive-group", "Nats-Msg-Id", "nats-expected-last-sequence",
    ],
)  # fmt: skip
def test_reserved_headers_are_refused_by_name(codec: Codec, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"header '{name}' is reserved"):
        encode(codec, "x", headers={name: "v"})


# --- the forms of payloads ------------------------------------------------------------------------


class Level(enum.Enum):
    HIGH = "high"
    LOW = 1


class Colour(str, enum.Enum):  # noqa: UP042  (what users with older code have)
    RED = "red"


class Exit(enum.IntEnum):
    FAILED = 1


class Name(str):
    pass


class Point(NamedTuple):
    x: int
    y: int


@attrs.define
class Leaf:
    name: str
    at: datetime
    scores: list[float] = attrs.Factory(list)


@attrs.define
class Tree:
    id: uuid.UUID
    price: Decimal
    level: Level
    raw: bytes
    day: date
    hour: time
    leaf: Leaf
    leaves: list[Leaf]
    tags: frozenset[str]
    pair: tuple[int, str]
    by_name: dict[str, Leaf]
    maybe: int | None
    either: int | str
    anything: Any
    kind: Literal["a", "b"]
    child: Tree | None = None


@attrs.define
class Page(Generic[T]):
    items: list[T]
    colour: Colour


@dataclasses.dataclass
class Order:
    number: int
    when: datetime
    lines: list[Leaf]
    done: bool = False


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    number: int
    at: datetime
    price: Decimal
    tags: set[str]
    raw: bytes = b""
    renamed: str = pydantic.Field("x", alias="reNamed")


class Movie(TypedDict):
    title: str
    year: int


class PartlyTyped(TypedDict, total=False):
    title: str


def tree(child: Tree | None = None) -> Tree:
    leaf = Leaf("l", NOON, [1.0, 2.5])
    return Tree(
        id=uuid.UUID(int=7), price=Decimal("1.10"), level=Level.HIGH, raw=b"\x00\xff", day=date(2024, 2, 29),
        hour=time(12, 30), leaf=leaf, leaves=[leaf, leaf], tags=frozenset({"a"}), pair=(1, "x"), by_name={"l": leaf},
        maybe=None, either="e", anything={"a": [1, None]}, kind="a", child=child,
    )  # fmt: skip


MODEL = Model(number=1, at=NOON, price=Decimal("1.10"), tags={"a"}, raw=b"abc", reNamed="y")


@pytest.mark.parametrize(
    ("message", "message_type"),
    [
        (tree(tree()), Tree),
        (Order(1, NOON, [Leaf("l", NOON)]), Order),
        (MODEL, Model),
        ([MODEL], list[Model]),
        ({"title": "Brazil", "year": 1985}, Movie),
        ({"title": "Brazil"}, PartlyTyped),
        ({"a": [1, {"b": None}]}, dict),
        ({"a": 1}, dict[str, int]),
        ([1, "x", None], list),
        ([Leaf("l", NOON)], list[Leaf]),
        ("text", str),
        (5, int),
        (2.5, float),
        (True, bool),
        (None, Any),
        ({"a": 1}, Any),
        (NOON, datetime),
        (uuid.UUID(int=1), uuid.UUID),
        (Decimal("-0.10"), Decimal),
        (Level.LOW, Level),
        (Colour.RED, Colour),
        (Exit.FAILED, Exit),
        (Name("x"), Name),
        (Page([Leaf("l", NOON)], Colour.RED), Page[Leaf]),
        ({1, 2}, set[int]),
        ((1, "x"), tuple[int, str]),
        (Leaf("l", NOON), Leaf | Order),
        (Leaf("l", NOON), Optional[Leaf]),  # noqa: UP045
        (CREATED, IncidentCreated),
        (CREATED, IncidentEvent),
        (CREATED, AnyIncidentEvent),
        (CREATED, IncidentCreated | IncidentResolved),
        (CREATED, Union[IncidentCreated, UnknownIncidentEvent]),  # noqa: UP007
        (CREATED, IncidentEvent | UnknownIncidentEvent),
        (CREATED, MessageEnvelope[IncidentEvent]),
        ({"a": 1}, MessageEnvelope),
        ([CREATED, RESOLVED], list[IncidentEvent]),
        (UnknownIncidentEvent("Merged", "INC-1", {"into": "INC-2"}), IncidentEvent),
        (UnknownIncidentEvent("Merged", "INC-1", {"into": "INC-2"}), UnknownIncidentEvent),
    ],
    ids=lambda value: None if not isinstance(value, type) else value.__name__,
)
def test_a_message_comes_back_as_it_was(codec: Codec, message: Any, message_type: Any) -> None:
    back = round_trip(codec, message, message_type)

    assert back == message
    assert type(back) is type(message)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (NOON, "2024-02-29T12:00:00Z"),
        (NOON.replace(microsecond=5), "2024-02-29T12:00:00.000005Z"),
        (NOON.astimezone(timezone(timedelta(hours=-3, minutes=-30))), "2024-02-29T08:30:00-03:30"),
        (NOON.astimezone(timezone(timedelta(minutes=53, seconds=28))), "2024-02-29T12:00:00Z"),
        (date(2024, 2, 29), "2024-02-29"),
        (time(12, 30), "12:30:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
        (Level.HIGH, "high"),
        (Level.LOW, 1),
        (b"\x00\xff", "AP8="),
        (bytearray(b"a"), "YQ=="),
        ((1, (2,)), [1, [2]]),
        (frozenset({"a"}), ["a"]),
        (Point(1, 2), [1, 2]),
        (namedtuple("Old", "a b")(1, [NOON]), [1, ["2024-02-29T12:00:00Z"]]),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, {"a": [1]}), {"a": [1]}),
        (type("Name", (str,), {})("x"), "x"),
        (type("Share", (float,), {})(0.5), 0.5),
        (enum.IntEnum("Number", {"ONE": 1})(1), 1),  # type: ignore[call-overload]
        (Leaf("l", NOON), {"name": "l", "at": "2024-02-29T12:00:00Z", "scores": []}),
        ({"e": CREATED}, {"e": {"type": "Created", "incident_id": "INC-1", "severity": "critical",
                               "incident_type": "database", "title": "db down"}}),
        (MODEL, {"number": 1, "at": "2024-02-29T12:00:00Z", "price": "1.10", "tags": ["a"], "raw": "abc",
                 "reNamed": "y"}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_have_one_form(codec: Codec, value: Any, text: Any) -> None:
    assert document(codec, value)["payload"] == text
    assert document(codec, [{"deep": value}])["payload"] == [{"deep": text}]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (object(), r"builtins\.object cannot be written as JSON \(at payload\)"),
        ({"a": [1, object()]}, r"builtins\.object cannot be written as JSON \(at payload\.a\[1\]\)"),
        (Leaf("l", NOON, [math.nan]), r"nan is not a JSON number \(at payload\.scores\[0\]\)"),
        (Order(2**64, NOON, []), r"beyond 64 bits \(at payload\.number\)"),
        ({"a": {1: 2}}, r"the key 1 is not text \(at payload\.a\)"),
        ({"at": datetime(2024, 1, 1)}, "has no time zone"),
        ({"f": math.inf}, r"inf is not a JSON number \(at payload\.f\)"),
        ("\ud800", "surrogate"),
        (AlertCorrelated("INC-1", "\udfff", 1.0), "surrogate"),
        (timedelta(1), r"datetime\.timedelta"),
        (lambda: None, "function"),
        ((n for n in (1, 2)), "generator"),
        (1j, "complex"),
        (IncidentCreated, "type"),
        (pydantic.create_model("Bad", x=(float, math.nan))(), r"nan is not a JSON number \(at payload\.x\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_is_named_with_its_place(codec: Codec, message: Any, words: str) -> None:
    with pytest.raises(SerializationError, match=words) as caught:
        encode(codec, message)

    assert caught.value.code == "encode"
    assert caught.value.envelope.payload is message


def test_a_message_that_holds_itself_is_refused(codec: Codec) -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    leaf = Leaf("l", NOON)
    leaf.scores.append(leaf)  # type: ignore[arg-type]

    for message in (loop, leaf):
        with pytest.raises(SerializationError):
            encode(codec, message)


def test_what_can_be_written_in_an_envelope_can_be_read(codec: Codec) -> None:
    deepest: Any = 1
    for _ in range(jsontext.MAX_DEPTH - 1):
        deepest = [deepest]

    assert round_trip(codec, deepest, list) == deepest
    with pytest.raises(SerializationError, match="nested more than 127 levels"):
        encode(codec, [deepest])


def test_an_event_of_the_users_own_travels_as_its_class(codec: Codec) -> None:
    @attrs.frozen
    class IncidentMerged(IncidentEvent):
        _tag = "Merged"
        into: str

    event = IncidentMerged("INC-1", "INC-2")

    assert document(codec, event)["payload"] == {"type": "Merged", "incident_id": "INC-1", "into": "INC-2"}
    assert round_trip(codec, event, IncidentMerged) == event
    assert round_trip(codec, event, IncidentEvent) == UnknownIncidentEvent("Merged", "INC-1", {"into": "INC-2"})


# --- the lenient reader ---------------------------------------------------------------------------


def test_another_writers_envelope_is_read(codec: Codec) -> None:
    body = b"""{"metadata": {"message_id": "m", "timestamp": "2023-11-14T22:13:20Z", "region": "eu"}, "trace": 1,
        "payload": {"type": "Created", "new": 1, "incident_id": "I", "severity": "s", "incident_type": "t",
            "title": "x"}}"""

    envelope = decode(codec, body, IncidentCreated)

    assert envelope.payload == IncidentCreated("I", "s", "t", "x")
    assert envelope.metadata == MessageMetadata("m", None, 1_700_000_000, "", "1.0", {})


def test_missing_metadata_is_filled_with_what_the_broker_knows(codec: Codec) -> None:
    metadata = decode(codec, b'{"metadata": {"source": "s"}, "payload": {}}', dict).metadata

    assert metadata == MessageMetadata("llm-im.t-0-7", None, 1_700_000_000, "s", "1.0", {})


@pytest.mark.parametrize("body", [b'{"a": 1}', b'{"payload": 1}', b'{"metadata": {"x": 1}, "payload": 2, "a": 1}'])
def test_json_without_an_envelope_is_the_payload(codec: Codec, body: bytes) -> None:
    envelope = codec.decoder(dict)(received(body, {"x-correlation-id": "c-1"}))

    assert envelope is not SKIPPED
    assert envelope.payload == jsontext.loads(body)
    assert envelope.metadata == MessageMetadata("llm-im.t-0-7", "c-1", 1_700_000_000, "", "1.0", {})


def test_a_bare_event_is_read(codec: Codec) -> None:
    body = b'{"type": "Resolved", "incident_id": "INC-1", "resolution_time_secs": 60.0}'

    assert decode(codec, body, IncidentEvent).payload == RESOLVED


def test_a_whole_number_may_be_written_as_a_float(codec: Codec) -> None:
    body = b'{"number": 3.0, "when": "2024-02-29T12:00:00Z", "lines": []}'

    assert repr(decode(codec, body, Order).payload.number) == "3"


def test_a_tombstone_is_skipped(codec: Codec) -> None:
    for message_type in (dict, bytes, IncidentEvent):
        assert codec.decoder(message_type)(received(None)) is SKIPPED


@pytest.mark.parametrize(
    ("message_type", "skipped"),
    [
        (IncidentCreated, ["Resolved", "Merged"]),
        (IncidentCreated | IncidentResolved, ["Escalated", "Merged"]),
        (UnknownIncidentEvent, ["Created", "Resolved"]),
        (IncidentCreated | UnknownIncidentEvent, ["Resolved"]),
    ],
)
def test_variants_that_are_not_asked_for_are_skipped(codec: Codec, message_type: Any, skipped: list[str]) -> None:
    read = codec.decoder(message_type)

    for tag in skipped:  # nobody looks further than the tag
        assert read(received(b'{"metadata": {"message_id": "m"}, "payload": {"type": "%s"}}' % tag.encode())) is SKIPPED
        assert read(received(b'{"type": "%s"}' % tag.encode())) is SKIPPED


def test_the_raw_body_is_not_decoded(codec: Codec) -> None:
    body = encode(codec, CREATED, correlation_id="c-1").body

    envelope = decode(codec, body, bytes)

    assert envelope.payload is body
    assert (envelope.metadata.source, envelope.metadata.correlation_id) == ("tests", "c-1")
    for raw in (b"\xff\x00", b"", b"5", b'{"a": 1}', b'{"metadata": 5, "payload": 1}'):
        envelope = decode(codec, raw, bytes)
        assert (envelope.payload, envelope.metadata.message_id) == (raw, "llm-im.t-0-7")


EVENT = '{"type": "%s", "incident_id": "I", %s}'
LEAF = '{"name": "l", "at": "2024-02-29T12:00:00Z", "scores": %s}'
ORDER = '{"number": %s, "when": "2024-02-29T12:00:00Z", "lines": %s}'


@pytest.mark.parametrize(
    ("payload", "message_type", "words"),
    [
        ('{"type": "Created", "incident_id": "I"}', IncidentEvent, "as IncidentEvent: Created without 'severity'"),
        ('{"incident_id": "I"}', IncidentCreated, 'an object with a text "type"'),
        ('{"type": 5}', IncidentEvent, 'an object with a text "type"'),
        ('{"type": ["Created"]}', IncidentEvent, 'an object with a text "type"'),
        ("[]", IncidentEvent, 'an object with a text "type"'),
        ('{"type": "Merged"}', IncidentEvent, "incident_id None is not allowed"),
        (EVENT % ("Resolved", '"resolution_time_secs": "60"'), IncidentEvent, "resolution_time_secs '60'"),
        (EVENT % ("PlaybookCompleted", '"playbook_id": "p", "success": 1'), IncidentEvent, "success 1"),
        ("[1]", dict, "not readable as dict: expected an object, not \\[1\\]"),
        ("{}", list, "expected an array"),
        ("5", str, "expected text, not 5"),
        ('"abc"', list[str], "expected an array, not 'abc'"),
        ('{"a": 1}', list[str], "expected an array"),
        ('"abc"', set[str], "expected an array"),
        ('[["a", 1]]', dict[str, int], "expected an object"),
        ('{"name": "l"}', Leaf, "required field missing: 'at' @ payload"),
        ('{"name": null, "at": "2024-02-29T12:00:00Z"}', Leaf, "expected text, not None @ payload.name"),
        ('{"name": "l", "at": "2024-02-29T12:00:00"}', Leaf, "has no UTC offset @ payload.at"),
        ('{"name": "l", "at": 5}', Leaf, "expected text, not 5 @ payload.at"),
        (LEAF % '"12"', Leaf, "expected an array, not '12' @ payload.scores"),
        (LEAF % '["1"]', Leaf, "expected a number, not '1' @ payload.scores\\[0\\]"),
        (ORDER % ('true', '[]'), Order, "expected a whole number, not True"),
        (ORDER % ('1.5', '[]'), Order, "expected a whole number, not 1.5"),
        (ORDER % ('1', '[], "done": "false"'), Order, "expected true or false"),
        (ORDER % ('1', '["x"]'), Order, "expected an object, not 'x' @ payload.lines\\[0\\]"),
        ("[]", PartlyTyped, "expected an object"),
        ("[]", Leaf, "expected an object"),
        ('"x"', uuid.UUID, "badly formed hexadecimal UUID"),
        ('"x"', Decimal, "expected a decimal number as text"),
        ("true", Decimal, "expected a decimal number as text"),
        ('"medium"', Level, "medium"),
        ('{"number": "1"}', Model, "number"),
        ("[]", Model, "Model"),
        ('[{"type": "Merged", "incident_id": "I"}]', list[IncidentCreated], "a Merged event in place of"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("enveloped", [True, False])
def test_what_cannot_be_read_carries_its_bytes_and_says_why(
    codec: Codec, payload: str, message_type: Any, words: str, enveloped: bool
) -> None:
    body = (f'{{"metadata": {{"message_id": "m"}}, "payload": {payload}}}' if enveloped else payload).encode()

    with pytest.raises(SerializationError, match=words) as caught:
        codec.decoder(message_type)(received(body))

    assert (caught.value.code, caught.value.data) == ("decode", body)


@pytest.mark.parametrize("body", [b"", b"not json", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_bytes_that_are_not_json_are_an_error(codec: Codec, body: bytes) -> None:
    with pytest.raises(SerializationError, match="not readable as JSON") as caught:
        codec.decoder(Any)(received(body))

    assert caught.value.data == body


@pytest.mark.parametrize(
    "message_type",
    [
        object, type("Plain", (), {}), list[type("Plain", (), {})], "IncidentCreated", 5, {"a": int},
        Callable[[int], int], bytearray,
        subprocess.Popen, attrs.make_class("Holder", {"lock": attrs.field(type=subprocess.Popen)}), [],
    ],
    ids=str,
)  # fmt: skip
def test_a_type_that_nothing_can_be_read_as_is_refused_at_once(codec: Codec, message_type: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be decoded"):
        codec.decoder(message_type)


# --- the user's own converter ---------------------------------------------------------------------


@attrs.define
class Money:
    cents: int


@attrs.define
class Bill:
    total: Money
    at: datetime
    id: uuid.UUID


def test_hooks_of_the_users_converter_are_honoured_both_ways(json: jsontext.JsonText) -> None:
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Money, lambda money: f"{money.cents} ct")
    converter.register_structure_hook(Money, lambda text, _: Money(int(text.split()[0])))
    converter.register_unstructure_hook(datetime, datetime.timestamp)
    converter.register_structure_hook(datetime, lambda number, _: datetime.fromtimestamp(number, UTC))
    codec = Codec(source="tests", converter=converter, json=json)
    bill = Bill(Money(250), NOON, uuid.UUID(int=1))

    assert document(codec, bill)["payload"] == {
        "total": "250 ct", "at": NOON.timestamp(), "id": "00000000-0000-0000-0000-000000000001",
    }  # fmt: skip
    assert document(codec, {"b": [Money(1), NOON]})["payload"] == {"b": ["1 ct", NOON.timestamp()]}
    assert round_trip(codec, bill, Bill) == bill
    assert round_trip(codec, CREATED, IncidentEvent) == CREATED


def test_a_hook_for_a_class_that_nobody_else_knows(json: jsontext.JsonText) -> None:
    class Plain:
        def __init__(self, text: str) -> None:
            self.text = text

    converter = cattrs.Converter()
    converter.register_unstructure_hook(Plain, lambda plain: {"plain": plain.text})
    converter.register_structure_hook(Plain, lambda value, _: Plain(value["plain"]))
    codec = Codec(source="tests", converter=converter, json=json)

    assert round_trip(codec, Plain("x"), Plain).text == "x"
    assert round_trip(codec, [Plain("x")], list[Plain])[0].text == "x"


def test_a_preconfigured_converter_keeps_its_own_forms(json: jsontext.JsonText) -> None:
    codec = Codec(source="tests", converter=cattrs.preconf.json.make_converter(), json=json)

    assert document(codec, NOON)["payload"] == NOON.isoformat()
    assert round_trip(codec, Leaf("l", NOON, [1.0]), Leaf) == Leaf("l", NOON, [1.0])


def test_the_users_converter_is_not_changed() -> None:
    converter = cattrs.Converter()
    Codec(source="tests", converter=converter)

    with pytest.raises(cattrs.StructureHandlerNotFoundError):
        converter.structure("2024-02-29", date)


@pytest.mark.parametrize("error", [KeyError("k"), ZeroDivisionError("z"), ExceptionGroup("g", [ValueError("v")])])
def test_whatever_a_hook_raises_becomes_our_error(error: Exception) -> None:
    def fail(*_: Any) -> Any:
        raise error

    converter = cattrs.Converter()
    converter.register_unstructure_hook(Money, fail)
    converter.register_structure_hook(Money, fail)
    codec = Codec(source="tests", converter=converter)

    with pytest.raises(SerializationError) as caught:
        encode(codec, Money(1))
    assert caught.value.__cause__ is error
    with pytest.raises(SerializationError) as caught:
        codec.decoder(Money)(received(b"1"))
    assert caught.value.__cause__ is error


# --- the public helpers ---------------------------------------------------------------------------


def test_json_text_of_a_message_is_its_payload() -> None:
    text = to_json(RESOLVED)

    assert text == '{"type":"Resolved","incident_id":"INC-1","resolution_time_secs":60}'
    assert from_json(text, IncidentResolved) == RESOLVED
    assert from_json(text.encode(), IncidentEvent) == RESOLVED
    assert from_json(to_json(tree()), Tree) == tree()
    assert from_json(to_json(b"\x00"), bytes) == b"\x00"


def test_json_text_of_an_envelope_is_the_whole_of_it() -> None:
    envelope = MessageEnvelope.new(RESOLVED, correlation_id="c", source="s")

    text = to_json(envelope)

    assert set(jsontext.loads(text.encode())) == {"metadata", "payload"}
    assert from_json(text, MessageEnvelope[IncidentResolved]) == envelope
    assert from_json(text, MessageEnvelope[IncidentEvent]) == envelope


@pytest.mark.parametrize(
    ("text", "message_type", "words"),
    [
        ("{", dict, "not readable as JSON"),
        ('"\ud800"', str, "not readable as JSON"),
        ("{}", MessageEnvelope[dict], "expected an envelope"),
        ('{"type": "Merged", "incident_id": "I"}', IncidentResolved, "another variant"),
    ],
)
def test_text_that_is_something_else_is_refused(text: str, message_type: Any, words: str) -> None:
    with pytest.raises(SerializationError, match=words) as caught:
        from_json(text, message_type)

    assert caught.value.code == "decode"


def test_what_cannot_be_written_as_text_is_refused() -> None:
    with pytest.raises(SerializationError, match=r"builtins\.object"):
        to_json(object())
    with pytest.raises(SerializationError, match="nan"):
        to_json(MessageEnvelope.new(math.nan))


def test_neither_pydantic_nor_asyncio_is_imported() -> None:
    code = (
        "import sys; from incident_messaging.codec import Codec; from incident_messaging.record import Record; "
        "c = Codec(source='s'); c.decoder(dict); r = Record.__new__(Record); "
        "c.write(r, {'a': 1}, 't', None, None, None); assert r.body; print({'pydantic', 'asyncio'} & set(sys.modules))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert result.stdout.strip() == "set()"


def test_without_the_extra_the_standard_library_is_used() -> None:
    code = (
        "import sys; sys.modules['orjson'] = None; from incident_messaging import codec, jsontext\n"
        "print(jsontext.select().name, codec.to_json({'a': 1}))\n"
        "try: jsontext.select('orjson')\n"
        "except ImportError as error: print(error)"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert result.stdout.splitlines() == [
        'json {"a":1}',
        "orjson is not installed: pip install 'incident-messaging[speed]'",
    ]
