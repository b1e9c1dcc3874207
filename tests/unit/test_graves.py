"""What a dead letter is known by."""

from __future__ import annotations

import pytest

from incident_messaging.consuming.graves import BODY_CUT, Grave, dead_letter, shed
from incident_messaging.record import Position, Received, Record


def buried(position: Position, body: bytes = b"{}", count: str = "0") -> Record:
    received = Received(
        topic="t.orders", body=body, key="k", headers={"x-redrive-count": count}, raw_headers=[("shift", b"night")],
        position=position, timestamp=0.0, fallback_id="f-1",
    )  # fmt: skip
    grave = Grave.of(ValueError("no"), 3)
    return dead_letter(received, grave, topic="t.dead-letter", group="g", backend="nats")


@pytest.mark.parametrize(
    ("position", "place"),
    [
        (Position(stream="T", sequence=7), {"stream": "T", "sequence": "7"}),
        (Position(topic="t.orders", partition=2, offset=9), {"partition": "2", "offset": "9"}),
        (Position(topic="t.orders"), {}),  # core NATS keeps nothing, so there is no place
    ],
)
def test_where_the_original_was(position: Position, place: dict[str, str]) -> None:
    headers = buried(position).headers
    names = {name.removeprefix("x-dlq-original-"): text for name, text in headers.items() if "original" in name}
    assert names == {"topic": "t.orders", **place}


def test_nobody_can_tell_a_letters_id_beforehand() -> None:
    first, second = (buried(Position(stream="T", sequence=7)) for _ in range(2))
    assert first.dedup_id != second.dedup_id
    assert first.dedup_id.startswith("dlq:g:")


@pytest.mark.parametrize(("said", "count"), [("2", "2"), ("-1", "0"), ("\udcff" * 9, "0"), ("9" * 5_000, "0")])
def test_how_often_it_was_redriven_is_a_number(said: str, count: str) -> None:
    assert buried(Position(stream="T", sequence=7), count=said).headers["x-dlq-redrive-count"] == count


def test_what_does_not_fit_is_shed_in_turn() -> None:
    body = bytes(range(250)) * 200
    records = [buried(Position(stream="T", sequence=7), body)]
    while (smaller := shed(records[-1])) is not None:
        records.append(smaller)
    assert len({record.dedup_id for record in records}) == 1
    whole = [record for record in records if record.body == body]
    assert [len(record.headers) for record in whole] == [11, 10, 9, 9, 9]
    assert [bool(record.raw_headers) for record in whole] == [True, True, True, False, False]
    assert [record.key for record in whole] == ["k", "k", "k", "k", None]
    cut = records[len(whole) :]
    assert len(cut[0].body) == 50_000 - 16_384, "no more than the headers may need"
    assert [len(record.body) for record in (cut[1], cut[-1])] == [16_808, 32]
    assert all(body.startswith(record.body) and record.headers[BODY_CUT] == "50000" for record in cut)
