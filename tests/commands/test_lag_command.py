"""The command ``incident-messaging lag`` on both real brokers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from groups_kit import PATIENCE, Place, numbers
from waiting import until

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.brokers.ports import free_port
from incident_messaging.commands import commands


@pytest.fixture
def place(broker_ways: tuple[str, dict[str, Any]], tmp_path: Path) -> Place:
    return Place(broker_ways, tmp_path)


@pytest.fixture
def service(place: Place, nothing_left_behind: None) -> Iterator[MessagingService]:
    with MessagingService(place.config) as service:
        yield service


def handle(service: MessagingService, topic: str, group: str, count: int) -> None:
    found = service.consume(topic, group=group, timeout=PATIENCE, limit=count)
    assert len(list(found)) == count


def test_lag_of_every_group(place: Place, service: MessagingService) -> None:
    before = datetime.now(UTC)
    service.publish_batch("orders.new", numbers(20), key=lambda each: str(each["n"]))
    service.publish_batch("orders.old", numbers(5), key="k")
    handle(service, "orders.>", "ops.pager", 7)
    handle(service, "orders.new", "audit", 20)

    lines = [line.split() for line in place.run("lag").stdout.splitlines()]
    shown = "ops-pager" if place.backend == "nats" else "ops.pager"
    assert lines[0] == ["GROUP", "TOPIC", "BROKER", "LAG", "UNSETTLED", "OLDEST"]
    assert sorted((line[0], line[1], line[2], line[3]) for line in lines[1:]) == [
        ("audit", "orders.new", place.backend, "0"),
        (shown, "orders.>", place.backend, "18"),
    ]

    (pager,) = place.objects("lag", "--group", "ops.pager", "--topic", "orders.>")
    assert (pager["lag"], pager["topics"], pager["foreign"]) == (18, ["orders.>"], False)
    slack = timedelta(seconds=1)
    assert before - slack <= datetime.fromisoformat(pager["oldest"]) <= datetime.now(UTC) + slack
    assert 0 <= pager["oldest_age_secs"] < 60
    (audit,) = place.objects("lag", "--group", "audit")
    assert (audit["oldest"], audit["oldest_age_secs"]) == (None, None)


def test_lag_counts_what_is_in_hands_and_what_came_while_nobody_was_there(
    place: Place, service: MessagingService
) -> None:
    service.publish_batch("a.one", numbers(3), key="k")
    with service.subscribe("a.*", group="g", prefetch=2) as subscription:
        assert subscription.next(timeout=PATIENCE) is not None
        unsettled = 2 if place.backend == "nats" else None
        assert until(lambda: place.objects("lag")[0]["unsettled"] == unsettled)
        assert place.objects("lag")[0]["lag"] == 3
    service.publish_batch("a.two", numbers(4), key="k")  # a topic that the group has never met
    assert place.objects("lag")[0]["lag"] == 7


def test_exit_codes(place: Place, service: MessagingService) -> None:
    service.publish_batch("orders", numbers(3), key="k")
    handle(service, "orders", "g", 1)
    assert place.run("lag", "--max", "2").exit_code == 0
    over = place.run("lag", "--max", "1")
    assert over.exit_code == 1
    assert over.stderr.startswith("over 1: g")
    assert over.stderr.endswith(" with 2\n")
    for wanted in (["--group", "nobody"], ["--topic", "bills"]):
        missing = place.run("lag", *wanted, "--max", "100")
        assert (missing.exit_code, missing.stdout) == (1, "")
        assert "no place of" in missing.stderr
    assert place.run("lag", "--max", "-1").exit_code == 2
    assert "topic 'a b' is not allowed" in place.run("lag", "--topic", "a b").stderr


def test_both_brokers_at_once(nats_server: Any, kafka_broker: Any, tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    nats = {"servers": [nats_server.url]}
    kafka = {"bootstrap_servers": kafka_broker.bootstrap_servers}
    prefix = f"g-{uuid.uuid4().hex[:8]}"
    path.write_text(json.dumps({"backend": "both", "topic_prefix": prefix, "nats": nats, "kafka": kafka}))
    with MessagingService(MessagingConfig.from_file(path)) as service:
        service.publish_batch("orders", numbers(3), key="k")
        for backend in ("nats", "kafka"):
            service.subscribe("orders", group="g", backend=backend).close()

    def lags(*arguments: str) -> list[tuple[str, int]]:
        done = CliRunner().invoke(commands, ["lag", "--config", str(path), "--json", *arguments])
        assert done.exit_code == 0, done.output
        return [(each["backend"], each["lag"]) for each in map(json.loads, done.stdout.splitlines())]

    assert lags() == [("nats", 3), ("kafka", 3)]
    assert lags("--backend", "kafka") == [("kafka", 3)]


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        ({"backend": "memory"}, 2, "the memory backend keeps its groups in the process that uses them"),
        ({"backend": "nats", "nats": {"delivery": "core"}}, 2, "core delivery keeps nothing"),
        ({"enabled": False}, 1, "Messaging disabled"),
        ({"backend": "nats"}, 1, "NATS connection failed: connection refused"),
        ({"backend": "kafka"}, 1, "Kafka producer creation failed: broker not available"),
    ],
)
def test_where_there_is_nothing_to_see(settings: dict[str, object], code: int, says: str, tmp_path: Path) -> None:
    away = f"127.0.0.1:{free_port()}"
    ways = {"nats": {"servers": [f"nats://{away}"]}, "kafka": {"bootstrap_servers": away}}
    for broker, way in ways.items():
        settings = {**settings, broker: {**settings.get(broker, {}), **way}}  # type: ignore[dict-item]
    path = tmp_path / "messaging.json"
    path.write_text(json.dumps(settings))
    done = CliRunner().invoke(commands, ["lag", "--config", str(path)])
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith(f"Error: {says}")
