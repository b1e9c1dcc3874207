"""The incident console in real browsers, on real brokers."""

from __future__ import annotations

import signal

import pytest
from browsing import installed
from waiting import until


def create(service, title, severity="high"):
    service.publish_incident_created(f"INC-{title.upper().replace(' ', '-')}", severity, "service", title, timeout=30.0)


@pytest.mark.parametrize("shared_broker", ["nats", "kafka", "both"], indirect=True)
@pytest.mark.usefixtures("shared_broker")
def test_two_browsers_see_one_anothers_incidents(start, one, other):
    one.open(start().url)
    other.open(start().url)  # another server process

    one.report("checkout is slow", "medium")
    other.sees(["checkout is slow"], other.listed)
    other.report("payments are down", "critical")
    one.sees(["payments are down", "checkout is slow"], one.listed)

    one.click("payments are down", "Escalate")
    other.sees(lambda facts: "level 1" in facts, lambda: other.facts("payments are down"))
    other.card("payments are down").find_element("name", "assignee").send_keys("on-call payments")
    other.click("payments are down", "Assign")
    one.sees(lambda facts: "on-call payments" in facts, lambda: one.facts("payments are down"))
    one.click("payments are down", "Resolve")
    other.sees(["payments are down"], lambda: other.listed("resolved"))

    assert other.listed() == ["checkout is slow"]
    assert other.text("#open-count") == other.text("#resolved-count") == "1"


@pytest.mark.usefixtures("shared_broker")
def test_a_reload_catches_up(start, elsewhere, one):
    one.open(start().url)
    create(elsewhere, "first")
    one.sees(["first"], one.listed)
    url = one.driver.current_url

    one.driver.get("about:blank")
    create(elsewhere, "second")
    one.driver.get(url)

    one.sees({"first", "second"}, lambda: set(one.listed()))
    assert one.shown == "changes", "not the whole of it, only what was missed"
    one.driver.refresh()
    one.sees("live", lambda: one.status[0])
    assert sorted(one.listed()) == ["first", "second"]


@pytest.mark.usefixtures("shared_broker")
def test_the_page_says_that_the_server_is_away_and_back_and_catches_up(start, elsewhere, one):
    server = start()
    one.open(server.url)
    create(elsewhere, "before")
    one.sees(["before"], one.listed)

    server.stop(signal.SIGKILL)
    one.sees(("away", "The server is away. The page tries again by itself."), lambda: one.status)
    one.report("nobody hears")
    one.sees("The server cannot be reached. Look at the list before you repeat it.", lambda: one.text("#error"))
    create(elsewhere, "meanwhile")
    server.start()

    one.sees(lambda status: status[0] == "live" and "is back" in status[1], lambda: one.status)
    one.sees({"before", "meanwhile"}, lambda: set(one.listed()))
    assert one.shown == "changes", "not the whole of it, only what was missed"


@pytest.mark.parametrize("shared_broker", ["nats"], indirect=True)
@pytest.mark.usefixtures("shared_broker")
def test_an_id_that_no_server_takes_is_given_up(start, elsewhere, one):
    server = start("gunicorn")
    one.open(server.url)
    create(elsewhere, "before")
    one.sees(["before"], one.listed)

    one.driver.execute_script(
        "removeEventListener('pagehide', keep);"
        "sessionStorage.setItem(KEPT, JSON.stringify({lastId: 'x'.repeat(5000), incidents: []}))"
    )
    one.driver.get(server.url)

    one.sees(["before"], one.listed)
    assert one.shown == "snapshot"
    one.sees("live", lambda: one.status[0])


@pytest.mark.parametrize("shared_broker", ["nats"], indirect=True)
@pytest.mark.usefixtures("shared_broker")
def test_the_page_says_that_the_server_is_silent_though_it_has_never_said_anything(start, one):
    server = start()
    one.open(server.url)

    with server.frozen():
        one.driver.execute_script(
            "clearTimeout(silence);"
            "const later = setTimeout; window.setTimeout = (act, ms) => later(act, ms / 20);"  # 40 s are 2 s
            "connect();"
        )
        one.sees(("away", "The server is silent. The page tries again by itself."), lambda: one.status)

    one.sees("live", lambda: one.status[0])


def test_the_page_says_that_the_broker_is_away_and_back_and_catches_up(own_broker, start, elsewhere, one):
    one.open(start().url)
    create(elsewhere, "before")
    one.sees(["before"], one.listed)

    own_broker.kill()
    one.sees(lambda status: status[0] == "away" and "is away" in status[1], lambda: one.status)
    one.report("nobody hears")
    one.sees(lambda text: "cannot be had" in text and "Try again in 5 s." in text, lambda: one.text("#error"))
    own_broker.start()
    create(elsewhere, "meanwhile")

    one.sees(lambda status: status[0] == "live" and "is back" in status[1], lambda: one.status)
    one.sees(lambda listed: {"before", "meanwhile"} <= set(listed), one.listed)


@pytest.mark.usefixtures("shared_broker")
def test_dead_letters_are_shown_and_put_back(start, elsewhere, one):
    handled = []
    works = False

    def page_somebody(delivery):
        if not works:
            raise RuntimeError("the pager is out of reach")
        handled.append(delivery.payload["incident_id"])

    elsewhere.subscribe("incidents.created", callback=page_somebody, group="pager")
    create(elsewhere, "disk full")
    assert until(lambda: next(elsewhere.dead_letters.list(), None), 30.0)

    one.open(start().url)
    one.sees("1", lambda: one.text("#dead-count"))
    assert one.text("#dead .what") == "1 × incidents.created, given up by pager"
    assert one.text("#dead .reason") == "RuntimeError: the pager is out of reach"
    works = True
    one.find("#dead button").click()

    one.sees("1 put back.", lambda: one.text("#dead-note"))
    assert one.text("#dead-count") == "0"
    assert until(lambda: handled == ["INC-DISK-FULL"], 30.0)


def test_without_a_browser_it_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install chromium chromium-driver"):
        installed("chromium")
