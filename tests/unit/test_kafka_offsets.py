"""What may be committed of a partition, whatever the order in which messages are settled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from incident_messaging.backends.kafka.offsets import Ledger, Partition, Token

PLACE = ("t", 0)

offsets = st.lists(st.integers(0, 10_000), unique=True, min_size=1, max_size=60).map(sorted)


def ledger(*places: tuple[str, int], stored: bool = True) -> Ledger:
    made = Ledger()
    for place in places or (PLACE,):
        made.assign(place, 0, stored=stored)
    return made


def deliver(made: Ledger, offset: int, size: int = 1, place: tuple[str, int] = PLACE) -> Token:
    partition = made.get(place)
    assert partition is not None
    token = Token(partition, offset, size)
    made.deliver(token)
    return token


@given(offsets, st.randoms(use_true_random=False), st.integers(0, 60))
def test_never_commits_beyond_what_is_unsettled(given_offsets, random, settled_count):
    partition = Partition(PLACE, given_offsets[0], stored=True)
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
    partition = Partition(PLACE, 0, stored=True)
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
    made.assign(PLACE, 0, stored=True)
    deliver(made, 0)
    assert not made.settle(old)
    assert made.count == 1


def test_a_new_place_is_due_before_any_message():
    made = ledger(stored=False)
    assert not made.stored
    (partition,) = made.take_due()
    assert (partition.sent, partition.committable) == (0, 0)
    partition.confirmed = partition.sent
    assert made.stored


def test_what_is_due_is_taken_once():
    made = ledger(("t", 0), ("t", 1))
    made.settle(deliver(made, 0, place=("t", 1)))
    assert [partition.place for partition in made.take_due()] == [("t", 1)]
    assert made.take_due() == []
    assert not made.has_due
    made.settle(deliver(made, 1, place=("t", 1)))
    assert made.has_due


def test_a_hole_in_the_offsets_holds_nothing_up():
    """Transactions and compaction leave offsets that are never delivered."""
    partition = Partition(PLACE, 0, stored=True)
    for offset in (0, 5, 6):
        partition.deliver(offset)
    for offset in (0, 5):
        partition.settle(offset)
    assert partition.committable == 6
