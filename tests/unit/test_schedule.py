"""The order in which messages are handed out: keys, delays, hands."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from incident_messaging.consuming.schedule import Hand, Schedule
from incident_messaging.record import Position, Received


def received(key: str | None, number: int = 0) -> Received:
    return Received(
        topic="t", body=b"", key=key, headers={}, raw_headers=(), timestamp=0.0, fallback_id=str(number),
        position=Position(topic="t", partition=0, offset=number),
    )  # fmt: skip


def schedule_of(*keys: str | None) -> Schedule:
    schedule = Schedule()
    schedule.add([received(key, number) for number, key in enumerate(keys)], now=0.0)
    return schedule


def numbers(entries) -> list[int]:
    return [entry.received.position.offset for entry in entries]


def test_one_hand_gets_the_brokers_order() -> None:
    schedule, hand = schedule_of("a", "b", "a", None), Hand()
    assert numbers(schedule.take(0.0, hand, 10)) == [0, 1, 2, 3]


def test_a_key_in_one_hand_is_kept_from_another() -> None:
    schedule, one, two = schedule_of("a", "a", "b"), Hand(), Hand()
    first = schedule.take(0.0, one, 1)
    assert numbers(schedule.take(0.0, two, 10)) == [2]
    schedule.settle(first[0])
    assert numbers(schedule.take(0.0, two, 10)) == [1]


def test_a_failed_message_holds_back_its_key_and_nothing_else() -> None:
    schedule, hand = schedule_of("a", "a", "b", None), Hand()
    (first,) = schedule.take(0.0, hand, 1)
    schedule.delay(first, due=5.0)
    assert numbers(schedule.take(1.0, hand, 10)) == [2, 3]
    assert schedule.next_due() == 5.0
    assert numbers(schedule.take(5.0, hand, 10)) == [0, 1]


def test_a_failed_message_without_a_key_holds_back_nothing() -> None:
    schedule, hand = schedule_of(None, None), Hand()
    (first,) = schedule.take(0.0, hand, 1)
    schedule.delay(first, due=5.0)
    assert numbers(schedule.take(1.0, hand, 10)) == [1]


def test_a_batch_given_back_comes_again_in_order() -> None:
    schedule, hand = schedule_of("a", "a", "b"), Hand()
    for entry in schedule.take(0.0, hand, 3):
        schedule.delay(entry, due=0.0)
    assert numbers(schedule.take(0.0, hand, 3)) == [0, 1, 2]


def test_forgotten_messages_do_not_come_and_free_their_key() -> None:
    schedule, hand = schedule_of("a", "a", "b"), Hand()
    (first,) = schedule.take(0.0, hand, 1)
    schedule.delay(first, due=5.0)
    assert schedule.forget(lambda r: r.position.offset in (0, 2)) == 2
    assert numbers(schedule.take(0.0, hand, 3)) == [1]
    assert len(schedule) == 1


def test_letting_go_without_settling_frees_the_key_only() -> None:
    schedule, one, two = schedule_of("a", "a"), Hand(), Hand()
    (first,) = schedule.take(0.0, one, 1)
    schedule.let_go(first)
    assert numbers(schedule.take(0.0, two, 1)) == [1]
    assert len(schedule) == 2


def test_the_oldest_is_the_first_unsettled() -> None:
    schedule, hand = schedule_of("a", "b"), Hand()
    first, second = schedule.take(0.0, hand, 2)
    schedule.settle(first)
    assert schedule.oldest() is second


actions = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["ack", "fail", "keep"]), st.integers(1, 3)), max_size=60
)


@given(st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=20), actions)
def test_every_message_is_handled_once_and_each_key_in_order(keys, script) -> None:
    schedule, hands = schedule_of(*keys), [Hand(), Hand(), Hand()]
    held: list[list] = [[], [], []]
    done: list[int] = []
    time = 0.0
    for who, what, most in script:
        time += 1.0
        held[who] += schedule.take(time, hands[who], most)
        if what != "keep" and held[who]:
            entry = held[who].pop(0)
            if what == "ack":
                schedule.settle(entry)
                done.append(entry.received.position.offset)
            else:
                for other in [entry, *held[who]]:
                    schedule.delay(other, due=time + most)
                held[who].clear()
        for key in "ab":
            owners = [i for i in range(3) if any(e.key == key for e in held[i])]
            assert len(owners) <= 1
    for who in range(3):
        for entry in held[who]:
            schedule.settle(entry)
            done.append(entry.received.position.offset)
    while len(schedule):
        time += 10.0
        for entry in schedule.take(time, hands[0], 5):
            schedule.settle(entry)
            done.append(entry.received.position.offset)
    assert sorted(done) == list(range(len(keys)))
    for key in "ab":
        mine = [n for n in done if keys[n] == key]
        assert mine == sorted(mine)


def test_a_suspect_is_handed_out_by_itself() -> None:
    schedule = schedule_of("a", "b", "c", "d")
    for entry in list(schedule._all.values())[1:3]:
        entry.received.suspect = True
    assert [numbers(schedule.take(0.0, Hand(), 10)) for _ in range(4)] == [[0], [1], [2], [3]]


def test_a_suspect_whose_delay_is_over_is_handed_out_by_itself() -> None:
    schedule, hand = schedule_of(None, None), Hand()
    (first,) = schedule.take(0.0, hand, 1)
    first.received.suspect = True
    schedule.delay(first, due=1.0)
    assert numbers(schedule.take(2.0, hand, 10)) == [0]
    assert numbers(schedule.take(2.0, hand, 10)) == [1]
