"""`incident-messaging worker`: handlers until a signal, and a port that says how it is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from waiting import until
from worker_kit import COMMAND, PATIENCE, Start, module

from incident_messaging import IncidentCreated, MessagingConfig, MessagingService

HANDLER = """
@service.handler("incidents.*", IncidentEvent, group="pager")
def page(delivery):
    print("handled", delivery.payload.incident_id, flush=True)
"""


def publish(settings: dict[str, Any], *names: str) -> None:
    with MessagingService(MessagingConfig.from_mapping(settings)) as service:
        for name in names:
            service.publish_incident_event(IncidentCreated(name, "high", "database", "down"))


def test_a_worker_handles_says_when_it_is_ready_and_ends_by_sigterm(settings: dict[str, Any], start: Start) -> None:
    worker = start(module(settings, HANDLER))
    assert until(worker.ready, PATIENCE), worker.output

    publish(settings, "INC-1", "INC-2")

    assert until(lambda: worker.handled() == ["INC-1", "INC-2"], PATIENCE), worker.output
    status, body = worker.get("/livez")
    assert (status, json.loads(body)["waiting_handlers"]) == (200, 0)
    labels = f'{{backend="{settings["backend"]}",topic="incidents.created"}}'
    counted = f"messaging_messages_consumed_total{labels} 2.0"  # told by the time that a thread waits for more
    assert until(lambda: counted in worker.get("/metrics")[1], PATIENCE), worker.get("/metrics")
    assert worker.get("/else")[0] == 404
    worker.process.send_signal(signal.SIGTERM)
    assert (worker.ended(), "Traceback" in worker.output) == (0, False), worker.output


def test_it_is_not_ready_while_its_broker_is_away_but_lives(
    prefix: str, start: Start, nats_server_factory: Any
) -> None:
    server = nats_server_factory()
    settings = {"topic_prefix": prefix, "nats": {"servers": [server.url], "reconnect_delay_ms": 50}}
    worker = start(module(settings, HANDLER))
    assert until(worker.ready, PATIENCE), worker.output

    server.kill()
    assert until(lambda: worker.get("/readyz")[0] == 503, PATIENCE)
    assert worker.get("/livez")[0] == 200

    server.start()
    assert until(worker.ready, PATIENCE), worker.output
    publish(settings, "INC-3")
    assert until(lambda: worker.handled() == ["INC-3"], PATIENCE), worker.output


def test_a_subscription_that_ends_by_itself_ends_the_worker_and_says_why(
    settings: dict[str, Any], start: Start
) -> None:
    settings["retry"] = {"max_attempts": 1, "breaker_share": 0.5, "breaker_window": 2}
    publish(settings, "INC-1", "INC-2", "INC-3")
    worker = start(module(settings, HANDLER, "    raise RuntimeError('a bad deploy')"))
    assert worker.ended() == 1, worker.output
    assert "Error: " in worker.lines[-1]
    assert "breaker_share" in worker.lines[-1]


def test_a_signal_ends_a_worker_that_still_waits_for_its_broker(prefix: str, start: Start) -> None:
    with socket.socket() as nobody:  # takes connections, and says nothing
        nobody.bind(("127.0.0.1", 0))
        nobody.listen()
        url = f"nats://127.0.0.1:{nobody.getsockname()[1]}"
        settings = {"topic_prefix": prefix, "nats": {"servers": [url]}, "connect_timeout_ms": 600_000,
                    "subscribe_timeout_ms": 600_000}  # fmt: skip
        worker = start(module(settings, HANDLER))
        assert until(lambda: worker.get("/livez")[0] == 200, PATIENCE), worker.output
        assert worker.get("/readyz")[0] == 503
        worker.process.send_signal(signal.SIGTERM)
        assert (worker.ended(), "Traceback" in worker.output) == (0, False), worker.output


def test_the_concurrency_is_for_handlers_that_declare_none(prefix: str, start: Start) -> None:
    lines = (
        "import threading",
        "def tell(delivery):",
        "    while service.health().waiting_handlers: pass",
        "    names = [t.name for t in threading.enumerate()]",
        "    for topic in 'ab':",
        "        print('handled', topic + str(sum(f'{topic}.x' in n and 'worker' in n for n in names)), flush=True)",
        "service.handler('a.x')(tell)",
        "service.handler('b.x', concurrency=2)(tell)",
        "def make():",
        "    service.publish('b.x', {})",
        "    return service",
    )
    settings = {"backend": "memory", "topic_prefix": prefix}
    worker = start(module(settings, *lines), "--concurrency", "5", target="app:make")
    assert until(lambda: len(worker.handled()) == 2, PATIENCE), worker.output
    assert worker.handled() == ["a5", "b2"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("app", "'app' is not allowed: module:service"),
        ("nothing.there:service", "there is no module 'nothing'"),
        ("app:other", "app has no MessagingService 'other'; it has service"),
        ("app:service", "no handler is declared: put @service.handler(topic, type) before a function"),
    ],
)
def test_what_cannot_be_run_is_named_with_the_remedy(target: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(module({"backend": "memory"}))
    result = subprocess.run(
        [*COMMAND, target], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (["--host", "256.1.1.1"], {}, "port 0 on 256.1.1.1 cannot be had"),
        ([], {"PROMETHEUS_MULTIPROC_DIR": "nowhere"}, "PROMETHEUS_MULTIPROC_DIR must name a folder that exists"),
    ],
)
def test_a_port_that_cannot_be_served_is_an_error(
    options: list[str], environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(module({"backend": "memory"}, HANDLER))
    result = subprocess.run(
        [*COMMAND, "app:service", "--port", "0", *options], cwd=tmp_path, env=os.environ | environment,
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert (result.returncode, words in result.stderr) == (2, True), result.stderr


def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(module({"backend": "memory"}, HANDLER))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [*COMMAND, "app:service", "--port", str(port)],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    assert result.returncode == 2
    assert f"port {port} on 127.0.0.1 cannot be had" in result.stderr
