"""The command ``incident-messaging consume``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.testing import CliRunner
from messages_kit import PATIENCE, Cli
from waiting import until

from incident_messaging.brokers.ports import free_port
from incident_messaging.commands import commands

Script = Callable[..., str]


def test_the_exit_code_decides(cli: Cli, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGE_KEY", "stale")
    command = script(
        "read -r payload",
        'echo "$payload key=${MESSAGE_KEY-none} $MESSAGE_ID $MESSAGE_TOPIC $MESSAGE_ATTEMPT $MESSAGE_GROUP'
        ' $MESSAGE_BACKEND $MESSAGE_POSITION $MESSAGE_CORRELATION_ID $MESSAGE_SOURCE $MESSAGE_HEADERS"',
        'case "$payload" in 1) exit 65;; 2) exit 3;; 3) sleep 60;; esac',
    )
    first = cli.service.publish("orders", 0, key="k", headers={"a": "b c"}, correlation_id="story")
    for payload in range(1, 4):
        cli.service.publish("orders", payload)
    cli.service.publish("orders", 4, key="a\0b")
    running = cli.start(
        "consume", "orders", "--group", "g", "--exec", command, "--concurrency", "5", "--handler-timeout", "2",
        "--set", "retry.max_attempts=2", "--set", "retry.initial_delay_secs=0.01", "--json",
    )  # fmt: skip
    assert until(lambda: len(list(cli.service.dead_letters.list())) == 4, PATIENCE), running.err
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 0, running.err

    told = [json.loads(line) for line in running.out]
    position = str(first.results[cli.backend].position)
    runs = {(each["position"], each["attempt"]): (each["outcome"], each["exit_code"]) for each in told}
    assert runs[position, 1] == ("acknowledged", 0)
    assert sorted((outcome, str(code)) for outcome, code in runs.values()) == [
        ("acknowledged", "0"), ("failed", "3"), ("failed", "3"), ("failed", "None"), ("failed", "None"),
        ("rejected", "65"), ("rejected", "None"),
    ]  # fmt: skip
    said = [line for line in running.err if "key=" in line]
    assert (
        f"0 key=k {first.message_id} orders 1 g {cli.backend.value} {position} story llm-incident-manager"
        ' {"a": "b c"}\n' in said
    )
    assert any(line.startswith("2 key=none ") and " orders 2 g " in line for line in said)
    letters = {letter.exception_message: letter for letter in cli.service.dead_letters.list()}
    assert letters[f"{command}: exit code 65"].attempts == 1
    assert letters[f"{command}: exit code 3"].attempts == 2
    assert letters[f"{command}: ended after --handler-timeout of 2 s"].exception_type.endswith(".CommandFailed")
    assert any("do not fit into an environment" in words for words in letters)
    assert "Traceback" not in "".join(running.err)
    assert cli.service.consume_one("orders", int, group="g", timeout=0.5) is None


@pytest.mark.parametrize("broker_ways", ["nats"], indirect=True)
def test_ctrl_c_lets_what_runs_end(cli: Cli, script: Script) -> None:
    cli.service.publish("orders", {"n": 1})
    told = cli.folder / "told"
    command = script("echo begun", f"until [ -e {told} ]; do sleep 0.05; done", "sleep 0.7", "echo end $1")
    running = cli.start("consume", "orders", "--group", "g", "--exec", f"{command} 'of it'")
    assert until(lambda: running.out == ["begun\n"], PATIENCE), running.err
    cli.service.publish("orders", {"n": 2})
    running.process.send_signal(signal.SIGINT)
    told.touch()
    assert (running.ended(), running.out, running.err) == (0, ["begun\n", "end of it\n"], [])
    (left,) = cli.service.consume("orders", group="g", timeout=PATIENCE, limit=1)
    assert left.payload == {"n": 2}


@pytest.mark.parametrize("broker_ways", ["nats"], indirect=True)
def test_what_does_not_end_in_time_is_ended_and_its_event_comes_again(cli: Cli, script: Script) -> None:
    cli.service.publish("orders", {"n": 1})
    command = script("trap '' TERM", "echo begun", "sleep 60 & wait; sleep 60")
    running = cli.start(
        "consume", "orders", "--group", "g", "--exec", command,
        prelude="from incident_messaging.commands import consume; consume._END = consume._GRACE = 0.2",
    )  # fmt: skip
    assert until(lambda: running.out == ["begun\n"], PATIENCE), running.err
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 1
    assert any(line.startswith("Error: callback still running") for line in running.err), running.err
    (again,) = cli.service.consume("orders", group="g", timeout=PATIENCE, limit=1)
    assert again.payload == {"n": 1}


def test_what_is_ended_at_its_last_attempt_is_not_given_up(cli: Cli, script: Script) -> None:
    cli.service.publish("orders", {"n": 1})
    running = cli.start(
        "consume", "orders", "--group", "g", "--exec", script("echo begun", "exec sleep 60"),
        "--set", "retry.max_attempts=1",
        prelude="from incident_messaging.commands import consume; consume._END = 0.2",
    )  # fmt: skip
    assert until(lambda: running.out == ["begun\n"], PATIENCE), running.err
    running.process.send_signal(signal.SIGINT)
    assert running.ended() == 1
    said = "".join(running.err)
    assert ("given up" in said, "dead letter" in said) == (False, False), said
    assert "Error: callback still running" in said
    (again,) = cli.service.consume("orders", group="g", timeout=PATIENCE, limit=1)
    assert again.payload == {"n": 1}


@pytest.mark.parametrize("broker_ways", ["nats"], indirect=True)
def test_a_command_that_cannot_be_started_any_more_ends_it_and_loses_nothing(cli: Cli, script: Script) -> None:
    for payload in range(3):
        cli.service.publish("orders", payload)
    command = script('rm "$0"')
    running = cli.start("consume", "orders", "--group", "g", "--exec", command)
    assert running.ended() == 1
    assert running.err[-1] == f"Error: {command} cannot be started: No such file or directory\n"
    again = cli.service.consume("orders", int, group="g", timeout=PATIENCE, limit=2)
    assert sorted(delivery.payload for delivery in again) == [1, 2]


@pytest.mark.parametrize("broker_ways", ["nats"], indirect=True)
def test_nobody_reads_any_more_and_no_event_fails_by_that(cli: Cli) -> None:
    options = ["orders", "--group", "g", "--exec", "cat", "--config", str(cli.config)]
    with subprocess.Popen(
        [sys.executable, "-m", "incident_messaging.cli", "consume", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        cli.service.publish("orders", 1)
        assert process.stdout.readline() == "1\n"
        process.stdout.close()
        cli.service.publish("orders", 2)
        assert process.wait(PATIENCE) == 1
        assert process.stderr.read().endswith("Error: nobody reads stdout any more\n")
    (again,) = cli.service.consume("orders", int, group="g", timeout=PATIENCE, limit=1)
    assert again.payload == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--exec", "true"], 2, "Missing option '--group'"),
        (["--group", "g"], 2, "Missing option '--exec'"),
        (["--group", "g", "--exec", "no-such-command -x"], 2, "there is no command 'no-such-command'"),
        (["--group", "g", "--exec", "echo 'a"], 2, "No closing quotation"),
        (["--group", "g", "--exec", ""], 2, "it is empty"),
        (["--group", "g", "--exec", "true", "--handler-timeout", "0"], 2, "handler-timeout"),
        (["--group", "g", "--exec", "true", "--handler-timeout", "inf"], 2, "inf is not in the range"),
        (["--group", "g", "--exec", "true", "--handler-timeout", "1e300"], 2, "is not in the range"),
        (["--group", "g", "--exec", "true", "--set", "backend=memory"], 2, "backend 'memory' is no broker"),
        (["--group", " ", "--exec", "true"], 2, "a name that is not empty"),
        (["--group", "g", "--exec", "true", "--set", "enabled=false"], 1, "Messaging disabled"),
        (["--group", "g", "--exec", "true", "--set", "nats.servers=127.0.0.1:{port}"], 1, "connection refused"),
    ],
)
def test_what_cannot_be_consumed(arguments: list[str], code: int, says: str) -> None:
    given = [argument.format(port=free_port()) for argument in arguments]
    done = CliRunner().invoke(commands, ["consume", "orders", *given])
    assert (done.exit_code, says in done.output) == (code, True), done.output
