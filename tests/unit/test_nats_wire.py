"""Records on the wire of NATS, patterns, and the credit of a subscription."""

from __future__ import annotations

import re
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incident_messaging.backends.nats import wire
from incident_messaging.backends.nats.consume import is_part
from incident_messaging.backends.nats.credit import Credit
from incident_messaging.record import Record
from incident_messaging.topics import regex

TEXT = st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True).filter(
    lambda name: not name.lower().startswith("nats-") and name.lower() != "x-key"
)


def back(record: Record) -> tuple[dict[str, str], str | None, str]:
    message = wire.Message("t.x", wire.encode_headers(record), record.body)
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


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (b"x-key: a", "a"),
        (b"a: b\r\nx-key:   a  \r\nc: d", "a"),
        (b"x-key: a\r\nx-key: b", "b"),
        (b"x-key: a\r\nx-key:b", "b"),
        (b"x-key: a\r\n x-key : b", "b"),
        (b"x-key:a\r\nx-key: b", "b"),
        (b"x-key: a\r\nnot-the-x-key: b", "a"),
        (b"x-key: x-key: b", "x-key: b"),
        (b"x-key: %C3%A4", "\u00e4"),
        (b"X-Key: a", None),
        (b"about: x-key", None),
        (b"x-key: ", ""),
    ],
)
def test_a_key_is_what_its_last_header_says(lines: bytes, key: str | None) -> None:
    message = wire.Message("t.x", b"NATS/1.0\r\n%s\r\n\r\n" % lines, b"")
    assert (message.key, message.headers.get("x-key")) == (key, key)


def test_one_header_is_found_as_among_all() -> None:
    message = wire.Message("t.x", b"NATS/1.0\r\na: 1\r\na: 2\r\nb: a\r\nNats-Msg-Id: c\r\n\r\n", b"")
    assert [message.header(name) for name in ("a", "b", "c", "Nats-Msg-Id")] == ["2", "a", None, None]
    assert wire.Message("t.x", None, b"").header("a") is None


def test_few_names_are_remembered_and_long_ones_never() -> None:
    made: list[str] = []
    memory = wire._Memory(lambda name: made.append(name) or name.upper(), 8)
    assert [memory[name] for name in ("a", "a", "n" * 9, "n" * 9)] == ["A", "A", "N" * 9, "N" * 9]
    assert made == ["a", "n" * 9, "n" * 9]
    for number in range(3 * wire._REMEMBERED):
        memory[str(number)]
    assert len(memory) <= wire._REMEMBERED


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
    assert wire.told_by(reply) == (3, 41, 7, 1700000000500000000, 9)


def test_another_reply_subject_is_refused() -> None:
    with pytest.raises(ValueError, match="not a JetStream"):
        wire.told_by("_INBOX.x")


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
    where, again, error = wire.acknowledgement(body)
    position = where and where()
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


def arrivals(*sizes: int) -> deque[wire.Message]:
    return deque(wire.Message("t", None, b"x" * size) for size in sizes)


def test_credit_lets_one_through_however_large() -> None:
    credit = Credit(3, 100)
    large = arrivals(1000, 1)
    (taken,) = credit.take(large)
    assert (taken.size, len(large)) == (1000, 1)
    assert credit.take(large) == []
    credit.give_back([taken])
    assert (credit.used, credit.used_bytes) == (0, 0)


def test_credit_bounds_bytes_and_number_in_order() -> None:
    credit = Credit(3, 100)
    assert [one.size for one in credit.take(arrivals(50, 51, 1))] == [50]
    assert [one.size for one in credit.take(arrivals(10, 10, 10))] == [10, 10]
    assert not credit.has_room(1)


def test_credit_does_not_pass_over_what_may_be_a_suspect() -> None:
    waiting = arrivals(1, 1, 1)
    waiting[1].known = False
    assert len(Credit(3, 100).take(waiting)) == 1
    assert len(waiting) == 2
