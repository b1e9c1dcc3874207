"""How much of what Kafka brought may be out, and what is read of a message when it is asked for."""

from __future__ import annotations

from typing import Any

from incident_messaging.backends.base import ConsumerSpec
from incident_messaging.backends.kafka.credit import OVERFLOW, Credit
from incident_messaging.backends.kafka.offsets import Ledger, Partition
from incident_messaging.backends.kafka.records import _PAIR, Arrival
from incident_messaging.record import Position

PLACE = ("t", 3)


class FakeMessage:
    """The client's own object, and which of its parts were asked for."""

    def __init__(self, offset: int, body: bytes | None = b"x", headers: Any = None) -> None:
        self.asked: list[str] = []
        self._parts = {
            "offset": offset, "value": body, "headers": headers, "key": b"k", "partition": 3, "timestamp": (1, 1_500),
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return lambda: self._parts[name]


def spec(prefetch: int, prefetch_bytes: int = 1_000) -> ConsumerSpec:
    return ConsumerSpec(
        topic="t", group="g", name="g:t", start="earliest", prefetch=prefetch, prefetch_bytes=prefetch_bytes
    )


def credit_of(prefetch: int, prefetch_bytes: int = 1_000) -> tuple[Credit, Partition]:
    ledger = Ledger()
    partition = ledger.assign(PLACE, 0)
    return Credit(ledger, spec(prefetch, prefetch_bytes)), partition


def offsets(taken: list[Arrival]) -> list[int]:
    return [arrival.offset for arrival in taken]


def test_what_is_beyond_the_credit_waits_until_somebody_acknowledges() -> None:
    credit, partition = credit_of(2)
    for offset in (0, 1, 1, 2, 0, 3):  # some come again
        credit.accept(FakeMessage(offset), partition)  # type: ignore[arg-type]
    first = credit.take()
    assert (offsets(first), credit.waiting, credit.room()) == ([0, 1], 2, 0)

    assert not credit.acknowledge(first[:1])

    assert credit.room() == 1
    assert (offsets(credit.take()), credit.waiting) == ([2], 1)


def test_what_waits_is_not_asked_for_again_by_a_client_that_takes_over() -> None:
    credit, partition = credit_of(1)
    for offset in range(3):
        credit.accept(FakeMessage(offset), partition)  # type: ignore[arg-type]
    assert offsets(credit.take()) == [0]
    assert partition.position == 3
    credit.accept(FakeMessage(2), partition)  # type: ignore[arg-type]
    assert credit.waiting == 2


def test_one_message_is_let_through_however_large_and_none_beside_it() -> None:
    credit, partition = credit_of(5, prefetch_bytes=12)  # each has a key of one byte
    for offset, size in enumerate((100, 1, 9, 1)):
        credit.accept(FakeMessage(offset, b"x" * size), partition)  # type: ignore[arg-type]
    large = credit.take()
    assert (offsets(large), credit.room()) == ([0], 0)
    credit.acknowledge(large)
    assert credit.room() == 5
    assert offsets(credit.take()) == [1, 2]


def test_the_thread_is_woken_when_as_many_were_acknowledged_as_it_waits_for() -> None:
    credit, partition = credit_of(3)
    for offset in range(3):
        credit.accept(FakeMessage(offset), partition)  # type: ignore[arg-type]
    out = credit.take()
    credit.hungry = 2
    assert [credit.acknowledge([arrival]) for arrival in out] == [False, True, True]


def test_what_was_taken_away_is_forgotten() -> None:
    credit, partition = credit_of(1, prefetch_bytes=10_000)
    for offset in range(OVERFLOW):
        credit.accept(FakeMessage(offset), partition)  # type: ignore[arg-type]
    assert not credit.is_full, "one of them is not beyond the credit"
    credit.accept(FakeMessage(OVERFLOW), partition)  # type: ignore[arg-type]
    (out,) = credit.take()
    assert (credit.is_full, credit.is_low) == (True, False)
    partition.gone = True
    credit.drop_gone()
    credit.acknowledge([out])
    credit.settle()
    assert (credit.waiting, credit.is_full, credit.is_low) == (0, False, True)


def test_of_a_message_is_read_what_every_one_needs_and_the_rest_when_it_is_asked_for() -> None:
    message: Any = FakeMessage(7, headers=[("a", b"1"), ("b", None), ("a", b"\xff")])
    arrival = Arrival(message, "t", 7)
    assert sorted(message.asked) == ["headers", "key", "value"]
    assert [arrival.header(name) for name in ("a", "b", "c")] == ["\udcff", "", None]
    assert arrival.headers == {"a": "\udcff", "b": ""}
    assert arrival.position == Position(topic="t", partition=3, offset=7)
    assert (arrival.timestamp, arrival.fallback_id, arrival.key) == (1.5, "t-3-7", "k")
    assert arrival.size == 3 * _PAIR + len("1ka1ba?"), "body, key, names and values"
    tombstone = Arrival(FakeMessage(0, None), "t", 0)  # type: ignore[arg-type]
    assert (tombstone.body, tombstone.size, tombstone.headers) == (None, 1, {})
    assert not hasattr(arrival, "anything else")
