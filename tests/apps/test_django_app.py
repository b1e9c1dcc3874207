"""The Django application as people run it: manage.py, real requests, real brokers and databases."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psycopg
import pytest
from app_kit import HERE, PATIENCE, App, outcome, running
from postgres_server import PostgresServer
from waiting import until

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.brokers.ports import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of the project, to be changed."""
    return Path(shutil.copytree(HERE / "djangosite", tmp_path / "site"))


def environment(settings: dict[str, Any], **more: str) -> dict[str, str]:
    return {"SITE_MESSAGING": json.dumps(settings), "SITE_FILE": "site.sqlite3", **more}


def manage(site: Path, settings: dict[str, Any], *command: str, **more: str) -> tuple[int, str, str]:
    return outcome(["manage.py", *command], environment(settings, **more), site)


@contextmanager
def runserver(site: Path, settings: dict[str, Any], *options: str) -> Iterator[App]:
    port = free_port()
    assert manage(site, settings, "migrate", "--run-syncdb")[0] == 0
    command = ["manage.py", "runserver", *options, f"127.0.0.1:{port}"]
    with running(command, environment(settings), site, log="server.log", port=port) as app:
        yield app


@contextmanager
def consume_incidents(site: Path, settings: dict[str, Any], *options: str, **more: str) -> Iterator[App]:
    command = ["manage.py", "consume_incidents", *options]
    with running(command, environment(settings, **more), site, log="worker.log") as app:
        yield app


def test_a_committed_request_publishes_and_the_command_consumes(settings: dict[str, Any], site: Path) -> None:
    with runserver(site, settings, "--noreload") as server:
        assert server.post("/incidents", id="INC-0", fails=True).status == 500
        assert server.post("/incidents", id="INC-1").status == 201
        assert server.get("/pages?wait=1").body == {"page": None}, "handlers run in the command only"

        with consume_incidents(site, settings, "--concurrency", "2") as worker:
            assert server.get("/pages") == (200, {"page": {"incident": "INC-1", "noted": 1}}), server.said + worker.said
            assert server.get("/pages?wait=1").body == {"page": None}, "what was rolled back is not published"
            assert worker.end() == 0

        assert "Traceback" not in worker.said
        assert server.end(signal.SIGINT) == 0


def release(server: App) -> str | None:
    """Which code answers; none while one process has ended and the next has not begun."""
    try:
        found: dict[str, str] | None = server.get("/").body
    except (OSError, HTTPException):
        return None
    return found["release"] if found else None  # Django's own answer where the code is just being read


def test_the_autoreloader_starts_a_process_that_publishes_and_consumes(settings: dict[str, Any], site: Path) -> None:
    with runserver(site, settings) as server, consume_incidents(site, settings) as worker:
        assert server.post("/incidents", id="INC-1").body == {"release": "first"}
        assert server.get("/pages").body["page"]["incident"] == "INC-1", server.said + worker.said
        first = server.get("/").body

        views = site / "site_urls.py"
        views.write_text(views.read_text().replace('"first"', '"second"'))
        assert until(lambda: release(server) == "second", PATIENCE), server.said

        assert server.get("/").body["pid"] != first["pid"]
        assert server.post("/incidents", id="INC-2").body == {"release": "second"}
        assert server.get("/pages").body["page"]["incident"] == "INC-2", server.said + worker.said
        assert worker.end() == 0
        assert server.interrupt() == 0
        assert "Traceback" not in server.said + worker.said


def test_the_command_shows_how_it_is_on_a_port(settings: dict[str, Any], site: Path) -> None:
    port = free_port()
    with consume_incidents(site, settings, "--port", str(port)) as worker:
        probe = App(worker.process, worker.log, f"http://127.0.0.1:{port}")
        assert until(lambda: probe.answers("/readyz") and probe.get("/readyz").status == 200, PATIENCE), worker.said
        assert worker.end(signal.SIGINT) == 0


def test_the_command_says_in_a_line_why_it_cannot_run(site: Path) -> None:
    address = f"nats://127.0.0.1:{free_port()}"

    code, output, errors = manage(site, {"backend": "nats", "nats": {"servers": [address]}}, "consume_incidents")

    assert (code, output) == (1, "")
    last = errors.splitlines()[-1]
    assert last.startswith("CommandError: NATS connection failed")
    assert address in last
    assert "Traceback" not in errors


def test_the_command_without_handlers_says_where_they_belong(site: Path) -> None:
    (site / "pager" / "incident_handlers.py").unlink()

    code, _, errors = manage(site, {"backend": "memory"}, "consume_incidents")

    assert code == 1
    assert errors.startswith("CommandError: no handlers: decorate functions in incident_handlers.py")


@pytest.mark.parametrize("option", [["--concurrency", "0"], ["--port", "-1"], ["--concurrency", "two"]])
def test_the_command_refuses_options_that_make_no_sense(option: list[str], site: Path) -> None:
    code, _, errors = manage(site, {"backend": "memory"}, "consume_incidents", *option)

    assert code == 2
    assert f"argument {option[0]}: invalid" in errors


# -- the database of a worker ---------------------------------------------------------------------


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer(None, None) as server:
        yield server


def test_a_worker_outlives_the_database_connections_it_had(
    postgres: PostgresServer, settings: dict[str, Any], site: Path
) -> None:
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "postgres"}
    database |= {"HOST": "127.0.0.1", "PORT": postgres.port, "CONN_MAX_AGE": None}
    more = {"SITE_DATABASE": json.dumps(database)}
    assert manage(site, settings, "migrate", "--run-syncdb", **more)[0] == 0
    config = MessagingConfig.from_mapping(settings)

    with (
        psycopg.connect(postgres.url(), autocommit=True) as admin,
        consume_incidents(site, settings, **more) as worker,
        MessagingService(config) as service,
    ):
        for number in range(3):
            admin.execute("INSERT INTO pager_incident (number, paged) VALUES (%s, false)", [f"INC-{number}"])
            service.publish_incident_created(f"INC-{number}", "critical", "database", "it is down")
            page = service.consume_one("pages.oncall", timeout=PATIENCE, group="test")
            assert page is not None, worker.said
            assert page.payload == {"incident": f"INC-{number}", "noted": 1}
            ended = admin.execute(
                "SELECT count(pg_terminate_backend(pid, 30000)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ).fetchone()
            assert ended == (1,), "the worker keeps its connection between two messages"
        assert worker.end() == 0
