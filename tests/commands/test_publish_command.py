"""The command ``incident-messaging publish``."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from messages_kit import PATIENCE, Cli

from incident_messaging import IncidentCreated, IncidentEvent
from incident_messaging.brokers.ports import free_port
from incident_messaging.commands import commands
from incident_messaging.commands.progress import Progress

CREATED = {"type": "Created", "incident_id": "INC-1", "severity": "high", "incident_type": "database", "title": "down"}
LINES = 1_500

#: Runs a command and is killed, as by ``kill -9``, behind the 300th line.
KILLED = """
import os, signal
from incident_messaging.commands import commands, progress
passed = progress.Progress.passed
def passed_and_killed(self, line):
    passed(self, line)
    if line.number == 300:
        os.kill(os.getpid(), signal.SIGKILL)
progress.Progress.passed = passed_and_killed
commands()
"""


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "events.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def numbered(folder: Path) -> Path:
    return written(folder, *({"topic": "orders", "key": f"k{n % 7}", "payload": {"n": n}} for n in range(LINES)))


def test_a_message(cli: Cli) -> None:
    text = cli.run("publish", "orders", '{"n": 1}', "--key", "k", "--header", "a=b=c", "--correlation-id", "story-1")
    assert text.exit_code == 0, text.output
    told = cli.run("publish", "orders", "-", "--json", stdin='{\n"n": 2}')
    first, second = cli.held("orders")
    assert text.output == f"{first.metadata.message_id} published to orders: {cli.backend.value} {first.position}\n"
    assert (first.payload, first.key, first.headers) == ({"n": 1}, "k", {"a": "b=c"})
    assert first.metadata.correlation_id == "story-1"
    assert json.loads(told.output) == {
        "message_id": second.metadata.message_id,
        "topic": "orders",
        "results": {cli.backend.value: {"state": "ok", "position": second.position, "duplicate": False}},
    }
    assert (second.payload, second.key) == ({"n": 2}, None)


def test_an_incident_event_has_a_key_of_its_own(cli: Cli) -> None:
    assert cli.run("publish", "incidents.created", json.dumps(CREATED)).exit_code == 0
    (held,) = cli.service.consume("incidents.*", IncidentEvent, group="g", limit=1, timeout=PATIENCE)
    assert (held.payload, held.key) == (IncidentCreated("INC-1", "high", "database", "down"), "INC-1")


def test_a_file_of_lines_and_of_what_tail_wrote(cli: Cli) -> None:
    metadata = {"message_id": "m-1", "correlation_id": "c", "timestamp": 5, "source": "s", "headers": {"inner": "i"}}
    headers = {"a": "é", "traceparent": "00-1"}
    whole = {"topic": "orders.new", "key": "k", "headers": headers, "metadata": metadata, "payload": [1]}
    path = written(cli.folder, whole, "", {"payload": None}, {"payload": CREATED, "topic": None}, {"payload": CREATED})
    done = cli.run("publish", "orders.rest", "--file", str(path))
    assert (done.exit_code, done.output) == (0, "4 published\n")
    assert not path.with_name("events.jsonl.progress").exists()
    (held,) = cli.held("orders.new")
    assert (held.payload, held.key, held.headers) == ([1], "k", {"a": "é"})
    assert (held.metadata.message_id, held.metadata.correlation_id, held.metadata.timestamp) == ("m-1", "c", 5)
    assert (held.metadata.source, held.metadata.headers) == ("s", {"inner": "i"})
    assert [each.payload for each in cli.held("orders.rest")] == [None, CREATED, CREATED]

    path.write_text(cli.run("tail", "orders.>", "--since", "1h", "--limit", "4", "--json").output)
    again = cli.run("publish", "--file", str(path), "--set", f"topic_prefix={cli.prefix}.copy", "--json")
    assert json.loads(again.output) == {"published": 4, "duplicates": 0, "resumed_behind": 0}
    copy = {each.metadata.message_id: each for each in cli.held("copy.orders.new")}
    assert (copy["m-1"].payload, copy["m-1"].metadata) == ([1], held.metadata)


def test_an_incident_event_without_a_topic_goes_to_its_own(cli: Cli) -> None:
    assert cli.run("publish", "--file", str(written(cli.folder, {"payload": CREATED}))).output == "1 published\n"
    (held,) = cli.held("incidents.created")
    assert (held.payload, held.key) == (CREATED, "INC-1")


def test_a_run_that_was_killed_goes_on_where_it_was(cli: Cli) -> None:
    path = numbered(cli.folder)
    arguments = ["publish", "--file", str(path), "--config", str(cli.config)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL
    left = json.loads(path.with_name("events.jsonl.progress").read_text())
    assert left["line"] <= 300

    again = cli.run("publish", "--file", str(path), "--json")
    assert json.loads(again.stdout)["published"] == LINES - left["line"]
    counts = Counter(each.payload["n"] for each in cli.held("orders"))
    assert counts.keys() == set(range(LINES))
    twice = counts.total() - LINES
    if cli.backend.value == "nats":
        assert twice == 0
        assert json.loads(again.stdout)["duplicates"] >= 300 - left["line"]
    else:  # what was acknowledged since the last write of the progress file, and what was on its way
        assert 300 - left["line"] <= twice <= 300 - left["line"] + 1_000


def test_a_run_that_was_told_to_end_is_gone_on_with_and_nothing_is_stored_twice(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, passed = numbered(cli.folder), Progress.passed

    def told(self: Progress, line: Any) -> None:
        passed(self, line)
        if line.number == 300:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "passed", told)
        ended = cli.run("publish", "--file", str(path))
    assert (ended.exit_code, "300 published, up to line 300; run it again" in ended.stderr) == (130, True)
    with path.open("a") as file:
        file.write('{"topic": "orders", "payload": {"n": "appended"}}\n')
    again = cli.run("publish", "--file", str(path))
    assert (again.exit_code, "going on behind line 300" in again.stderr) == (0, True), again.output
    assert sorted(Counter(str(each.payload["n"]) for each in cli.held("orders")).values()) == [1] * (LINES + 1)


def interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of which a run has published the first line."""
    path = written(cli.folder, *({"topic": "orders", "payload": n} for n in range(3)))
    passed = Progress.passed

    def broken(self: Progress, line: Any) -> None:
        passed(self, line)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "passed", broken)
        assert cli.run("publish", "--file", str(path)).exit_code == 130
    return path


@pytest.mark.parametrize("broker_ways", ["nats"], indirect=True)
def test_what_cannot_be_gone_on_with_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    path = interrupted(cli, monkeypatch)
    elsewhere = cli.run("publish", "orders", "--file", str(path))
    assert (elsewhere.exit_code, "another TOPIC, broker or topic_prefix" in elsewhere.output) == (1, True)
    path.write_text(path.read_text().replace("0", "7", 1))
    changed = cli.run("publish", "--file", str(path))
    assert (changed.exit_code, "events.jsonl has changed before that; delete it" in changed.output) == (1, True)
    path.with_name("events.jsonl.progress").write_text("{}")
    broken = cli.run("publish", "--file", str(path))
    assert (broken.exit_code, "events.jsonl.progress cannot be read; delete it" in broken.output) == (1, True)
    path.with_name("events.jsonl.progress").unlink()
    path.with_name("events.jsonl.progress.new").mkdir()
    unwritable = cli.run("publish", "--file", str(path))
    assert (unwritable.exit_code, "events.jsonl.progress cannot be written" in unwritable.output) == (1, True)


@pytest.mark.parametrize("broker_ways", ["nats"], indirect=True)
def test_a_bar_on_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(cli.folder, *({"topic": "orders", "payload": n} for n in range(3)))
    assert cli.run("publish", "--file", str(path)).stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "3/3" in cli.run("publish", "--file", str(path)).stderr


BAD = {
    '{"payload": 1}': "it names no topic, and reads as no incident event",
    '{"payload": {"type": "Created"}}': "it names no topic, and reads as no incident event",
    "not json": "not readable as JSON",
    "[1]": 'it is not an object with a "payload"',
    '{"topic": "a"}': 'it is not an object with a "payload"',
    '{"topic": "a", "payload": 1, "Key": 1}': "unknown Key; there are topic, key, headers",
    '{"topic": "a", "payload": NaN}': "nan is not a JSON number",
    '{"topic": "a b", "payload": 1}': "topic 'a b' is not allowed",
    '{"topic": 5, "payload": 1}': "topic 5 is not allowed",
    '{"topic": ["a"], "payload": 1}': "topic ['a'] is not allowed",
    '{"topic": {"a": 1}, "payload": 1}': "topic {'a': 1} is not allowed",
    '{"payload": {"type": ["Created"]}}': "it names no topic, and reads as no incident event",
    '{"topic": "a", "key": 5, "payload": 1}': "key 5 is not allowed",
    '{"topic": "a", "key": ["k"], "payload": 1}': "key ['k'] is not allowed",
    '{"topic": "a", "headers": [], "payload": 1}': "headers is an object of text",
    '{"topic": "a", "headers": {"a": 1}, "payload": 1}': "header 'a' has the value 1",
    '{"topic": "a", "metadata": {"id": 1}, "payload": 1}': "metadata is an object of message_id",
    '{"topic": "a", "metadata": {"timestamp": "now"}, "payload": 1}': "metadata.timestamp 'now' is not allowed",
    f'{{"topic": "a", "payload": "{"x" * 1_100_000}"}}': "exceeds max_message_size",
}


def test_bad_lines_are_named_by_number_and_nothing_is_published(tmp_path: Path) -> None:
    path = written(tmp_path, '{"topic": "a", "payload": 1}', "", *BAD, *["x"] * 5)
    with path.open("ab") as file:
        file.write(b'{"topic": "a", "payload": "\xff"}')
    done = CliRunner().invoke(commands, ["publish", "--file", str(path)])
    named = done.stderr.splitlines()
    assert (done.exit_code, done.stdout) == (2, "")
    assert named[-1] == "Nothing was published: 25 of 26 lines are bad. 5 more are not named."
    for number, (line, words) in enumerate(zip(named, BAD.values(), strict=False), 3):
        assert line.startswith(f"Error: line {number}: ")
        assert words in line
    assert not path.with_name("events.jsonl.progress").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["orders"], 2, "give TOPIC and JSON (- for stdin), or --file"),
        (["orders", "{}", "--file", __file__], 2, "give TOPIC and JSON (- for stdin), or --file"),
        (["--file", __file__, "--key", "k"], 2, "--file takes no --key"),
        (["--file", os.devnull], 2, "is no regular file"),
        (["orders", "{"], 2, "not readable as JSON"),
        (["orders", "-"], 2, "not readable as JSON"),
        (["orders", "{}", "--header", "a"], 2, "'a' is not NAME=VALUE"),
        (["orders", "{}", "--header", "x-key=1"], 2, "header 'x-key' is reserved"),
        (["orders", "{}", "--timeout", "nan"], 2, "'nan' is no number"),
        (["orders", "{}", "--timeout", "inf"], 2, "inf is not in the range"),
        (["orders", "{}", "--set", "nats.password hunter2"], 2, "'nats.password' is not NAME=VALUE"),
        (["orders", "{}", "--set", "backend=memory"], 2, "backend 'memory' is no broker"),
        (["", "{}"], 2, "topic '' is not allowed"),
        (["orders.*", "{}"], 2, "topic 'orders.*' is not allowed"),
        (["orders", "{}", "--backend", "kafka"], 2, "backend 'kafka' is not configured"),
        (["orders", "{}", "--set", "enabled=false"], 1, "Messaging disabled"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, says: str) -> None:
    done = CliRunner().invoke(commands, ["publish", *arguments])
    assert (done.exit_code, says in done.output) == (code, True), done.output
    assert "hunter2" not in done.output


def test_two_runs_at_once_do_not_publish_a_file_twice(tmp_path: Path) -> None:
    path = written(tmp_path, {"topic": "orders", "payload": 1})
    arguments = ["publish", "--file", str(path), "--set", f"nats.servers=nats://127.0.0.1:{free_port()}"]
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done = CliRunner().invoke(commands, arguments)
        assert (done.exit_code, done.output) == (1, f"Error: another run publishes {path}; wait for its end\n")
        assert not path.with_name("events.jsonl.progress").exists()
    assert "connection refused" in CliRunner().invoke(commands, arguments).output


@pytest.mark.parametrize("what", ["message", "file"])
def test_a_broker_that_is_not_there(what: str, tmp_path: Path) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    path = written(tmp_path, {"topic": "orders", "payload": 1})
    arguments = ["orders", "1"] if what == "message" else ["--file", str(path)]
    done = CliRunner().invoke(commands, ["publish", *arguments, "--timeout", "1", "--set", f"nats.servers={url}"])
    assert done.exit_code == 1
    assert done.stderr.endswith(f"Error: NATS connection failed: connection refused ({url})\n")
    # Nothing came of it, so it may go elsewhere.
    elsewhere = f"nats://127.0.0.1:{free_port()}"
    again = CliRunner().invoke(
        commands, ["publish", *arguments, "--timeout", "1", "--set", f"nats.servers={elsewhere}"]
    )
    assert again.stderr.endswith(f"connection refused ({elsewhere})\n")
