"""``manage.py`` with the outbox installed, as an operator uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outbox_kit import HERE, PATIENCE, Lab
from waiting import until

from incident_messaging.brokers.ports import free_port

NewLab = Callable[..., Lab]


def manage(lab: Lab, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    place = {
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
        "DJANGO_SETTINGS_MODULE": "outbox_settings",
        "OUTBOX_DATABASE": json.dumps(lab.database.django),
        "OUTBOX_MESSAGING": json.dumps(lab.messaging | options),
    }
    command = [sys.executable, "-m", "django", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | place, **pipes)


def says(process: subprocess.Popen[str], code: int = 0) -> str:
    words, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, words
    return words


def test_the_relay_runs_until_it_is_asked_to_end_and_takes_back_what_it_put_aside(new_lab: NewLab) -> None:
    lab = new_lab("django", "sqlite", "nats")
    lab.do("write", messages=[{"key": "a", "n": n, "text": "x" * (3_000 if n == 1 else 0)} for n in range(3)])
    relay = manage(lab, "relay_incidents", "--poll-interval", "0.05", "--batch-size", "10", max_message_size=2_000)
    try:
        assert lab.empties()
    finally:
        relay.terminate()
    assert "is put aside" in says(relay)

    assert says(manage(lab, "relay_incidents", "--retry-failed")) == "1 messages are tried again\n"
    lab.do("relay")
    assert lab.arrived() == [("a", 0), ("a", 2), ("a", 1)]


def test_a_relay_says_on_its_port_how_it_is_and_what_it_has_done(new_lab: NewLab) -> None:
    lab = new_lab("django", "sqlite", "nats")
    lab.do("write", messages=[{"key": "a", "n": n} for n in range(3)])
    port = free_port()

    def page(path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE) as answer:
                return answer.read().decode()
        except OSError:  # not yet, or not ready
            return ""

    relay = manage(lab, "relay_incidents", "--poll-interval", "0.05", "--port", str(port))
    try:
        assert until(lambda: "messaging_outbox_relayed_total 3.0" in page("metrics"), PATIENCE)
        assert 'messaging_active_connections{backend="nats"} 1.0' in page("metrics")
        assert '"ok": true' in page("readyz")
        taken = says(manage(lab, "relay_incidents", "--port", str(port)), 1)
        assert f"CommandError: port {port} on 127.0.0.1 cannot be had" in taken
        assert "Traceback" not in taken
    finally:
        relay.terminate()
    says(relay)
    assert page("metrics") == ""


def test_what_a_relay_cannot_work_with_is_one_line(new_lab: NewLab) -> None:
    lab = new_lab("django", "sqlite", "nats")
    assert "batch_size 0 is not allowed" in says(manage(lab, "relay_incidents", "--batch-size", "0"), 1)
    words = says(manage(lab, "relay_incidents", enabled=False), 1)
    assert "Messaging disabled" in words
    assert "Traceback" not in words


def test_a_relay_that_cannot_read_its_certificates_says_so_and_leaves_all_as_it_is(
    new_lab: NewLab, tmp_path: Path
) -> None:
    lab = new_lab("django", "sqlite", "nats")
    lab.do("write", messages=[{"key": "a", "n": n} for n in range(3)])
    files = {"enable_tls": True, "tls_ca_file": str(tmp_path / "nowhere.pem")}
    words = says(manage(lab, "relay_incidents", nats=lab.messaging["nats"] | files), 1)
    assert "CommandError: NATS TLS files cannot be used" in words
    assert "Traceback" not in words
    assert (lab.waiting(), lab.parked()) == (3, 0)


def test_the_migrations_are_those_of_the_models_and_old_marks_can_be_purged(new_lab: NewLab) -> None:
    lab = new_lab("django", "sqlite", "nats")
    assert says(manage(lab, "makemigrations", "--check", "--dry-run")) == "No changes detected\n"
    assert says(manage(lab, "check")).startswith("System check identified no issues")
    marks = "INSERT INTO incident_outbox_inboxmark (handler, message_id, handled_at) VALUES ('h', '{}', '{}')"
    lab.database.change(marks.format("old", "2020-01-01 00:00:00"))
    lab.database.change(marks.format("new", "2999-01-01 00:00:00"))
    assert says(manage(lab, "purge_incident_inbox", "--days", "30")) == "1 messages are forgotten\n"
