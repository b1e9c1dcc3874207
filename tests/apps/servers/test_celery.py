"""Celery's workers: what tasks handed over arrives, whichever way their processes end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from app_kit import PATIENCE, App, environment_with, running
from server_kit import arrived, environment, own_service, words
from waiting import until

from incident_messaging.brokers import KafkaBroker, NatsServer

pytestmark = pytest.mark.slow

SEND = """
import sys
from celery_site import work
for word in sys.argv[1:]:
    work.delay(word)
"""


@pytest.fixture
def settings(nats_server: NatsServer, kafka_broker: KafkaBroker) -> dict[str, Any]:
    """Both brokers in one process: a worker of Celery alone takes five seconds to end."""
    return {
        "backend": "both",
        "topic_prefix": f"t-{uuid4().hex[:10]}",
        "nats": {"servers": [nats_server.url]},
        "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers, "partitions": 1},
    }


@contextmanager
def worker(settings: dict[str, Any], folder: Path, *options: str, **more: str) -> Iterator[App]:
    command = ["-m", "celery", "--app", "celery_site", "worker", "--without-gossip", "--without-mingle"]
    command += ["--without-heartbeat", "--loglevel", "INFO", *options]
    given = environment(settings, FOLDER=str(folder), **more)
    with running(command, given, folder, log="celery.log") as app:
        assert until(lambda: "ready." in app.said, PATIENCE), app.said
        yield app


def send(settings: dict[str, Any], folder: Path, *names: str) -> None:
    """Before a worker is there: one may take a message's file while it is being written."""
    (folder / "queue").mkdir()
    given = environment_with(environment(settings, FOLDER=str(folder)))
    subprocess.run([sys.executable, "-c", SEND, *names], env=given, timeout=PATIENCE, check=True)


def done(folder: Path) -> dict[str, str]:
    """Each task that has ended, and the process that it ran in."""
    return {path.name.removeprefix("done-"): path.read_text() for path in folder.glob("done-*")}


NAMES = [f"task{number}" for number in range(4)]
PREFORK = ["--pool", "prefork", "--concurrency", "2"]


@pytest.mark.parametrize(
    ("options", "more", "processes"),
    [
        (PREFORK, {"CONSUME": "nats kafka"}, {1, 2}),
        ([*PREFORK, "--max-tasks-per-child", "1"], {"USED_BEFORE_FORK": "1"}, {4}),
        (["--pool", "threads", "--concurrency", "2"], {}, {1}),
    ],
    ids=["prefork", "a child for each task, used before the fork", "threads"],
)
def test_what_tasks_hand_over_arrives(
    settings: dict[str, Any], tmp_path: Path, options: list[str], more: dict[str, str], processes: set[int]
) -> None:
    with own_service(settings) as service:
        service.publish("inbox", {})
    send(settings, tmp_path, *NAMES)
    with worker(settings, tmp_path, *options, **more) as app:
        assert until(lambda: len(done(tmp_path)) == len(NAMES), PATIENCE), app.said
        assert app.end() == 0, app.said
    assert len(set(done(tmp_path).values())) in processes
    assert "Traceback" not in app.said
    parent = ["parent before", "parent after"] if "USED_BEFORE_FORK" in more else []
    for backend in ("nats", "kafka"):
        arrived({**settings, "backend": backend}, parent + [word for name in NAMES for word in words(name)])


def test_a_broker_that_does_not_answer_is_logged_and_the_task_succeeds(
    nats_server_factory: Callable[[], NatsServer], tmp_path: Path
) -> None:
    frozen = nats_server_factory()
    frozen.freeze()
    settings = {"backend": "nats", "nats": {"servers": [frozen.url]}, "publish_timeout_ms": 5_000}
    send(settings, tmp_path, "task")
    with worker(settings, tmp_path, "--pool", "solo", FLUSH_TIMEOUT="0.2") as app:
        assert until(lambda: "celery_site.work" in app.said and "succeeded" in app.said, PATIENCE), app.said
        assert app.end() == 0, app.said
    assert "after the task celery_site.work: flush: still on their way" in app.said


OTHER_APP = """
import json, os
from celery import Celery
from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.contrib.celery import setup
flushed = []
class Service(MessagingService):
    def flush(self, timeout=None):
        flushed.append(timeout)
        super().flush(timeout)
service = Service(MessagingConfig(backend="memory"))
ours, theirs = Celery("ours", set_as_current=False), Celery("theirs", set_as_current=False)
setup(ours, service, flush_timeout=1.5)
setup(ours, service)
def work():
    pass
for app in (ours, theirs):
    app.task(name="work")(work).apply()
    print(json.dumps(flushed))
"""


def test_tasks_of_another_app_are_left_alone() -> None:
    result = subprocess.run([sys.executable, "-c", OTHER_APP], capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [[1.5], [1.5]]
