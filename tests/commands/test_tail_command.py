"""The command ``incident-messaging tail``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from messages_kit import PATIENCE, Cli
from waiting import takes, until

from incident_messaging import MessageEnvelope
from incident_messaging.brokers import NatsServer
from incident_messaging.brokers.ports import free_port
from incident_messaging.commands import commands


def test_a_line_an_event(cli: Cli) -> None:
    moment = MessageEnvelope.new({"n": 1, "é": "\x1b[31m"}, message_id="m-1", source="desk", correlation_id="c")
    moment.metadata.timestamp = 1_700_000_000
    first = cli.service.publish("orders.new", moment, key="k\n", headers={"a": "b"})
    cli.service.publish("orders.paid.late", "x" * 600)
    cli.publish_raw("orders.raw", b"\xffno JSON")

    lines = cli.run("tail", "orders.>", "--since", "1h", "--limit", "3").stdout.splitlines()
    assert [line.split("  ")[1:] for line in sorted(lines, key=lambda line: line.split("  ")[1])] == [
        ["orders.new", "k\\n", '{"n":1,"é":"\\u001b[31m"}'],
        ["orders.paid.late", "-", f'"{"x" * 499} ...'],
        ["orders.raw", "-", "\\xffno JSON"],
    ]
    assert "2023-11-14T22:13:20Z  orders.new" in "".join(lines)

    told = cli.run("tail", "orders.*", "--since", "1h", "--limit", "2", "--json").stdout
    raw, new = sorted((json.loads(line) for line in told.splitlines()), key=lambda fields: "payload" in fields)
    assert new == {
        "topic": "orders.new",
        "key": "k\n",
        "headers": {"a": "b"},
        "metadata": {"message_id": "m-1", "correlation_id": "c", "timestamp": 1_700_000_000, "source": "desk",
                     "version": "1.0", "headers": {}},
        "payload": {"n": 1, "é": "\x1b[31m"},
        "backend": cli.backend.value,
        "position": str(first.results[cli.backend].position),
    }  # fmt: skip
    assert (raw["topic"], raw["body"], raw["body_encoding"]) == ("orders.raw", "/25vIEpTT04=", "base64")
    nothing = cli.run("tail", "orders.*", "--since", "2035-01-01", "--timeout", "0.2")
    assert (nothing.exit_code, nothing.output) == (0, "")


def test_it_follows_until_ctrl_c_and_takes_nothing_from_a_group(cli: Cli) -> None:
    cli.service.publish("orders", "before")
    running = cli.start("tail", "orders")
    assert until(lambda: cli.service.publish("orders", "behind") and running.out, PATIENCE), running.err
    assert all(line.endswith('orders  -  "behind"\n') for line in running.out)
    running.process.send_signal(signal.SIGINT)
    assert (running.ended(), running.err) == (130, [])
    taken = cli.service.consume_one("orders", str, group="g", timeout=PATIENCE)
    assert taken is not None
    assert taken.payload == "before"


def test_ctrl_c_ends_it_also_where_the_broker_says_nothing(tmp_path: Path) -> None:
    with NatsServer() as server:
        cli = Cli("nats", {"servers": [server.url]}, tmp_path)
        cli.service.publish("orders", 1)
        running = cli.start("tail", "orders", "--since", "1h")
        assert until(lambda: running.out, PATIENCE), running.err
        server.freeze()
        with takes(at_most=9.0):
            running.process.send_signal(signal.SIGINT)
            assert running.ended() == 130
        server.thaw()
        cli.close()


@pytest.mark.parametrize("broker_ways", ["nats"], indirect=True)
def test_it_ends_when_nobody_reads_any_more_though_nothing_comes(cli: Cli) -> None:
    for payload in range(3):
        cli.service.publish("orders", payload)
    tail = [sys.executable, "-m", "incident_messaging.cli", "tail", "orders", "--since", "1h"]
    with subprocess.Popen(
        [*tail, "--config", str(cli.config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().endswith(b"orders  -  0\n")
        process.stdout.close()
        assert (process.wait(PATIENCE), process.stderr.read()) == (0, b"")


def test_a_connection_that_is_refused_is_told_once(tmp_path: Path) -> None:
    away = f"nats://127.0.0.1:{free_port()}"
    tail = [sys.executable, "-m", "incident_messaging.cli", "tail", "orders", "--set", f"nats.servers={away}"]
    done = subprocess.run(tail, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (1, f"Error: NATS connection failed: connection refused ({away})\n")


def test_colours_are_for_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("incident_messaging.commands.tail._all", lambda *_: iter([_Shown()]))
    monkeypatch.setattr("incident_messaging.commands.tail.enabled", lambda config: config)
    arguments = ["tail", "orders", "--set", "backend=memory"]
    coloured = CliRunner().invoke(commands, arguments, color=True).stdout
    assert "\x1b[36morders\x1b[0m" in coloured
    assert "\x1b" not in CliRunner().invoke(commands, arguments).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in CliRunner().invoke(commands, arguments, color=True).stdout


class _Shown:
    """As much of a delivery as a line shows."""

    topic, key, body, position = "orders", "k", b"1", "orders-0-0"
    headers: dict[str, str] = {}  # noqa: RUF012
    metadata = MessageEnvelope.new(1).metadata

    class backend:
        value = "memory"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "Missing argument 'TOPIC'"),
        (["orders", "--since", "yesterday"], 2, "is no time"),
        (["orders", "--limit", "0"], 2, "limit"),
        (["orders", "--since", "999999999d"], 2, "is no time"),
        (["orders", "--since", "9999-12-31T23:59:59-14:00"], 2, "is no time"),
        (["orders", "--timeout", "nan"], 2, "'nan' is no number"),
        (["orders", "--timeout", "inf"], 2, "inf is not in the range"),
        (["orders", "--set", "backend=memory"], 2, "backend 'memory' is no broker"),
        (["a b"], 2, "topic 'a b' is not allowed"),
        (["orders", "--set", "enabled=false"], 1, "Messaging disabled"),
        (["orders", "--set", "backend=nats", "--set", "nats.servers=nats://127.0.0.1:{port}"], 1, "connection refused"),
        (["orders", "--set", "backend=kafka", "--set", "kafka.bootstrap_servers=127.0.0.1:{port}"], 1, "not available"),
    ],
)
def test_what_cannot_be_shown(arguments: list[str], code: int, says: str) -> None:
    given = [argument.format(port=free_port()) for argument in arguments]
    done = CliRunner().invoke(commands, ["tail", *given])
    assert (done.exit_code, says in done.output) == (code, True), done.output
