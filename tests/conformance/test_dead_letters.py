"""Looking into the dead letters, putting them back, throwing them away."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bench import QUICK, Bench, Seen
from waiting import until

from incident_messaging import BackendUnavailable, ConfigurationError, Delivery, MessagingConfig, MessagingService

keeps = pytest.mark.needs("keeps")


class Broken(Exception):
    """What the handlers of these cases raise."""


def give_up(bench: Bench, topic: str, numbers: list[int], *, group: str = "g", error: type[Exception] = Broken) -> None:
    """Have a group give up some messages, and wait until the broker has their dead letters."""

    def fail(delivery: Delivery[Any]) -> None:
        raise error(f"no {delivery.payload['n']}")

    with bench.service.subscribe(topic, group=group, callback=fail, retry=QUICK):
        before = len(list(bench.service.dead_letters.list()))
        for n in numbers:
            bench.service.publish(topic, {"n": n}, key=f"k{n % 2}", headers={"shift": "night"})
        assert until(lambda: len(list(bench.service.dead_letters.list())) == before + len(numbers), 20)


def listed(bench: Bench, **filters: Any) -> list[int]:
    """The numbers in the dead letters that a filter lets through."""
    return sorted(int(letter.exception_message[3:]) for letter in bench.service.dead_letters.list(**filters))


@keeps
def test_a_dead_letter_says_all_about_the_message(bench: Bench) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)
    give_up(bench, "orders.new", [7])
    (letter,) = bench.service.dead_letters.list()
    assert (letter.topic, letter.group, letter.attempts, letter.redrive_count) == ("orders.new", "g", 2, 0)
    assert letter.original_topic == f"{bench.settings['topic_prefix']}.orders.new"
    assert letter.exception_type == f"{__name__}.Broken"
    assert letter.exception_message == "no 7"
    assert 'raise error(f"no' in letter.stacktrace
    assert letter.failed_at is not None
    assert begun < letter.failed_at <= datetime.now(UTC)
    assert (letter.key, dict(letter.headers)) == ("k1", {"shift": "night"})
    assert b'"n":7' in letter.body
    assert letter.backend.value == bench.features.label
    assert letter.original != letter.position


@keeps
def test_looking_changes_nothing(bench: Bench) -> None:
    give_up(bench, "orders", list(range(5)))
    assert listed(bench) == listed(bench) == list(range(5))
    assert len(bench.dead_letters(5)) == 5
    assert listed(bench) == list(range(5))


@keeps
def test_no_dead_letters_at_all(bench: Bench) -> None:
    assert list(bench.service.dead_letters.list()) == []
    assert bench.service.dead_letters.redrive().matched == 0
    assert bench.service.dead_letters.purge().matched == 0


@keeps
def test_filters(bench: Bench) -> None:
    give_up(bench, "orders.new", [1, 2])
    later = datetime.now(UTC)
    give_up(bench, "orders.old", [3], error=ValueError)
    give_up(bench, "bills", [4], group="other")
    assert listed(bench, topic="orders.new") == [1, 2]
    assert listed(bench, topic="orders.*") == [1, 2, 3]
    assert listed(bench, exception="Broken") == listed(bench, exception=f"{__name__}.Broken") == [1, 2, 4]
    assert listed(bench, exception="ValueError") == [3]
    assert listed(bench, group="other") == [4]
    assert listed(bench, since=later) == [3, 4]
    assert listed(bench, topic="orders.>", since=later) == [3]
    assert len(listed(bench, limit=2)) == 2
    assert listed(bench, limit=0) == []


@keeps
def test_a_redriven_message_goes_to_the_group_that_failed(bench: Bench) -> None:
    others = Seen()
    bench.service.subscribe("orders", group="others", callback=others)
    give_up(bench, "orders", [0, 1, 2, 3])
    others.wait(4)
    mended = Seen()
    bench.service.subscribe("orders", group="g", callback=mended)
    report = bench.service.dead_letters.redrive()
    assert (report.matched, report.done, report.failed, dict(report.skipped)) == (4, 4, 0, {})
    assert sorted(mended.wait(4)) == [0, 1, 2, 3]
    for key in ("k0", "k1"):
        of_key = [delivery.payload["n"] for delivery in mended.deliveries if delivery.key == key]
        assert of_key == sorted(of_key), "in the order in which they were given up"
    assert {delivery.headers["x-redrive-count"] for delivery in mended.deliveries} == {"1"}
    assert {delivery.headers["shift"] for delivery in mended.deliveries} == {"night"}
    assert listed(bench) == []
    bench.service.publish("orders", {"n": 99})
    assert others.wait(5)[4:] == [99], "the other group settled them without a call"


@keeps
def test_every_group_may_be_asked_again(bench: Bench) -> None:
    others = Seen()
    bench.service.subscribe("orders", group="others", callback=others)
    give_up(bench, "orders", [0, 1])
    assert bench.service.dead_letters.redrive(every_group=True).done == 2
    assert sorted(others.wait(4)) == [0, 0, 1, 1]


@keeps
def test_a_message_is_redriven_twice_at_most(bench: Bench) -> None:
    def fail(delivery: Delivery[Any]) -> None:
        raise Broken(f"no {delivery.payload['n']}")

    letters = bench.service.dead_letters
    bench.service.subscribe("orders", group="g", callback=fail, retry=QUICK)
    bench.service.publish("orders", {"n": 1})
    for count in (0, 1):
        assert until(lambda count=count: [letter.redrive_count for letter in letters.list()] == [count], 20)
        assert letters.redrive().done == 1
    assert until(lambda: [letter.redrive_count for letter in letters.list()] == [2], 20)
    report = letters.redrive()
    assert (report.matched, report.done, dict(report.skipped)) == (1, 0, {"redriven 2 times already": 1})
    assert letters.redrive(max_redrives=3).done == 1


@keeps
def test_a_dry_run_does_nothing(bench: Bench) -> None:
    give_up(bench, "orders", [1, 2])
    report = bench.service.dead_letters.redrive(dry_run=True)
    assert (report.done, report.dry_run) == (2, True)
    assert bench.service.dead_letters.purge(dry_run=True, limit=1).done == 1
    assert listed(bench) == [1, 2]


@keeps
def test_purging_some_leaves_the_others(bench: Bench) -> None:
    give_up(bench, "orders", [1, 2, 3])
    give_up(bench, "bills", [4, 5])
    assert bench.service.dead_letters.purge(topic="orders").done == 3
    assert listed(bench) == [4, 5]
    elsewhere = bench.new_service() if bench.features.crosses_processes else bench.service
    assert sorted(int(one.exception_message[3:]) for one in elsewhere.dead_letters.list()) == [4, 5]
    assert bench.service.dead_letters.purge().done == 2
    assert listed(bench) == []
    give_up(bench, "orders", [6])
    assert listed(bench) == [6]


@keeps
def test_progress_is_told(bench: Bench) -> None:
    give_up(bench, "orders", [1, 2, 3])
    told: list[int] = []
    bench.service.dead_letters.redrive(limit=2, rate=1000.0, progress=lambda report: told.append(report.done))
    assert told == [2]
    assert len(listed(bench)) == 1


@keeps
def test_what_somebody_else_put_there_is_shown_and_left(bench: Bench) -> None:
    give_up(bench, "orders", [1])
    bench.write("dead-letter", b"\xff", x_dlq_attempts="many")
    letters = bench.service.dead_letters
    assert until(lambda: len(list(letters.list())) == 2)
    foreign = next(letter for letter in letters.list() if letter.group is None)
    assert (foreign.topic, foreign.attempts, foreign.body) == (None, 0, b"\xff")
    report = letters.redrive()
    assert (report.done, report.matched) == (1, 2)
    assert list(report.skipped.values()) == [1]
    assert letters.purge().done == 1


@keeps
@pytest.mark.parametrize("name", ["a b", "a\r\nPUB x 1", "a.*", "a..b", ">", "x" * 250])
def test_a_letter_that_names_no_topic_is_not_put_back(bench: Bench, name: str) -> None:
    bench.service.subscribe("orders", group="g").close()  # the place of the dead letters is made with it
    bench.write("dead-letter", b"{}", x_dlq_original_topic=name.replace("\r\n", "%0D%0A"))
    letters = bench.service.dead_letters
    assert until(lambda: len(list(letters.list())) == 1)
    report = letters.redrive()
    assert (report.done, dict(report.skipped)) == (0, {"x-dlq-original-topic is no topic's name": 1})


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda letters: letters.list(since=datetime(2024, 1, 1)), "since"),
        (lambda letters: letters.list(topic="a b"), "topic"),
        (lambda letters: letters.list(limit=-1), "limit"),
        (lambda letters: letters.redrive(rate=0), "rate"),
        (lambda letters: letters.purge(topics="orders"), "topics"),
        (lambda letters: letters.list(backend="carrier pigeon"), "backend"),
    ],
)
def test_a_wrong_filter_is_refused(bench: Bench, call: Callable[[Any], object], names: str) -> None:
    with pytest.raises(ConfigurationError, match=names):
        call(bench.service.dead_letters)


def test_where_nothing_is_kept_there_are_none(bench: Bench) -> None:
    if bench.features.keeps:
        assert list(bench.service.dead_letters.list()) == []
    else:
        with pytest.raises(ConfigurationError, match="keeps nothing"):
            list(bench.service.dead_letters.list())


def test_disabled_and_closed(bench: Bench) -> None:
    service = bench.new_service()
    service.close()
    with pytest.raises(BackendUnavailable) as closed:
        service.dead_letters.redrive()
    assert closed.value.code == "closed"
    with pytest.raises(BackendUnavailable) as disabled:
        MessagingService(MessagingConfig(enabled=False)).dead_letters.list()
    assert disabled.value.code == "disabled"
