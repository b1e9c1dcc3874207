"""Headers, dead letters and JSON that somebody hostile has written: read, refused with one error, never more."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fuzz_corpus import corpus
from fuzz_writers import block_of
from hypothesis import given, settings
from hypothesis import strategies as st

from incident_messaging import (
    IncidentEvent,
    MessageEnvelope,
    MessagingBackend,
    SerializationError,
    from_json,
    jsontext,
)
from incident_messaging.backends.kafka.records import header_pairs
from incident_messaging.backends.nats import wire
from incident_messaging.codec import SKIPPED, Codec
from incident_messaging.consuming.graves import Grave, dead_letter, shed
from incident_messaging.consuming.letters import Filter, read_letter
from incident_messaging.record import Position, Received

#: A machine that is busy with brokers is no reason to fail.
UNHURRIED = settings(deadline=None)
CODECS = [Codec(source="tests", json=jsontext.select(name)) for name in ("json", "orjson")]  # type: ignore[arg-type]

OURS = [
    *("Nats-Msg-Id", "nats-x", "NATS-Expected-Stream", "x-key", "X-Key", "x-message-id", "x-correlation-id"),
    *("x-redrive-group", "x-redrive-count", "traceparent", "X-DLQ-Group", "content-type"),
    *(f"x-dlq-{name}" for name in ("original-topic", "original-partition", "original-offset", "original-stream")),
    *("x-dlq-original-sequence", "x-dlq-failed-at", "x-dlq-redrive-count", "x-dlq-attempts"),
]
names = st.sampled_from(OURS).map(str.encode) | st.binary(max_size=12)
values = st.binary(max_size=40) | st.sampled_from(
    [b"9" * 5_000, b"-1", b"%zz%00", "٣".encode(), b"2026-13-01T00:00:00Z"]
)
blocks = st.lists(st.tuples(names, values), max_size=8).map(
    lambda pairs: b"NATS/1.0\r\n" + b"".join(name + b":" + value + b"\r\n" for name, value in pairs) + b"\r\n"
) | st.binary(max_size=80)


def came(block: bytes | None, body: bytes = b"x") -> Received:
    """A message as NATS hands it over."""
    message = wire.Message("p.orders", block, body)
    message.position, message.timestamp = Position(stream="S", sequence=7), 1.0
    return message


def with_headers(headers: dict[str, str], pairs: list[Any]) -> Received:
    position = Position(topic="p.orders", partition=0, offset=7)
    return Received(
        topic="p.orders", body=b"x", key=None, headers=headers, raw_headers=pairs, position=position, timestamp=1.0,
        fallback_id="7",
    )  # fmt: skip


def buried(message: Received) -> Any:
    return dead_letter(message, Grave.of(ValueError("no"), 1), topic="p.dead-letter", group="g", backend="nats")


def decoded(decode: Any, message: Received) -> Any:
    """The envelope, or the bytes that the error carries."""
    try:
        return decode(message)
    except SerializationError as error:
        return error.data


@given(blocks, st.binary(max_size=20))
@UNHURRIED
def test_any_header_block_is_read_and_any_message_with_it_is_decoded_or_refused(block: bytes, body: bytes) -> None:
    message = came(block, body)
    assert message.key == message.headers.get("x-key")
    assert all(message.header(name) == message.headers.get(name) for name in OURS)
    wire.status_of(block)
    for codec in CODECS:
        for kind in (bytes, IncidentEvent, dict):
            outcome = decoded(codec.decoder(kind), message)
            assert outcome is SKIPPED or outcome == body or outcome.metadata.message_id


@given(blocks)
@UNHURRIED
def test_the_dead_letter_of_any_message_is_one_header_block_of_our_own_words(block: bytes) -> None:
    message = came(block)
    record = buried(message)
    written = wire.encode_headers(record)
    lines = written.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert len(lines) == 1 + 1 + len(record.headers) + (record.key is not None) + len(record.raw_headers)
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    brokers_own = [name for name, _ in wire.split_headers(written) if name.lower().startswith("nats-")]
    assert brokers_own == ["Nats-Msg-Id"]
    letter = read_letter(came(written), MessagingBackend.NATS, "p")
    assert (letter.topic, letter.group, letter.body, letter.key) == ("orders", "g", b"x", message.key)
    assert (letter.original.stream, letter.original.sequence) == ("S", 7)
    assert Filter(topic="orders", group="g").takes(letter)
    while (smaller := shed(record)) is not None:
        assert len(wire.encode_headers(smaller)) < len(wire.encode_headers(record))
        record = smaller


@given(st.lists(st.tuples(st.sampled_from(OURS) | st.text(max_size=5), st.none() | st.binary(max_size=20)), max_size=8))
@UNHURRIED
def test_of_raw_headers_kafka_gets_those_that_are_nobodys_and_ours_behind_them(pairs: list[Any]) -> None:
    record = buried(with_headers({}, pairs))
    written = header_pairs(record)
    kept = [name for name, _ in written[: len(record.raw_headers)]]
    assert not any(name.lower().startswith(("x-dlq-", "x-redrive-", "nats-", "x-key")) for name in kept)
    assert [name for name, _ in written[len(kept) :]] == list(record.headers)


@given(st.dictionaries(st.sampled_from(OURS), st.text(max_size=30) | st.just("9" * 5_000)))
@UNHURRIED
def test_a_forged_dead_letter_can_be_looked_at(headers: dict[str, str]) -> None:
    letter = read_letter(with_headers(headers, []), MessagingBackend.KAFKA, "p")
    assert letter.redrive_count >= 0
    Filter(topic="orders.*", exception="ValueError").takes(letter)


def test_all_of_the_corpus_has_one_outcome_with_both_readers_of_json() -> None:
    outcomes = []
    for codec in CODECS:
        decode = codec.decoder(IncidentEvent)
        messages = [came(block_of(one), one.body or b"") for one in corpus(seed=11, count=3_000)]
        outcomes.append([decoded(decode, message) for message in messages])
    assert [repr(outcome) for outcome in outcomes[0]] == [repr(outcome) for outcome in outcomes[1]]
    assert 500 < sum(type(outcome) is bytes for outcome in outcomes[0]) < 2_500


BOMBS = {
    "arrays": b"[" * 1_000_000,
    "closed arrays": b"[" * 500_000 + b"]" * 500_000,
    "objects": b'{"a":' * 200_000,
    "closed objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "one level too many": b"[" * 128 + b"]" * 128,
    "digits": b"9" * 10_000,
    "a million digits": b"-" + b"1" * 1_000_000,
    "digits of a fraction": b"0." + b"9" * 1_000_000 + b"e400",
    "an exponent": b"1e" + b"9" * 10_000,
    "NaN": b"NaN",
    "infinity": b"[1,-Infinity]",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a lone surrogate": b'"\\ud800"',
    "half a million escapes": b'"' + b"\\ud83d\\ude00" * 80_000 + b"\\ude00" + b'"',
    "surrogates as UTF-8": b'"\xed\xa0\x80"',
    "an overlong form": b'"\xc0\xaf"',
    "an open string": b'"' + b"\\u0061" * 160_000,
    "a control character": b'"\x00"',
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("place", ["alone", "in an envelope"])
def test_a_bomb_is_refused_at_once(name: str, place: str) -> None:
    bomb = BOMBS[name]
    data = (
        bomb
        if place == "alone"
        else b'{"metadata":{"message_id":"m"},"payload":{"type":"Created","incident_id":%s}}' % bomb
    )
    begun = time.process_time()
    for kind in (dict, list, str, IncidentEvent, MessageEnvelope[Any], dict[str, list[int]]):
        with pytest.raises(SerializationError) as caught:
            from_json(data, kind)
        assert (caught.value.code, caught.value.data) == ("decode", data)
        assert len(str(caught.value)) < 500, "an error's text repeats no megabytes"
    for codec in CODECS:
        with pytest.raises(SerializationError):
            codec.from_json(data, Any)
    assert time.process_time() - begun < 3.0


def test_of_a_key_that_comes_twice_the_last_counts_and_a_long_document_is_read() -> None:
    assert from_json('{"a":1,"a":2}', dict) == {"a": 2}
    long = {f"key-{number}": [number] * 3 for number in range(30_000)}
    assert from_json(json.dumps(long), dict) == long
