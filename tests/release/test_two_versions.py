"""This version and the next one on one topic: each goes on where the other was, and neither loses anything."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import version_deeds
from next_version import NextVersion
from waiting import until

from incident_messaging import IncidentEvent, MessagingService

GROUP = "pager"


@pytest.fixture(scope="module")
def given(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "topic_prefix": f"versions-{uuid.uuid4().hex[:8]}"}


@pytest.fixture
def ours(given: dict[str, Any]) -> Iterator[MessagingService]:
    with version_deeds.service(given) as service:
        yield service


@pytest.fixture(scope="module")
def following(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[NextVersion]:
    with NextVersion(tmp_path_factory.mktemp("next"), given) as version:
        yield version


def created(first: int, last: int, *more: str) -> list[list[Any]]:
    return [["Created", f"INC-{number}", "low", "database", "slow", *more] for number in range(first, last)]


def incidents(seen: list[dict[str, Any]]) -> set[str]:
    return {each["incident_id"] for each in seen}


def test_an_upgrade_and_the_way_back(ours: MessagingService, following: NextVersion) -> None:
    topic = "incidents.all"
    version_deeds.publish(ours, topic, created(0, 6))
    before = version_deeds.consume(ours, topic, GROUP, 3)

    after = following.ask("consume", topic, GROUP, 3)  # an upgrade: the rest, and nothing twice
    assert incidents(before) | incidents(after) == {f"INC-{number}" for number in range(6)}
    assert [(each["written_by"], each["region"]) for each in after] == [("1.0", "")] * 3

    following.ask("publish", topic, [*created(6, 7, "eu"), ["Reopened", "INC-8", "again"]])
    back = {each["incident_id"]: each for each in version_deeds.consume(ours, topic, GROUP, 2)}  # and back
    assert back["INC-6"] == {
        "type": "Created", "incident_id": "INC-6", "severity": "low", "incident_type": "database", "title": "slow",
        "written_by": "1.1", "unknown": False,
    }  # fmt: skip
    assert back["INC-8"] == {
        "type": "Reopened",
        "incident_id": "INC-8",
        "data": {"reason": "again"},
        "written_by": "1.1",
        "unknown": True,
    }
    assert not list(ours.dead_letters.list(topic=topic))


def test_what_one_version_does_not_know_passes_through_it(ours: MessagingService, following: NextVersion) -> None:
    following.ask("publish", "incidents.new", [["Reopened", "INC-1", "again"]])
    version_deeds.forward(ours, "incidents.new", GROUP, "incidents.forwarded")
    (found,) = following.ask("consume", "incidents.forwarded", GROUP, 1)
    assert (found["type"], found["reason"], found["unknown"]) == ("Reopened", "again", False)


def test_each_puts_back_what_the_other_gave_up(ours: MessagingService, following: NextVersion) -> None:
    version_deeds.publish(ours, "incidents.given", created(0, 1))
    version_deeds.give_up(ours, "incidents.given", "a")
    assert following.ask("put_back", "a") == ["this version cannot"]
    assert incidents(version_deeds.consume(ours, "incidents.given", "a", 1)) == {"INC-0"}

    following.ask("give_up", "incidents.given", "b")
    assert version_deeds.put_back(ours, "b") == ["this version cannot"]
    assert incidents(following.ask("consume", "incidents.given", "b", 1)) == {"INC-0"}


def test_both_share_a_group_at_the_same_time(ours: MessagingService, following: NextVersion) -> None:
    topic, published, mine = "incidents.shared", count(), set()
    with ours.subscribe(topic, IncidentEvent, group=GROUP, callback=lambda each: mine.add(each.payload.incident_id)):
        following.tell("consume", topic, GROUP, 5)

        def publish_until_it_has_its_five() -> bool:
            number = next(published)
            version_deeds.publish(ours, topic, created(number, number + 1))
            return following.has_answered()

        assert until(publish_until_it_has_its_five, version_deeds.PATIENCE)
        theirs = incidents(following.answer())
        assert len(theirs) == 5
        everything = {f"INC-{number}" for number in range(next(published))}
        assert until(lambda: theirs | mine == everything, version_deeds.PATIENCE), everything - theirs - mine
    assert mine - theirs
