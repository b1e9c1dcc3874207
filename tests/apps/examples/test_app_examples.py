"""The examples with a web framework, a script and Celery, run and used as their docstrings say."""

from __future__ import annotations

import http.client
import importlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from app_kit import PATIENCE, App, outcome
from example_kit import EXAMPLES, Start
from simple_websocket import Client
from waiting import until
from werkzeug.test import EnvironBuilder

from incident_messaging import IncidentEvent, MessagingService

JSON = "application/json"
WANTED = {"severity": "critical", "type": "database", "title": "primary is down"}

on_nats = pytest.mark.parametrize("settings", ["nats"], indirect=True)
on_kafka = pytest.mark.parametrize("settings", ["kafka"], indirect=True)

Flask = Callable[[str], App]


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    names = {name.replace("_", "-"): value for name, value in headers.items()} | {"Content-Type": JSON}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), names), timeout=PATIENCE) as got:
        return got.status, json.load(got)


def refused(app: App, path: str, body: bytes, content_type: str = JSON) -> tuple[int, str]:
    """Post something that is refused: with which status, and why."""
    request = urllib.request.Request(app.url + path, body, {"Content-Type": content_type})
    with pytest.raises(urllib.error.HTTPError) as refusal, urllib.request.urlopen(request, timeout=PATIENCE):
        pass
    with refusal.value as answer:
        return answer.code, json.load(answer)["error"]


def published(service: MessagingService, count: int, topic: str = "incidents.*") -> list[Any]:
    """So many events, by type: Kafka keeps no order between topics."""
    found = list(service.consume(topic, IncidentEvent, start="earliest", timeout=PATIENCE, limit=count))
    assert len(found) == count
    return sorted(found, key=lambda delivery: delivery.payload.type)


# -- REST ---------------------------------------------------------------------------------------------


def test_the_flask_endpoint_publishes_what_it_is_asked_to(flask: Flask, service: MessagingService) -> None:
    app = flask("rest_flask")
    status, created = post(f"{app.url}/incidents", WANTED, X_Request_ID="request-7")
    assert status == 201
    status, resolved = post(f"{app.url}/incidents/{created['incident_id']}/resolve", {"resolution_time_secs": 600})
    assert status == 200

    opening, end = published(service, 2)
    assert opening.payload.title == "primary is down"
    assert (opening.key, opening.metadata.message_id) == (created["incident_id"], created["message_id"])
    assert opening.metadata.correlation_id == "request-7"
    assert (end.payload.type, end.metadata.message_id) == ("Resolved", resolved["message_id"])
    assert end.metadata.correlation_id not in (None, "request-7")


@on_nats
def test_the_flask_endpoint_tells_what_is_wrong_with_a_request_from_what_is_wrong_with_a_broker(
    start: Start, flask: Flask
) -> None:
    app = flask("rest_flask")
    assert refused(app, "/incidents", b'{"severity": "low"}') == (400, "missing: type, title")
    assert refused(app, "/incidents/INC-1/resolve", b"{}") == (400, "missing: resolution_time_secs")
    for path in ("/incidents", "/incidents/INC-1/resolve"):
        for body, content_type in ((b"[]", JSON), (b"{", JSON), (b"{}", "text/plain")):
            expected = (400, "the body must be a JSON object, sent as application/json")
            assert refused(app, path, body, content_type) == expected
    assert refused(app, "/incidents", json.dumps(WANTED | {"title": 7}).encode()) == (
        422,
        "title 7 is not allowed: text",
    )
    status, why = refused(app, "/incidents/INC-1/resolve", b'{"resolution_time_secs": "soon"}')
    assert (status, why.partition(" ")[0]) == (422, "resolution_time_secs")

    nowhere = start(
        "-m", "flask", "--app", "rest_flask", "run", "--port", "{port}",
        INCIDENT_MESSAGING_NATS__SERVERS="nats://127.0.0.1:9",
    )  # fmt: skip
    assert nowhere.post("/incidents", **WANTED).status == 503
    assert nowhere.post("/incidents/INC-1/resolve", resolution_time_secs=-1).status == 422


def test_the_django_endpoint_publishes_once_it_is_committed(
    start: Start, service: MessagingService, environment: dict[str, str], tmp_path: Path
) -> None:
    example = str(EXAMPLES / "rest_django.py")
    code, said, errors = outcome([example, "migrate", "--run-syncdb"], environment, tmp_path)
    assert code == 0, said + errors
    app = start(example, "runserver", "--noreload", "{port}")

    assert refused(app, "/incidents", json.dumps(WANTED | {"severity": "dreadful"}).encode()) == (
        400,
        "severity is low, high or critical",
    )
    assert refused(app, "/incidents", b"{")[1].startswith("the body is no JSON: ")
    assert refused(app, "/incidents", b"[]") == (400, "the body is no JSON object")
    assert refused(app, "/incidents", b'{"severity": "low", "type": 7}') == (400, "missing, or no text: type, title")
    status, created = post(f"{app.url}/incidents", WANTED, X_Request_ID="request-7")
    assert status == 201

    [event] = published(service, 1)
    assert event.payload.severity == "critical"
    assert (event.key, event.metadata.correlation_id) == (created["incident_id"], "request-7")


# -- streams ----------------------------------------------------------------------------------------


@contextmanager
def graphql_stream(app: App, query: str) -> Iterator[Iterator[str]]:
    """The lines of a GraphQL subscription, without the empty ones."""
    address = app.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request("POST", "/graphql/stream", json.dumps({"query": query}), {"Content-Type": JSON})
        with connection.getresponse() as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            yield (line.decode().strip() for line in response if line.strip())


@on_nats
def test_every_graphql_subscriber_gets_the_incidents_that_it_asked_for(flask: Flask) -> None:
    app = flask("graphql_incidents")
    critical = 'subscription { incidents(severity: "critical") { incidentId title } }'
    with (
        graphql_stream(app, critical) as some,
        graphql_stream(app, "subscription { incidents { incidentId } }") as every,
    ):
        assert [next(some), next(every)] == [": from here on nothing is missed"] * 2
        ids = []
        for severity, title in (("low", "slow"), ("critical", "down")):
            query = f'mutation {{ open(severity: "{severity}", title: "{title}") }}'
            ids.append(post(f"{app.url}/graphql", {"query": query})[1]["data"]["open"])

        assert events(every, 2) == [{"incidents": {"incidentId": one}} for one in ids]
        assert events(some, 1) == [{"incidents": {"incidentId": ids[1], "title": "down"}}]
        assert next(every) == ": still here"  # after some seconds without an event


def events(lines: Iterator[str], count: int) -> list[Any]:
    data = (json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:"))
    return [next(data)["data"] for _ in range(count)]


@on_nats
def test_a_graphql_subscription_that_is_wrong_is_told_so(flask: Flask) -> None:
    with graphql_stream(flask("graphql_incidents"), "subscription { weather }") as lines:
        answer = list(lines)
    assert "Cannot query field 'weather'" in answer[2]
    assert answer[3:] == ["event: complete", "data:"]


@pytest.fixture
def graphql(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example in this process, on the memory broker."""
    monkeypatch.setenv("INCIDENT_MESSAGING_BACKEND", "memory")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    example = importlib.import_module("graphql_incidents")
    yield example
    del sys.modules["graphql_incidents"]
    assert example.messaging.close(example.app) == []


def test_a_graphql_reader_that_leaves_before_the_first_event_leaves_no_subscription(
    graphql: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = graphql.app.extensions["incident_messaging"][1]
    subscribe, subscriptions = service.subscribe, []

    def watched(*words: Any, **more: Any) -> Any:
        subscriptions.append(subscribe(*words, **more))
        return subscriptions[-1]

    monkeypatch.setattr(service, "subscribe", watched)
    query = {"query": "subscription { incidents { incidentId } }"}
    request = EnvironBuilder("/graphql/stream", method="POST", json=query).get_environ()

    answer = graphql.app(request, lambda *_: None)  # as a server does it, which then finds that nobody reads
    [subscription] = subscriptions
    assert not subscription.closed
    answer.close()

    assert subscription.closed


@pytest.mark.parametrize("body", [{}, [], {"query": 7}])
def test_a_graphql_request_without_a_query_is_told_so(graphql: ModuleType, body: Any) -> None:
    answer = graphql.app.test_client().post("/graphql/stream", json=body)
    assert (answer.status_code, answer.json) == (400, {"errors": [{"message": "query is missing"}]})


@on_nats
def test_every_socket_sees_every_incident(flask: Flask, service: MessagingService) -> None:
    url = flask("websocket_incidents").url.replace("http", "ws") + "/incidents"
    with closing(Client.connect(url)) as first, closing(Client.connect(url)) as second:
        assert [receive(first), receive(second)] == [{"type": "Ready"}] * 2
        service.publish_incident_created(
            "INC-1", **{"incident_type" if k == "type" else k: v for k, v in WANTED.items()}
        )
        service.publish_incident_resolved("INC-1", 60)
        expected = [{"type": "Created", "incident_id": "INC-1"}, {"type": "Resolved", "incident_id": "INC-1"}]
        assert [receive(first), receive(first)] == expected
        assert [receive(second), receive(second)] == expected


def receive(socket: Client) -> Any:
    return json.loads(socket.receive(PATIENCE))


# -- without the web -------------------------------------------------------------------------------------


def test_the_script_lists_what_is_open(environment: dict[str, str], tmp_path: Path) -> None:
    def script(*words: str) -> tuple[int, str, str]:
        return outcome([str(EXAMPLES / "script.py"), *words], environment, tmp_path)

    assert script("resolve", "INC-1", "--after", "600") == (0, "", "")  # as Kafka's topics may come: the end first
    for number, severity in (("INC-1", "critical"), ("INC-2", "low"), ("INC-3", "high")):
        assert script("open", number, severity, "database", f"{number} is down") == (0, "", "")
    assert script("resolve", "INC-3", "--after", "600") == (0, "", "")
    assert script("list") == (0, "INC-2  low       INC-2 is down\n", "")


@on_nats
def test_the_script_ends_with_a_reason(environment: dict[str, str], tmp_path: Path) -> None:
    wrong = environment | {"INCIDENT_MESSAGING_BACKEND": "rabbit"}
    code, said, errors = outcome([str(EXAMPLES / "script.py"), "list"], wrong, tmp_path)
    assert (code, said) == (1, "")
    assert "backend" in errors
    assert "Traceback" not in errors


@on_kafka
def test_a_celery_task_publishes_from_its_forked_worker(
    start: Start, service: MessagingService, environment: dict[str, str], tmp_path: Path
) -> None:
    queue = {"CELERY_BROKER_URL": f"sqla+sqlite:///{tmp_path}/queue.sqlite3"}
    command = ["-m", "celery", "--app", "celery_task", "worker", "--concurrency", "2", "--loglevel", "INFO"]
    worker = start(*command, serves=False, **queue)
    # Two processes that make this queue at once disturb each other.
    assert until(lambda: "ready." in worker.said, PATIENCE), worker.said

    assert outcome([str(EXAMPLES / "celery_task.py"), "INC-1"], environment | queue, tmp_path)[0] == 0

    [escalated] = published(service, 1, "incidents.escalated")
    assert (escalated.payload.incident_id, escalated.payload.escalation_level) == ("INC-1", 2)
    [note] = list(service.consume("notes", timeout=PATIENCE, limit=1))
    assert note.payload == {"incident_id": "INC-1", "text": "escalated by hand"}
    assert worker.end() == 0
