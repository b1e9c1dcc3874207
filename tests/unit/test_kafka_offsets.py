"""What may be committed of a partition, whatever the order in which messages are settled."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incident_messaging.backends.kafka.notes import CLEAN, Note, read
from incident_messaging.backends.kafka.offsets import Ledger, Partition, Place

PLACE = ("t", 0)


class Token(NamedTuple):
    """A message, as far as a ledger knows it."""

    partition: Partition
    offset: int
    size: int


offsets = st.lists(st.integers(0, 10_000), unique=True, min_size=1, max_size=60).map(sorted)


def ledger(*places: tuple[str, int], window: int | None = 1_000) -> Ledger:
    made = Ledger()
    for place in places or (PLACE,):
        made.assign(place, 0, window=window)
    return made


def deliver(made: Ledger, offset: int, size: int = 1, place: tuple[str, int] = PLACE) -> Token:
    partition = made.get(place)
    assert partition is not None
    token = Token(partition, offset, size)
    made.deliver(token)
    return token


@given(offsets, st.randoms(use_true_random=False), st.integers(0, 60))
def test_never_commits_beyond_what_is_unsettled(given_offsets, random, settled_count):
    partition = Partition(PLACE, given_offsets[0], window=1_000)
    for offset in given_offsets:
        partition.deliver(offset)
    settled = set(random.sample(given_offsets, min(settled_count, len(given_offsets))))
    for offset in random.sample(sorted(settled), len(settled)):
        assert partition.settle(offset)
    unsettled = [offset for offset in given_offsets if offset not in settled]
    below = [offset for offset in given_offsets if not unsettled or offset < unsettled[0]]
    assert partition.committable == (below[-1] + 1 if below else given_offsets[0])
    assert partition.count == len(unsettled)


@given(offsets, st.randoms(use_true_random=False))
def test_all_settled_in_any_order_commits_all(given_offsets, random):
    partition = Partition(PLACE, 0, window=1_000)
    for offset in given_offsets:
        partition.deliver(offset)
    for offset in random.sample(given_offsets, len(given_offsets)):
        partition.settle(offset)
    assert partition.committable == partition.position == given_offsets[-1] + 1
    assert partition.count == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 9)), max_size=120))
def test_credit_is_what_is_out(steps):
    made = ledger()
    out: dict[int, Token] = {}
    next_offset = 0
    for is_delivery, which, size in steps:
        if is_delivery:
            out[next_offset] = deliver(made, next_offset, size)
            next_offset += 1
        elif which in out:
            assert made.settle(out.pop(which))
        assert made.count == len(out)
        assert made.size == sum(token.size for token in out.values())


def test_settling_twice_counts_once():
    made = ledger()
    token = deliver(made, 0, size=5)
    assert made.settle(token)
    assert not made.settle(token)
    assert (made.count, made.size, made.settled) == (0, 0, 1)


def test_what_was_revoked_commits_nothing_and_gives_its_credit_back():
    made = ledger()
    token = deliver(made, 7, size=5)
    gone = made.revoke(PLACE)
    assert gone is not None
    assert gone.gone
    assert (made.count, made.size) == (0, 0)
    assert not made.settle(token)
    assert made.take_due() == []


def test_a_token_of_an_earlier_assignment_does_not_settle_in_the_next_one():
    made = ledger()
    old = deliver(made, 0)
    made.assign(PLACE, 0, window=1_000)
    deliver(made, 0)
    assert not made.settle(old)
    assert made.count == 1


def confirmed(made: Ledger) -> list[Place]:
    """Commit all that is due, and have it confirmed."""
    due = made.take_due()
    for partition in due:
        partition.committed(partition.commit()[0])
    return [partition.place for partition in due]


def test_a_new_place_is_due_before_any_message():
    made = ledger()
    assert not made.stored
    (partition,) = made.take_due()
    assert partition.commit() == (0, Note(until=1_000).text())
    assert not made.stored
    partition.committed(0)
    assert made.stored
    assert not made.has_due


def test_what_is_due_is_taken_once():
    made = ledger(("t", 0), ("t", 1))
    confirmed(made)
    made.settle(deliver(made, 0, place=("t", 1)))
    assert confirmed(made) == [("t", 1)]
    assert made.take_due() == []
    assert not made.has_due
    made.settle(deliver(made, 1, place=("t", 1)))
    assert made.has_due


def test_a_broadcast_commits_nothing():
    made = ledger(window=None)
    made.settle(deliver(made, 0))
    made.leave()
    assert made.stored
    assert not made.has_due


def test_nothing_is_delivered_that_the_broker_has_not_in_writing():
    made = ledger(window=300)
    partition = made.get(PLACE)
    assert partition is not None
    assert not partition.may_deliver(0)
    confirmed(made)
    assert partition.may_deliver(299)
    assert not partition.may_deliver(300)


def test_the_window_moves_on_before_it_is_used_up_although_nothing_is_settled():
    made = ledger(window=300)
    confirmed(made)
    for offset in range(101):
        assert not made.urgent
        deliver(made, offset)
    assert made.urgent
    (partition,) = made.take_due()
    assert partition.commit() == (0, Note(until=401).text())


def test_a_hole_wider_than_the_window_is_stepped_over():
    made = ledger(window=300)
    confirmed(made)
    (partition,) = made.partitions()
    assert not partition.may_deliver(10_000)
    confirmed(made)
    assert partition.may_deliver(10_000)


def test_a_commit_that_failed_is_due_again():
    made = ledger()
    (partition,) = made.take_due()
    partition.commit()
    assert made.take_due() == []
    partition.not_committed()
    assert made.take_due() == [partition]


def test_who_leaves_says_so_although_nothing_was_settled():
    made = ledger()
    confirmed(made)
    deliver(made, 0)
    made.leave()
    (partition,) = made.take_due()
    assert partition.commit() == (0, "")
    partition.not_committed()
    assert made.has_due
    confirmed(made)
    assert not made.has_due


def test_a_mark_is_stored_with_the_next_commit_and_goes_with_its_message():
    made = ledger()
    confirmed(made)
    token = deliver(made, 0)
    mark = token.partition.mark(0, 2)
    assert made.urgent
    assert not token.partition.is_marked(mark)
    _, text = token.partition.commit()
    assert read(text).starts == {0: 2}
    token.partition.committed(0)
    assert token.partition.is_marked(mark)
    made.settle(token)
    assert token.partition.urgent, "a process that ends now has not died of it"
    assert read(token.partition.commit()[1]).starts == {}


def test_suspects_are_those_that_a_dead_owner_may_have_started():
    left = Note(until=0, suspects=7)
    assert left.doubtful("") == 7
    died = Note(owner="a", until=20, suspects=7, starts={3: 1})
    assert died.doubtful("b") == 20
    assert died.doubtful("a") == 7, "who gets it back has not died"
    made = Ledger()
    partition = made.assign(PLACE, 3, window=100, note=read(died.text()), owner="b")
    assert (partition.suspects, partition.starts) == (20, {3: 1})
    assert read(partition.commit()[1]) == Note(owner="b", until=103, suspects=20, starts={3: 1})
    partition.leave()
    assert read(partition.commit()[1]) == Note(suspects=20, starts={3: 1}), "the next owner has them still to do"


@pytest.mark.parametrize("text", [None, "", "a", "{}", "[]", '{"incident-messaging": 3}', '{"other": {"until": 4}}'])
def test_foreign_notes_say_nothing(text):
    assert read(text) == CLEAN


def test_a_note_fits_into_what_kafka_keeps():
    assert len(Note("00112233", 10**15, 10**15, {10**15 + n: 1_000 for n in range(1_000)}).text()) < 4_096


def test_a_hole_in_the_offsets_holds_nothing_up():
    """Transactions and compaction leave offsets that are never delivered."""
    partition = Partition(PLACE, 0, window=1_000)
    for offset in (0, 5, 6):
        partition.deliver(offset)
    for offset in (0, 5):
        partition.settle(offset)
    assert partition.committable == 6
