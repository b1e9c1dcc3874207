"""The command ``incident-messaging dlq`` on both real brokers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from waiting import until

from incident_messaging import Delivery, MessagingConfig, MessagingService, RetryPolicy
from incident_messaging.brokers.ports import free_port
from incident_messaging.commands import commands

ONCE = RetryPolicy(max_attempts=1)
#: Seconds that a group may take to begin.
PATIENCE = 40.0


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path) -> Path:
    """A configuration file with a topic prefix of its own."""
    path = tmp_path / "messaging.json"
    path.write_text(json.dumps({**settings, "topic_prefix": f"c-{uuid.uuid4().hex[:8]}"}))
    return path


@pytest.fixture
def service(config: Path, nothing_left_behind: None) -> Iterator[MessagingService]:
    with MessagingService(MessagingConfig.from_file(config)) as service:
        yield service


@pytest.fixture
def run(config: Path) -> Callable[..., Result]:
    def invoke(*arguments: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(commands, ["dlq", *arguments, "--config", str(config)], input=answer)

    return invoke


def give_up(service: MessagingService, topic: str, count: int) -> None:
    def fail(delivery: Delivery[Any]) -> None:
        raise KeyError(f"no {delivery.payload['n']}")

    before = len(list(service.dead_letters.list()))
    with service.subscribe(topic, group="g", callback=fail, retry=ONCE):
        service.publish_batch(topic, [{"n": n} for n in range(count)], key="k")
        assert until(lambda: len(list(service.dead_letters.list())) == before + count, PATIENCE)


def test_list_and_show(service: MessagingService, run: Callable[..., Result]) -> None:
    give_up(service, "orders.new", 2)
    give_up(service, "bills", 1)
    lines = run("list", "--topic", "orders.*").output.splitlines()
    assert len(lines) == 2
    assert all("orders.new  g  1 attempts, 0 redrives  KeyError: 'no " in line for line in lines)
    assert run("list", "--since", "1h", "--exception", "KeyError", "--limit", "1").output.count("\n") == 1
    assert run("list", "--since", "2035-01-01").output == ""
    letters = [json.loads(line) for line in run("list", "--json").output.splitlines()]
    assert sorted(letter["topic"] for letter in letters) == ["bills", "orders.new", "orders.new"]
    position = lines[0].split()[0]
    page = run("show", position).output
    assert "exception_type: KeyError" in page
    assert "Traceback" in page
    assert '"n":0' in page
    assert json.loads(run("show", position, "--json").output)["key"] == "k"
    missing = run("show", "nowhere-1")
    assert (missing.exit_code, missing.output) == (1, "Error: there is no dead letter at nowhere-1\n")


def test_redrive(service: MessagingService, run: Callable[..., Result]) -> None:
    give_up(service, "orders", 3)
    dry = run("redrive", "--dry-run")
    assert (dry.exit_code, dry.output) == (0, "3 matched, 3 would be redriven\n")
    assert run("redrive", "--limit", "1", "--rate", "100").output == "1 matched, 1 redriven\n"
    report = json.loads(run("redrive", "--json").output)
    assert (report["matched"], report["done"], report["failed"]) == (2, 2, 0)
    again = service.consume("orders", group="g", timeout=PATIENCE, limit=3)
    assert sorted(delivery.payload["n"] for delivery in again) == [0, 1, 2]
    assert run("list").output == ""


def test_purge_asks(service: MessagingService, run: Callable[..., Result]) -> None:
    give_up(service, "orders", 2)
    refused = run("purge", answer="n\n")
    assert refused.exit_code == 1
    assert "throw away 2 dead letters?" in refused.output
    assert run("list").output.count("\n") == 2
    assert run("purge", "--dry-run").output == "2 matched, 2 would be purged\n"
    assert run("purge", "--yes").output == "2 matched, 2 purged\n"
    assert run("list").output == ""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["list", "--since", "yesterday"], 2, "is no time"),
        (["list", "--topic", "a b"], 2, "topic 'a b' is not allowed"),
        (["redrive", "--rate", "0"], 2, "rate"),
        (["redrive", "--rate", "nan"], 2, "'nan' is no number"),
        (["list", "--backend", "pigeon"], 2, "pigeon"),
    ],
)
def test_wrong_usage(run: Callable[..., Result], arguments: list[str], code: int, says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert says in result.output


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "messaging.toml"
    path.write_text(f'backend = "nats"\nnats.servers = ["nats://127.0.0.1:{port}"]\n')
    result = CliRunner().invoke(commands, ["dlq", "--config", str(path), "list"])
    assert result.exit_code == 1
    assert result.output == f"Error: NATS connection failed: connection refused (nats://127.0.0.1:{port})\n"
