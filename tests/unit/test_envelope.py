"""Envelopes and their metadata."""

from __future__ import annotations

import copy
import pickle
import time
import uuid
from datetime import UTC, datetime

import pytest

from incident_messaging.envelope import MessageEnvelope, MessageMetadata, is_envelope, new_message_id, read_metadata


def test_message_ids_are_random_uuids_of_version_4() -> None:
    ids = [new_message_id() for _ in range(2000)]

    assert len(set(ids)) == 2000
    for text in ids:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
    assert {text[19] for text in ids} == set("89ab")


def test_a_new_envelope_is_dated_and_named() -> None:
    before = int(time.time())
    envelope = MessageEnvelope.new({"a": 1}, correlation_id="c-1", source="billing")

    metadata = envelope.metadata
    assert envelope.payload == {"a": 1}
    assert uuid.UUID(metadata.message_id).version == 4
    assert before <= metadata.timestamp <= time.time()
    assert (metadata.correlation_id, metadata.source, metadata.version) == ("c-1", "billing", "1.0")
    assert metadata.headers == {}


def test_a_message_id_of_ones_own_is_kept_and_all_else_has_a_default() -> None:
    metadata = MessageEnvelope.new("x", message_id="m-1").metadata

    assert (metadata.message_id, metadata.correlation_id, metadata.source) == ("m-1", None, "")


def test_envelopes_share_nothing() -> None:
    one, two = MessageEnvelope.new("x"), MessageEnvelope.new("x")
    one.metadata.headers["a"] = "b"

    assert two.metadata.headers == {}
    assert one.metadata.message_id != two.metadata.message_id


def test_metadata_may_be_changed_but_not_misspelt() -> None:
    metadata = MessageMetadata()
    metadata.correlation_id = "c-2"

    assert metadata.correlation_id == "c-2"
    with pytest.raises(AttributeError):
        metadata.corelation_id = "c-3"  # type: ignore[attr-defined]


def test_the_timestamp_is_also_an_aware_datetime() -> None:
    assert MessageMetadata(timestamp=1_700_000_000).time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_an_envelope_pickles_and_copies_whole() -> None:
    envelope = MessageEnvelope.new({"a": [1]}, correlation_id="c")

    assert pickle.loads(pickle.dumps(envelope)) == envelope == copy.deepcopy(envelope)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"metadata": {"message_id": "m"}, "payload": 1}, True),
        ({"metadata": {"message_id": "m"}, "payload": None, "trace": {}}, True),
        ({"metadata": {}, "payload": 1}, True),
        ({"metadata": {"source": "other"}, "payload": {"a": 1}}, True),
        ({"metadata": {"source": "other"}, "payload": 1, "name": "pod"}, False),
        ({"metadata": {"message_id": 5}, "payload": 1, "name": "pod"}, False),
        ({"metadata": {"message_id": "m"}}, False),
        ({"metadata": "m", "payload": 1}, False),
        ({"payload": 1}, False),
        ([{"metadata": {"message_id": "m"}, "payload": 1}], False),
        ("payload", False),
        (None, False),
    ],
)
def test_an_envelope_is_told_from_a_payload(document: object, expected: bool) -> None:
    assert is_envelope(document) is expected


def test_metadata_is_read_as_it_was_written() -> None:
    fields = {
        "message_id": "m", "correlation_id": "c", "timestamp": 7, "source": "s", "version": "2.0",
        "headers": {"a": "b"},
    }  # fmt: skip

    assert read_metadata(fields, "spare", 99.0) == MessageMetadata("m", "c", 7, "s", "2.0", {"a": "b"})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"message_id": "", "correlation_id": None, "timestamp": None, "source": None, "version": None, "headers": None},
        {"message_id": 5, "correlation_id": 6, "timestamp": True, "source": [], "version": 1.0, "headers": ["a"]},
        {"timestamp": -1, "headers": {"a": 1, "b": None}, "unknown": {"field": 1}},
        {"timestamp": "yesterday"},
        {"timestamp": "2023-11-14T22:13:20"},
        {"timestamp": 10**18},
    ],
)
def test_missing_and_unusable_metadata_is_filled(fields: dict[str, object]) -> None:
    assert read_metadata(fields, "spare", 99.7) == MessageMetadata("spare", None, 99, "", "1.0", {})


@pytest.mark.parametrize(
    "timestamp",
    [
        1_700_000_000,
        1_700_000_000.9,
        "2023-11-14T22:13:20Z",
        "2023-11-14t22:13:20z",
        "2023-11-14 22:13:20+00:00",
        "2023-11-14T23:13:20.123456789+01:00",
    ],
)
def test_a_timestamp_is_read_in_either_form(timestamp: object) -> None:
    assert read_metadata({"timestamp": timestamp}, "m", 0).timestamp == 1_700_000_000


def test_of_headers_the_text_is_kept() -> None:
    assert read_metadata({"headers": {"a": "b", "n": 1}}, "m", 0).headers == {"a": "b"}
