"""gunicorn's workers publish and consume; the master that forked them notices nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from app_kit import PATIENCE, App, running
from prometheus_client.parser import text_string_to_metric_families
from server_kit import SITES, arrived, each_worker, environment, every_worker_works, words
from waiting import until

from incident_messaging.brokers.ports import free_port

pytestmark = pytest.mark.slow


@contextmanager
def gunicorn(settings: dict[str, Any], folder: Path, *options: str, **more: str) -> Iterator[App]:
    port = free_port()
    command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--config", str(SITES / "gunicorn_hooks.py")]
    command += ["--graceful-timeout", "20", *options, "server_site:app"]
    given = environment(settings, HOME=str(folder), **more)  # where it puts a socket of its own
    with running(command, given, folder, log="gunicorn.log", port=port) as app:
        yield app


@pytest.mark.parametrize("preload", [False, True], ids=["each loads", "used before the fork"])
@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_each_worker_publishes_and_consumes_and_flushes_at_its_end(
    settings: dict[str, Any], tmp_path: Path, kind: str, preload: bool
) -> None:
    options = ["--workers", "2", "--worker-class", kind]
    asked, more = tmp_path / "asked", {}
    if preload:
        options, more = [*options, "--preload"], {"USED_BEFORE_FORK": str(asked)}
    parent = ["parent before", "parent after", "parent at its end"] if preload else []
    every_worker_works(settings, gunicorn(settings, tmp_path, *options, **more), asked if preload else None, parent)


def test_a_worker_that_is_recycled_flushes(settings: dict[str, Any], tmp_path: Path) -> None:
    with gunicorn(settings, tmp_path, "--workers", "1", "--max-requests", "2") as app:
        pids = {app.post(f"/nowait/w{number}").body["pid"] for number in range(6)}
        assert app.end() == 0, app.said
    assert len(pids) >= 3
    arrived(settings, [word for number in range(6) for word in words(f"w{number}")])


def test_metrics_of_the_workers_add_up(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()

    def page() -> str:
        """What the workers count, once it can be read: a file of a worker that just begins is empty for a moment."""
        answers: list[Any] = []
        assert until(lambda: answers.append(app.get("/metrics")) or answers[-1].status == 200, PATIENCE), app.said
        return str(answers[-1].body)

    def value(name: str) -> float:
        families = text_string_to_metric_families(page())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples)

    with gunicorn(settings, tmp_path, "--workers", "2", PROMETHEUS_MULTIPROC_DIR=str(folder)) as app:
        answers = each_worker(app, lambda number: app.post(f"/nowait/w{number}").body)
        published = 20 * len(answers)
        assert until(lambda: value("messaging_messages_published_total") == published, PATIENCE)
        assert until(lambda: value("messaging_active_connections") == 2, PATIENCE)
        os.kill(answers[-1]["pid"], signal.SIGKILL)
        assert until(lambda: value("messaging_active_connections") == 1, PATIENCE), app.said
        assert value("messaging_messages_published_total") == published  # what the dead have done counts on
        assert app.end() == 0, app.said
