"""What a dead letter is known by."""

from __future__ import annotations

import pytest

from incident_messaging.consuming.graves import Grave, dead_letter
from incident_messaging.record import Position, Received, Record


def buried(position: Position, fallback_id: str = "f-1") -> Record:
    received = Received(
        topic="t.orders", body=b"{}", key=None, headers={}, raw_headers=(), position=position, timestamp=0.0,
        fallback_id=fallback_id,
    )  # fmt: skip
    grave = Grave.of(ValueError("no"), 3)
    return dead_letter(received, grave, topic="t.dead-letter", group="g", backend="nats")


@pytest.mark.parametrize(
    ("position", "dedup_id", "place"),
    [
        (Position(stream="T", sequence=7), "dlq:g:T:7", {"stream": "T", "sequence": "7"}),
        (
            Position(topic="t.orders", partition=2, offset=9),
            "dlq:g:t.orders-2-9",
            {"partition": "2", "offset": "9"},
        ),
        (Position(topic="t.orders"), "dlq:g:f-1", {}),  # core NATS keeps nothing, so there is no place
    ],
)
def test_where_the_original_was(position: Position, dedup_id: str, place: dict[str, str]) -> None:
    letter = buried(position)
    assert letter.dedup_id == dedup_id
    names = {name.removeprefix("x-dlq-original-"): text for name, text in letter.headers.items() if "original" in name}
    assert names == {"topic": "t.orders", **place}


def test_two_without_a_place_are_two() -> None:
    first, second = (buried(Position(topic="t.orders"), name) for name in ("a", "b"))
    assert first.dedup_id != second.dedup_id
