"""The command ``incident-messaging replay``."""

from __future__ import annotations

import json
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from messages_kit import PATIENCE, Cli, now
from waiting import takes, until

from incident_messaging.brokers import NatsServer
from incident_messaging.brokers.ports import free_port
from incident_messaging.commands import commands, replay


def stored(cli: Cli, *payloads: Any) -> str:
    """A moment before these are published, which is none of theirs."""
    moment = now()
    time.sleep(0.01)  # brokers note milliseconds
    for payload in payloads:
        cli.service.publish("orders", payload, key=f"k{payload}", headers={"a": "é"}, correlation_id="story")
    time.sleep(0.01)
    return moment


def test_what_a_topic_holds_of_a_time_is_published_again(cli: Cli) -> None:
    stored(cli, "before")
    since = stored(cli, 1, 2, 3)
    until = stored(cli, "behind")
    asked = ("replay", "orders", "--since", since, "--until", until, "--to", "copy")
    dry = cli.run(*asked, "--dry-run")
    assert (dry.exit_code, dry.output) == (0, "3 matched, 3 would be replayed\n")
    assert cli.held("copy") == []
    done = cli.run(*asked)
    assert (done.exit_code, done.output) == (0, "3 matched, 3 replayed\n")

    given = {each.payload: each for each in cli.held("orders")}
    copied = cli.held("copy")
    assert sorted(each.payload for each in copied) == [1, 2, 3]
    for each in copied:
        original = given[each.payload]
        assert (each.key, each.headers, each.metadata) == (f"k{each.payload}", {"a": "é"}, original.metadata)

    again = json.loads(cli.run(*asked, "--json").output)
    known = 3 if cli.backend.value == "nats" else 0
    assert again == {"matched": 3, "replayed": 3, "duplicates": known, "left": 0, "dry_run": False}
    assert len(cli.held("copy")) == 6 - known


def test_what_is_older_is_not_read(cli: Cli) -> None:
    stored(cli, *range(40))
    since = datetime.fromisoformat(stored(cli, "a", "b", "c")).timestamp()
    behind = datetime.fromisoformat(stored(cli)).timestamp()
    topic = f"{cli.prefix}.orders"
    with closing(cli.service._connections.outlet(cli.backend).broker.archive(topic, PATIENCE)) as archive:
        assert len(list(archive.read())) == 43
        payloads = [json.loads(received.body or b"")["payload"] for received in archive.read(since)]
        assert sorted(payloads) == ["a", "b", "c"]
        assert list(archive.read(behind)) == []
        assert len(list(archive.read(1.0))) == 43


def test_what_cannot_be_published_is_left_and_named(cli: Cli) -> None:
    since = stored(cli, 1)
    cli.publish_raw("orders", b"\xff")
    cli.publish_raw("orders", b'{"bare": true}')
    done = cli.run("replay", "orders", "--since", since, "--to", "copy")
    assert (done.exit_code, done.stdout) == (1, "3 matched, 2 replayed\n")
    assert done.stderr.startswith("left: ")
    assert "not readable as JSON" in done.stderr
    assert [each.payload for each in cli.held("copy")] in ([1, {"bare": True}], [{"bare": True}, 1])


def test_from_one_broker_to_the_same_topic_on_the_other(nats_server: Any, kafka_broker: Any, tmp_path: Any) -> None:
    cli = Cli("nats", {"servers": [nats_server.url]}, tmp_path)
    other = Cli("kafka", {"bootstrap_servers": kafka_broker.bootstrap_servers}, tmp_path)
    other.prefix, since = cli.prefix, stored(cli, 1, 2)
    settings = {"backend": "both", "topic_prefix": cli.prefix, "nats": {"servers": [nats_server.url]},
                "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers}}  # fmt: skip
    cli.config.write_text(json.dumps(settings))
    itself = cli.run("replay", "orders", "--since", since, "--to", "orders")
    assert (itself.exit_code, "orders cannot be replayed onto itself" in itself.output) == (2, True)
    done = cli.run("replay", "orders", "--since", since, "--to", "orders", "--to-backend", "kafka")
    assert (done.exit_code, done.output) == (0, "2 matched, 2 replayed\n")
    assert sorted(each.payload for each in other.held("orders")) == [1, 2]
    assert len(cli.held("orders")) == 2
    cli.close()
    other.close()


@pytest.mark.parametrize("broker_ways", ["nats"], indirect=True)
def test_not_faster_than_asked_for_and_broken_off(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    since = stored(cli, *range(6))
    with takes(PATIENCE, at_least=0.3):
        assert cli.run("replay", "orders", "--since", since, "--to", "copy", "--rate", "20").exit_code == 0

    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replay.InFlight, "finish", ctrl_c)
    ended = cli.run("replay", "orders", "--since", since, "--to", "copy", "--rate", "200")
    assert (ended.exit_code, ended.stderr.startswith("broken off: at least ")) == (130, True)


def test_a_broker_that_dies_meanwhile_is_told(tmp_path: Path) -> None:
    with NatsServer() as server:
        cli = Cli("nats", {"servers": [server.url]}, tmp_path)
        since = stored(cli, *range(40))  # for longer than it takes to see the first and kill
        running = cli.start("replay", "orders", "--since", since, "--to", "copy", "--rate", "2")
        assert until(lambda: cli.held("copy"), PATIENCE), running.err
        server.kill()
        assert until(lambda: any("connecting again" in line for line in running.err), PATIENCE), running.err
        cli.close()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--to", "copy"], 2, "Missing option '--since'"),
        (["--since", "1h"], 2, "Missing option '--to'"),
        (["--since", "1h", "--to", "orders"], 2, "orders cannot be replayed onto itself"),
        (["--since", "1h", "--to", "copy", "--rate", "0"], 2, "rate"),
        (["--since", "1h", "--to", "copy", "--rate", "nan"], 2, "'nan' is no number"),
        (["--since", "1h", "--to", "copy", "--set", "backend=memory"], 2, "backend 'memory' is no broker"),
        (["--since", "1h", "--to", "a b"], 2, "topic 'a b' is not allowed"),
        (["--since", "1h", "--to", "copy.*"], 2, "topic 'copy.*' is not allowed"),
        (["--since", "1h", "--to", "copy", "--to-backend", "kafka"], 2, "backend 'kafka' is not configured"),
        (["--since", "1h", "--to", "copy", "--set", "enabled=false"], 1, "Messaging disabled"),
        (["--since", "1h", "--to", "copy", "--set", "nats.servers=127.0.0.1:{port}"], 1, "connection refused"),
    ],
)
def test_what_cannot_be_replayed(arguments: list[str], code: int, says: str) -> None:
    given = [argument.format(port=free_port()) for argument in arguments]
    done = CliRunner().invoke(commands, ["replay", "orders", *given])
    assert (done.exit_code, says in done.output) == (code, True), done.output
