"""Servers with two workers, made to work, ended, and what has arrived from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from app_kit import PATIENCE, App
from waiting import until

from incident_messaging import MessagingConfig, MessagingService

SITES = Path(__file__).parent


def words(word: str, count: int = 20) -> list[str]:
    return [f"{word} {number}" for number in range(count)]


def environment(settings: dict[str, Any], **more: str) -> dict[str, str]:
    return {"SETTINGS": json.dumps(settings), "PYTHONPATH": str(SITES), **more}


@contextmanager
def own_service(settings: dict[str, Any]) -> Iterator[MessagingService]:
    with MessagingService(MessagingConfig.from_mapping(settings)) as service:
        yield service


def arrived(settings: dict[str, Any], expected: list[str]) -> None:
    """All of the expected words are in the topic, once each, and no others."""
    wanted = Counter(expected)
    found: Counter[str] = Counter()
    ids = set()
    with own_service(settings) as service, service.subscribe("work", group="look") as subscription:
        while (delivery := subscription.next(PATIENCE if found.total() < len(expected) else 0.5)) is not None:
            found[delivery.payload["word"]] += 1
            ids.add(delivery.metadata.message_id)
    assert found == wanted, f"missing: {list(wanted - found)}, too many: {list(found - wanted)}"
    assert len(ids) == len(expected), "processes have given out the same ids"


def ask_parent(asked: Path) -> None:
    """Have the process that used its service before it forked use it once more."""
    asked.touch()
    assert until(lambda: not asked.exists(), PATIENCE), "the parent's own service is broken"


def each_worker(app: App, ask: Callable[[int], dict[str, Any]], workers: int = 2) -> list[dict[str, Any]]:
    """Ask until every worker has answered; all answers."""
    answers: list[dict[str, Any]] = []

    def all_asked() -> bool:
        answers.append(ask(len(answers)))
        return len({answer["pid"] for answer in answers}) == workers

    assert until(all_asked, PATIENCE), (answers, app.said)
    return answers


def every_worker_works(
    settings: dict[str, Any], server: AbstractContextManager[App], asked: Path | None, parent: list[str]
) -> None:
    """Each worker publishes, consumes and hands over; the parent's service lives on; all arrives, and the end comes.

    ``asked`` has a parent that used its service before the fork use it again; ``parent`` is what it publishes.
    """
    with own_service(settings) as service:
        service.publish("inbox", {"for": "each worker"})
    with server as app:
        answers = each_worker(app, lambda number: app.post(f"/work/w{number}").body)
        if asked is not None:
            ask_parent(asked)
        assert app.end() == 0, app.said
    assert all(answer["consumed"] == {"for": "each worker"} for answer in answers)
    assert "Traceback" not in app.said
    arrived(
        settings, [word for number in range(len(answers)) for word in [f"w{number}", *words(f"w{number}")]] + parent
    )
