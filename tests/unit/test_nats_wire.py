"""Records on the wire of NATS, patterns, and the credit of a subscription."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incident_messaging.backends.nats import wire
from incident_messaging.backends.nats.consume import Credit, is_part
from incident_messaging.record import Record
from incident_messaging.topics import regex

TEXT = st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True).filter(
    lambda name: not name.lower().startswith("nats-") and name.lower() != "x-key"
)


def back(record: Record) -> tuple[dict[str, str], str | None, str]:
    message = wire.received("t.x", wire.encode_headers(record), record.body, None, 1.0)
    return dict(message.headers), message.key, message.fallback_id


def survives(text: str) -> str:
    """Text as surrogateescape reads its bytes again: escaped bytes that make a character are one."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


@given(
    headers=st.dictionaries(NAME, TEXT, max_size=5),
    key=st.none() | TEXT,
    dedup_id=st.text("abc:.-é", min_size=1),
)
def test_headers_key_and_id_survive_the_wire(headers: dict[str, str], key: str | None, dedup_id: str) -> None:
    record = Record(topic="t.x", body=b"", headers=headers, key=key, dedup_id=dedup_id)
    block = wire.encode_headers(record)
    assert block.startswith(b"NATS/1.0\r\n")
    assert block.endswith(b"\r\n\r\n")
    assert all(0x20 <= byte < 0x7F for byte in block.replace(b"\r\n", b""))
    found, found_key, found_id = back(record)
    found.pop("x-key", None)
    assert found == {name: survives(value) for name, value in headers.items()}
    assert found_key == (None if key is None else survives(key))
    assert found_id == dedup_id


def test_a_header_cannot_break_the_block() -> None:
    record = Record(
        topic="t.x",
        body=b"",
        headers={"a: b\r\nc": "v"},
        dedup_id="1",
        raw_headers=[("x\r\ny", b"one\r\ntwo: three")],
    )
    assert len(wire.split_headers(wire.encode_headers(record))) == 3


def test_a_foreign_writers_per_cent_sign_is_left_alone() -> None:
    assert wire.decode(b"100% sure") == "100% sure"


def test_commands() -> None:
    assert wire.publish_command("a.b", "", b"", b"xy") == b"PUB a.b  2\r\nxy\r\n"
    assert wire.publish_command("a.b", "r", b"NATS/1.0\r\n\r\n", b"xy") == b"HPUB a.b r 12 14\r\nNATS/1.0\r\n\r\nxy\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.S.d.3.41.7.1700000000500000000.9",
        "$JS.ACK.hub.acchash.S.d.3.41.7.1700000000500000000.9",
        "$JS.ACK.hub.acchash.S.d.3.41.7.1700000000500000000.9.random",
    ],
)
def test_what_a_reply_subject_says(reply: str) -> None:
    assert wire.metadata(reply) == wire.Metadata("S", 41, 1700000000.5, 9, 7, 3)


def test_another_reply_subject_is_refused() -> None:
    with pytest.raises(ValueError, match="not a JetStream"):
        wire.metadata("_INBOX.x")


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"NATS/1.0 503\r\n\r\n", ("503", "", {})),
        (
            b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Stream: 8\r\n\r\n",
            ("100", "Idle Heartbeat", {"Nats-Last-Stream": "8"}),
        ),
        (b"NATS/1.0\r\na: b\r\n\r\n", ("", "", {})),
        (None, ("", "", {})),
    ],
)
def test_status_messages(block: bytes | None, expected: tuple[str, str, dict[str, str]]) -> None:
    assert wire.status_of(block) == expected


@pytest.mark.parametrize(
    ("body", "sequence", "duplicate", "words"),
    [
        (b'{"stream":"S","seq":5}', 5, False, None),
        (b'{"stream":"S", "seq":5,"duplicate": true}', 5, True, None),
        (b'{"stream":"S","domain":"hub","seq":5}', 5, False, None),
        (
            b'{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"S","seq":0}',
            None,
            False,
            "maximum bytes exceeded",
        ),
    ],
)
def test_acknowledgements(body: bytes, sequence: int | None, duplicate: bool, words: str | None) -> None:
    position, again, error = wire.acknowledgement(body)
    assert (position.sequence if position else None, again, error.get("description")) == (
        sequence,
        duplicate,
        words,
    )


LEVELS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4)
PATTERNS = st.builds(lambda levels, rest: ".".join([*levels, *rest]), LEVELS, st.sampled_from([[], [">"]]))
SUBJECTS = [
    ".".join(levels) for levels in ("a", "b", "c", "aa", "ab", "ba", "ca", "aab", "abc", "cab", "aaaa", "abcab")
]


@given(PATTERNS, PATTERNS)
def test_a_part_matches_nothing_that_the_whole_does_not(inner: str, outer: str) -> None:
    def matches(pattern: str) -> set[str]:
        found: re.Pattern[str] = regex(pattern)
        return {subject for subject in SUBJECTS if found.fullmatch(subject)}

    if is_part(inner, outer):
        assert matches(inner) <= matches(outer)
    assert is_part(inner, inner)
    assert is_part(inner, ">")


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("a.b", "a.*", True),
        ("a.*", "a.b", False),
        ("a.>", "a.*", False),
        ("a.b.c", "a.>", True),
        ("a", "a.>", False),
    ],
)
def test_parts(inner: str, outer: str, expected: bool) -> None:
    assert is_part(inner, outer) is expected


def test_credit_lets_one_through_however_large() -> None:
    credit = Credit(3, 100)
    assert credit.has_room(1000)
    credit.take(1000)
    assert not credit.has_room(1)
    credit.give_back(1000)
    credit.take(50)
    assert credit.has_room(50)
    assert not credit.has_room(51)
    credit.take(10)
    credit.take(10)
    assert not credit.has_room(1)
