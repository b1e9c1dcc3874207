"""The console under the servers that its documentation names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
from console_kit import CONSOLE
from waiting import takes, until

from incident_messaging.brokers.ports import free_port

BIN = Path(sys.executable).parent
GUNICORN = "--workers 2 --threads 50 --graceful-timeout 2 --preload --bind 127.0.0.1:{port} app:create_app()"
SERVERS = {
    "itself": [sys.executable, "app.py", "--backend", "nats", "--port", "{port}"],
    "flask": [BIN / "flask", "--app", "app", "run", "--port", "{port}"],
    "gunicorn": [BIN / "gunicorn", *GUNICORN.split()],
}

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=30.0) as answer:
        return json.load(answer)


def listed(url):
    """The incidents that one of its processes knows; none where that has not read the history in time."""
    try:
        return [incident["incident_id"] for incident in ask(f"{url}/api/incidents")["incidents"]]
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 503:
                raise
        return None


def answers(url):
    try:
        return listed(url) is not None
    except OSError:
        return False


@pytest.fixture
def url(request, nats_server, tmp_path):
    """A running server."""
    port = free_port()
    environment = {
        "HOME": str(tmp_path),
        "INCIDENT_MESSAGING_NATS__SERVERS": nats_server.url,
        "INCIDENT_MESSAGING_TOPIC_PREFIX": f"served-{uuid.uuid4().hex[:8]}",
    }
    command = [str(part).format(port=port) for part in SERVERS[request.param]]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=CONSOLE, env=os.environ | environment, stdout=log, stderr=log)
    with process:
        try:
            url = f"http://127.0.0.1:{port}"
            assert until(lambda: process.poll() is not None or answers(url), 60.0)
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield url
            process.terminate()
            with takes(20.0):
                process.wait(30.0)
        finally:
            process.kill()


@pytest.mark.parametrize("url", SERVERS, indirect=True)
def test_the_console_runs_on(url):
    outage = {"title": "checkout is down", "severity": "critical", "incident_type": "service"}
    incident_id = ask(f"{url}/api/incidents", outage)["incident_id"]

    for _ in range(6):  # whichever process answers
        assert until(lambda: listed(url) == [incident_id], 30.0)
    with DIRECT.open(f"{url}/api/events", timeout=30.0) as stream:
        assert any(incident_id in line.decode() for line in stream)
