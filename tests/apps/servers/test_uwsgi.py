"""uWSGI forks in C and ends its workers in its own way; the SDK is told, or finds out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from app_kit import App, outcome, running
from server_kit import arrived, environment, every_worker_works, words

from incident_messaging.brokers.ports import free_port

pytestmark = pytest.mark.slow

#: SIGTERM lets workers end what they have in hand.
GRACEFUL = ["--hook-master-start", "unix_signal:15 gracefully_kill_them_all"]


def command_of(port: int, *options: str) -> list[str]:
    command = [str(Path(sys.executable).with_name("uwsgi")), "--http-socket", f"127.0.0.1:{port}", "--master"]
    return [*command, "--enable-threads", "--need-app", "--module", "server_site:app", *GRACEFUL, *options]


@contextmanager
def uwsgi(settings: dict[str, Any], folder: Path, *options: str, **more: str) -> Iterator[App]:
    port = free_port()
    with running(command_of(port, *options), environment(settings, **more), folder, log="uwsgi.log", port=port) as app:
        yield app


LAZY = ["--lazy-apps", "--threads", "3", "--skip-atexit-teardown"]
HOOKS = ["--py-call-uwsgi-fork-hooks"]


@pytest.mark.parametrize(
    ("options", "preload"),
    [
        (LAZY, False),
        ([], False),
        (HOOKS, True),
    ],
    ids=["lazy, threads", "before the fork", "used before the fork"],
)
def test_each_worker_publishes_and_consumes_and_flushes_at_its_end(
    settings: dict[str, Any], tmp_path: Path, options: list[str], preload: bool
) -> None:
    asked = tmp_path / "asked"
    more = {"USED_BEFORE_FORK": str(asked)} if preload else {}
    parent = ["parent before", "parent after"] if preload else []
    server = uwsgi(settings, tmp_path, "--processes", "2", *options, **more)
    every_worker_works(settings, server, asked if preload else None, parent)


def test_a_worker_that_is_recycled_flushes(settings: dict[str, Any], tmp_path: Path) -> None:
    options = ["--processes", "1", "--max-requests", "2", "--min-worker-lifetime", "0", "--skip-atexit-teardown"]
    with uwsgi(settings, tmp_path, *options) as app:
        pids = {app.post(f"/nowait/w{number}").body["pid"] for number in range(4)}
        assert app.end() == 0, app.said
    assert len(pids) >= 2
    arrived(settings, [word for number in range(4) for word in words(f"w{number}")])


def test_a_master_that_uses_the_service_must_set_the_hooks(tmp_path: Path) -> None:
    """Without them one worker in ten hung, in C: it was forked while a thread of the master had the interpreter."""
    settings = {"backend": "nats", "nats": {"servers": ["nats://127.0.0.1:9"]}}
    given = environment(settings, USED_BEFORE_FORK=str(tmp_path / "asked"))
    code, _, errors = outcome(command_of(free_port(), "--processes", "2"), given, tmp_path)
    assert code == 22, errors  # uWSGI: no application could be loaded
    assert "ConfigurationError: uWSGI would fork a process whose messaging service is in use" in errors
    assert "set py-call-uwsgi-fork-hooks = true or lazy-apps = true" in errors


WITHOUT_THREADS = """
import sys, types
sys.modules["uwsgi"] = types.SimpleNamespace(has_threads=0)
import server_site
"""


def test_without_threads_the_service_says_which_option_is_missing(tmp_path: Path) -> None:
    """uWSGI's versions before 2.0.28 have no threads unless asked; since then they cannot be without."""
    code, _, errors = outcome(["-c", WITHOUT_THREADS], environment({"backend": "memory"}), tmp_path)
    assert code == 1
    assert "ConfigurationError: uWSGI runs without threads: set enable-threads = true" in errors
