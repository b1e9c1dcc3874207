"""The console's REST endpoint."""

from __future__ import annotations

import threading

import pytest
from console_kit import MODULES, create_app, feed, service_of
from waiting import until

from incident_messaging import MessagingConfig
from incident_messaging.brokers.ports import free_port

OUTAGE = {"title": "checkout is down", "severity": "critical", "incident_type": "service"}


def opened(client) -> str:
    answer = client.post("/api/incidents", json=OUTAGE)
    assert answer.status_code == 201
    incident_id = answer.json["incident_id"]
    assert until(lambda: incident_id in known(client))
    return incident_id


def known(client) -> dict[str, dict]:
    return {incident["incident_id"]: incident for incident in client.get("/api/incidents").json["incidents"]}


def test_an_incident_goes_from_opened_to_resolved(client):
    incident_id = opened(client)
    assert known(client)[incident_id].items() >= OUTAGE.items()

    for _ in range(2):
        level = known(client)[incident_id]["level"]
        assert client.post(f"/api/incidents/{incident_id}/escalate", json={}).status_code == 200
        assert until(lambda level=level: known(client)[incident_id]["level"] == level + 1)
    assert client.post(f"/api/incidents/{incident_id}/assign", json={"assignee": "on-call payments"}).status_code == 200
    assert client.post(f"/api/incidents/{incident_id}/resolve", json={}).status_code == 200

    assert until(lambda: known(client)[incident_id]["state"] == "resolved")
    incident = known(client)[incident_id]
    assert (incident["level"], incident["assignee"]) == (2, "on-call payments")
    assert 0 <= incident["resolution_time_secs"] < 60


@pytest.mark.parametrize("action", ["escalate", "assign", "resolve"])
def test_an_incident_that_does_not_exist_is_404(client, action):
    answer = client.post(f"/api/incidents/INC-0/{action}", json={"assignee": "on-call"})
    assert (answer.status_code, answer.json) == (404, {"error": "there is no incident INC-0"})


def test_a_resolved_incident_stays_resolved(client):
    incident_id = opened(client)
    client.post(f"/api/incidents/{incident_id}/resolve", json={})
    assert until(lambda: known(client)[incident_id]["state"] == "resolved")

    answer = client.post(f"/api/incidents/{incident_id}/escalate", json={})
    assert (answer.status_code, answer.json) == (409, {"error": f"{incident_id} is resolved already"})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"title": "  "}, "title is missing"),
        ({"title": None}, "title is missing"),
        ({"title": "x" * 201}, "title is longer than 200 characters"),
        ({"incident_type": 7}, "incident_type is missing"),
        ({"severity": "bad"}, "severity must be one of critical, high, medium, low"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(client, changes, error):
    answer = client.post("/api/incidents", json=OUTAGE | changes)
    assert (answer.status_code, answer.json) == (400, {"error": error})


def test_what_cannot_be_sent_is_a_400(client):
    answer = client.post("/api/incidents", json=OUTAGE | {"title": "half a character: \ud800"})
    assert answer.status_code == 400
    assert "surrogate" in answer.json["error"]


@pytest.mark.parametrize("body", ["[]", "7", "null"])
def test_a_body_that_is_no_object_is_a_400(client, body):
    answer = client.post("/api/incidents", data=body, content_type="application/json")
    assert (answer.status_code, answer.json) == (400, {"error": "severity is missing"})


FORMS = {
    "form": "application/x-www-form-urlencoded",
    "file form": "multipart/form-data; boundary=x",
    "text": "text/plain",
    "text that says json": "text/plain; application/json",
    "nothing": None,
}


@pytest.mark.parametrize("content_type", FORMS.values(), ids=FORMS)
def test_what_another_site_can_post_is_refused_everywhere(app, client, content_type):
    incident_id = opened(client)
    before = known(client)[incident_id]
    rules = [rule.rule for rule in app.url_map.iter_rules() if "POST" in rule.methods]
    assert len(rules) == 5

    for rule in rules:
        answer = client.post(rule.replace("<incident_id>", incident_id), data=b"{}", content_type=content_type)
        assert (answer.status_code, answer.json) == (415, {"error": "the Content-Type must be application/json"}), rule

    assert client.post(f"/api/incidents/{incident_id}/assign", json={"assignee": "on-call"}).status_code == 200
    assert until(lambda: known(client)[incident_id] != before)
    assert [(i["state"], i["level"], i["assignee"]) for i in known(client).values()] == [("open", 0, "on-call")]


def test_without_a_broker_it_says_when_to_come_again(start, monkeypatch):
    monkeypatch.setattr(feed, "READY_SECS", 0.1)
    servers = [f"nats://127.0.0.1:{free_port()}"]
    client = start(MessagingConfig(backend="nats", nats={"servers": servers})).test_client()

    posted = client.post("/api/incidents", json=OUTAGE)
    listed = client.get("/api/incidents")

    for answer in (posted, listed):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json["error"].startswith("The broker cannot be had: ")


def test_dead_letters_are_shown_by_reason_and_put_back(app, client, monkeypatch):
    monkeypatch.setattr(MODULES["dead_letters"], "FRESH_SECS", 0.0)
    works = False

    def page_somebody(_delivery):
        if not works:
            raise RuntimeError("the pager is out of reach")

    service_of(app).subscribe("incidents.created", callback=page_somebody, group="pager")
    assert client.get("/api/dead-letters").json == {"total": 0, "more": False, "groups": []}
    first, second = opened(client), opened(client)

    assert until(lambda: client.get("/api/dead-letters").json["total"] == 2)
    [group] = client.get("/api/dead-letters").json["groups"]
    assert group["count"] == 2
    assert group["last_key"] in (first, second)
    assert (group["topic"], group["group"], group["exception"]) == ("incidents.created", "pager", "RuntimeError")
    assert group["reason"] == "the pager is out of reach"

    works = True
    choice = {name: group[name] for name in ("backend", "topic", "group", "exception")}
    answer = client.post("/api/dead-letters/redrive", json=choice)
    assert answer.json == {"done": 2, "skipped": 0, "failed": 0, "reasons": []}
    assert client.get("/api/dead-letters").json["total"] == 0


def test_many_pages_look_into_the_dead_letters_once(app, client, monkeypatch):
    looks = []
    list_them = service_of(app).dead_letters.list
    monkeypatch.setattr(service_of(app).dead_letters, "list", lambda **wish: looks.append(wish) or list_them(**wish))

    for _ in range(20):
        assert client.get("/api/dead-letters").status_code == 200

    assert looks == [{"limit": 1_000}]


class Slow:
    """A look into the dead letters that lasts until the broker answers."""

    def __init__(self, list_them):
        self._list = list_them
        self.looks = 0
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, **wish):
        self.looks += 1
        assert self.answers.wait(60.0)
        return self._list(**wish)

    def asked_by(self, client):
        """A request of another page, which waits."""
        self.answers.clear()
        looks = self.looks
        page = threading.Thread(target=client.get, args=["/api/dead-letters"])
        page.start()
        assert until(lambda: self.looks > looks, 30.0)
        return page


@pytest.fixture
def slow(app, monkeypatch):
    slow = Slow(service_of(app).dead_letters.list)
    monkeypatch.setattr(service_of(app).dead_letters, "list", slow)
    monkeypatch.setattr(MODULES["dead_letters"], "FRESH_SECS", 0.0)
    yield slow
    slow.answers.set()


def test_while_one_page_waits_for_the_dead_letters_the_others_are_told_what_was_there(app, client, slow):
    found = client.get("/api/dead-letters").json
    page = slow.asked_by(app.test_client())

    for _ in range(20):
        assert client.get("/api/dead-letters").json == found

    assert (slow.looks, page.is_alive()) == (2, True)
    slow.answers.set()
    page.join()


def test_while_the_first_page_waits_for_the_dead_letters_the_others_are_told_to_come_again(
    app, client, slow, monkeypatch
):
    monkeypatch.setattr(MODULES["dead_letters"], "WAIT_SECS", 0.0)
    page = slow.asked_by(app.test_client())

    answer = client.get("/api/dead-letters")

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "have not been read yet" in answer.json["error"]
    slow.answers.set()
    page.join()
    assert client.get("/api/dead-letters").json["total"] == 0


def test_a_broker_that_is_away_is_looked_for_once_for_all_pages(start, monkeypatch):
    servers = [f"nats://127.0.0.1:{free_port()}"]
    app = start(MessagingConfig(backend="nats", nats={"servers": servers}, connect_timeout_ms=500))
    monkeypatch.setattr(MODULES["dead_letters"], "FRESH_SECS", 600.0)
    looks = []
    list_them = service_of(app).dead_letters.list
    monkeypatch.setattr(service_of(app).dead_letters, "list", lambda **wish: looks.append(wish) or list_them(**wish))

    answers = [app.test_client().get("/api/dead-letters") for _ in range(20)]

    assert {answer.status_code for answer in answers} == {503}
    assert len({answer.json["error"] for answer in answers}) == 1
    assert len(looks) == 1


def test_a_look_that_takes_long_ends_with_what_it_has_found(app, client, monkeypatch):
    service_of(app).subscribe("incidents.created", callback=lambda _: 1 / 0, group="pager")
    opened(client), opened(client), opened(client)
    monkeypatch.setattr(MODULES["dead_letters"], "FRESH_SECS", 0.0)
    assert until(lambda: client.get("/api/dead-letters").json["total"] == 3)

    monkeypatch.setattr(MODULES["dead_letters"], "LOOK_SECS", -1.0)

    answer = client.get("/api/dead-letters").json
    assert (answer["total"], answer["more"], len(answer["groups"])) == (1, True, 1)


def test_the_page_and_its_parts_are_served(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "<h1>Incident console</h1>" in page.text
    for name in ("console.css", "console.js"):
        assert f"/static/{name}" in page.text
        with client.get(f"/static/{name}") as part:
            assert part.status_code == 200


def test_nothing_connects_before_the_first_request(config):
    app = create_app(config)
    assert service_of(app).health().backends["memory"].state == "new"
    assert service_of(app).close() == []
