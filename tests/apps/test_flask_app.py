"""The Flask extension: in this process, and as people run it, with real requests and real brokers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from app_kit import HERE, PATIENCE, App, outcome, running
from flask import Flask, current_app
from waiting import until

from incident_messaging import ConfigurationError, IncidentCreated, MessagingConfig, MessagingService
from incident_messaging.brokers.ports import free_port
from incident_messaging.contrib.flask import Messaging
from incident_messaging.testing import memory_service, reset, run_until_idle

SITE = HERE / "flasksite"
CONSUME = ["-m", "flask", "--app", "incident_site", "incidents", "consume"]


def app_with(setting: object, name: str = "app") -> Flask:
    app = Flask(name)
    app.config["INCIDENT_MESSAGING"] = setting
    return app


@pytest.fixture
def memory() -> Iterator[MessagingService]:
    """A service whose callbacks run when the test says so."""
    reset()
    with memory_service() as service:
        yield service
    reset()


# -- in this process ------------------------------------------------------------------------------


def test_each_application_has_a_service_of_its_own() -> None:
    messaging = Messaging()
    apps = [app_with({"backend": "memory", "topic_prefix": name}, name) for name in ("first", "second")]

    for app in apps:
        messaging.init_app(app)

    for app in apps:
        with app.app_context():
            assert messaging.service.config.topic_prefix == app.name
            assert messaging.service is messaging.service


def test_one_application_alone_needs_no_factory() -> None:
    app = app_with(MessagingConfig(backend="memory"))

    messaging = Messaging(app)

    with app.test_request_context():
        assert messaging.service.config == app.config["INCIDENT_MESSAGING"]


def test_without_a_setting_there_are_the_defaults() -> None:
    app = Flask("app")

    messaging = Messaging(app)

    with app.app_context():
        assert messaging.service.config == MessagingConfig()


def test_prefixed_environment_variables_are_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_INCIDENT_MESSAGING__BACKEND", "kafka")
    monkeypatch.setenv("FLASK_INCIDENT_MESSAGING__MAX_IN_FLIGHT", "50")
    monkeypatch.setenv("FLASK_INCIDENT_MESSAGING__KAFKA__BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092")
    app = app_with({"backend": "nats", "topic_prefix": "ops", "kafka": {"group_id": "console"}})

    app.config.from_prefixed_env()
    messaging = Messaging(app)

    with app.app_context():
        assert messaging.service.config == MessagingConfig(
            backend="kafka",
            max_in_flight=50,
            topic_prefix="ops",
            kafka={"group_id": "console", "bootstrap_servers": "kafka-1:9092,kafka-2:9092"},
        )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"max_in_flight": 0}, "max_in_flight must be"),
        ({"KAFKA": {"GROUPID": "g"}}, "kafka.groupid is unknown; the nearest known name is kafka.group_id"),
        (["nats"], "must be a mapping"),
    ],
)
def test_a_wrong_setting_is_said_at_once(setting: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        Messaging().init_app(app_with(setting))

    assert str(raised.value).startswith('app.config["INCIDENT_MESSAGING"]: ')


def test_the_service_outside_of_an_application_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"with app\.app_context\(\)"):
        _ = Messaging(app_with({})).service


def test_the_service_of_a_foreign_application_says_what_to_do() -> None:
    Messaging(app := app_with({}))

    with app.app_context(), pytest.raises(RuntimeError, match="call init_app first"):
        _ = Messaging().service


def test_an_application_is_initialised_once() -> None:
    messaging = Messaging(app := app_with({}))

    with pytest.raises(RuntimeError, match="has a Messaging already"):
        messaging.init_app(app)


def test_a_coroutine_function_is_no_handler() -> None:
    async def handle(delivery: object) -> None: ...

    with pytest.raises(ConfigurationError, match="plain function"):
        Messaging().handler("jobs")(handle)


def test_handlers_run_in_the_context_of_each_application(memory: MessagingService) -> None:
    config = MessagingConfig(backend="memory", topic_prefix="other")
    services = {"first": memory, "second": memory_service(config)}
    apps = {name: app_with(service, name) for name, service in services.items()}
    messaging, seen = Messaging(), []

    @messaging.handler("incidents.created", IncidentCreated, group="before")
    def before(delivery: Any) -> None:
        seen.append((current_app.name, messaging.service is services[current_app.name], delivery.payload.title))

    for app in apps.values():
        messaging.init_app(app)

    @messaging.handler("incidents.created", IncidentCreated, group="after")
    def after(delivery: Any) -> None:
        seen.append((current_app.name, messaging.service is services[current_app.name], delivery.payload.title))

    for name, service in services.items():
        service.start_handlers()
        service.publish_incident_created("INC-1", "low", "database", f"of {name}")
        run_until_idle(service)

    assert sorted(seen) == [("first", True, "of first")] * 2 + [("second", True, "of second")] * 2
    assert not current_app
    assert messaging.close(apps["second"]) == []


def test_applications_with_one_service_declare_a_handler_once(memory: MessagingService) -> None:
    messaging, seen = Messaging(), []
    messaging.handler("jobs", group="before")(lambda _: seen.append(current_app.name))
    for name in ("of the first test", "of the second"):
        messaging.init_app(app_with(memory, name))
    messaging.handler("jobs", group="after")(lambda _: seen.append(current_app.name))

    memory.start_handlers()
    memory.publish("jobs", {})
    run_until_idle(memory)

    assert seen == ["of the second"] * 2


def test_closing_one_application_leaves_the_others(memory: MessagingService) -> None:
    messaging = Messaging()
    apps = [app_with({"backend": "memory"}), app_with(memory)]
    for app in apps:
        messaging.init_app(app)

    assert messaging.close(apps[0]) == []

    with apps[0].app_context():
        assert not messaging.service.health().ok
    with apps[1].app_context():
        assert messaging.service.publish("jobs", {}).message_id


# -- as people run it -----------------------------------------------------------------------------


def environment(settings: dict[str, Any]) -> dict[str, str]:
    """The setting as nested variables, with the brokers' section in JSON."""
    section = settings["backend"]
    return {
        "PYTHONPATH": str(SITE),
        "FLASK_INCIDENT_MESSAGING__BACKEND": section,
        "FLASK_INCIDENT_MESSAGING__TOPIC_PREFIX": settings["topic_prefix"],
        f"FLASK_INCIDENT_MESSAGING__{section.upper()}": json.dumps(settings[section]),
    }


@contextmanager
def flask_run(settings: dict[str, Any], folder: Path) -> Iterator[App]:
    port = free_port()
    command = ["-m", "flask", "--app", "incident_site", "run", "--port", str(port)]
    with running(command, environment(settings), folder, log="server.log", port=port) as app:
        yield app


def test_a_request_publishes_and_only_the_command_consumes(settings: dict[str, Any], tmp_path: Path) -> None:
    with flask_run(settings, tmp_path) as server:
        assert server.post("/incidents", id="INC-1", severity="critical").status == 201
        assert server.get("/pages?wait=1") == (200, {"page": None})

        with running([*CONSUME, "--concurrency", "2"], environment(settings), tmp_path, log="worker.log") as worker:
            page = server.get("/pages")
            assert page == (200, {"page": {"incident": "INC-1", "by": "incident_site"}}), server.said + worker.said
            assert worker.end() == 0

        assert server.end(signal.SIGINT) == 0
        assert "Traceback" not in server.said + worker.said


def test_the_command_shows_how_it_is_on_a_port(settings: dict[str, Any], tmp_path: Path) -> None:
    port = free_port()
    command = [*CONSUME, "--port", str(port)]

    with running(command, environment(settings), tmp_path, log="worker.log", port=port) as worker:
        assert until(lambda: worker.get("/readyz").status == 200, PATIENCE), worker.said
        assert worker.end(signal.SIGINT) == 0


def test_the_command_says_in_a_line_why_it_cannot_run(tmp_path: Path) -> None:
    address = f"nats://127.0.0.1:{free_port()}"
    nowhere = {"backend": "nats", "topic_prefix": "none", "nats": {"servers": [address]}}

    code, output, errors = outcome(CONSUME, environment(nowhere), tmp_path)

    assert code == 1
    assert output == ""
    last = errors.splitlines()[-1]
    assert last.startswith("Error: NATS connection failed")
    assert address in last
    assert "Traceback" not in errors


def test_the_command_without_handlers_says_how_to_declare_one(tmp_path: Path) -> None:
    command = [*CONSUME[:3], "no_handlers", *CONSUME[4:]]

    code, _, errors = outcome(command, {"PYTHONPATH": str(SITE)}, tmp_path)

    assert code == 1
    assert "@messaging.handler" in errors
    assert "Traceback" not in errors
