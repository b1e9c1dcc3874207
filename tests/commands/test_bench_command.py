"""The command ``incident-messaging bench`` on both real brokers: what it measures, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner, Result
from confluent_kafka.admin import AdminClient
from waiting import takes, until

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.backends.kafka import traces as kafka_traces
from incident_messaging.backends.nats import traces as nats_traces
from incident_messaging.brokers import NatsServer
from incident_messaging.brokers.ports import free_port
from incident_messaging.commands import commands
from incident_messaging.commands.measure import Latency, Rate

#: Seconds for a process to start or to end, and for a broker to do what it was asked for.
PATIENCE = 40.0


@pytest.fixture
def broker(settings: dict[str, Any]) -> dict[str, Any]:
    return settings


@pytest.fixture
def prefix() -> str:
    return f"c-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def config(broker: dict[str, Any], prefix: str, tmp_path: Path) -> Path:
    path = tmp_path / "messaging.json"
    path.write_text(json.dumps({**broker, "topic_prefix": prefix}))
    return path


def bench(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(commands, ["bench", "--config", str(config), *arguments])


def traces(broker: dict[str, Any], text: str) -> list[str]:
    """What a broker holds whose name has the text in it."""
    return _on_kafka(broker, text) if broker["backend"] == "kafka" else asyncio.run(_on_nats(broker, text))


def _on_kafka(broker: dict[str, Any], text: str) -> list[str]:
    client = AdminClient({"bootstrap.servers": broker["kafka"]["bootstrap_servers"]})
    groups = [group.group_id for group in client.list_consumer_groups().result(10).valid]
    return [name for name in [*client.list_topics(timeout=10).topics, *groups] if text in name]


async def _on_nats(broker: dict[str, Any], text: str) -> list[str]:
    client = await nats.connect(broker["nats"]["servers"])
    stream = client.jetstream()
    found = []
    for info in await stream.streams_info():
        name = info.config.name or ""
        if any(text in subject for subject in info.config.subjects or ()):
            state = (await stream.stream_info(name, subjects_filter=">")).state
            found += [f"messages of {subject}" for subject in state.subjects or ()]
            found += [consumer.name for consumer in await stream.consumers_info(name)]
    await client.close()
    return found


def test_it_measures_and_takes_all_away_again(broker: dict[str, Any], config: Path, prefix: str) -> None:
    with MessagingService(MessagingConfig.from_file(config)) as service:
        service.publish("incidents.created", {"stays": True})
    before = traces(broker, prefix)
    result = bench(config, "--messages", "300", "--size", "100", "--threads", "3", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["backend"] == broker["backend"]
    assert figures["topic"].startswith(f"{prefix}.bench-")
    assert 300 < figures["body_bytes"] < 500
    for step in ("publish", "publish_batch", "consume"):
        assert figures[step]["messages"] == 300
        assert figures[step]["per_second"] > 0
    assert figures["publish_to_callback"]["messages"] == 300
    for step in ("publish", "publish_to_callback"):
        times = figures[step]["latency_ms"]
        assert 0 < times["p50"] <= times["p95"] <= times["p99"] <= times["max"] < 10_000
    assert figures["left"] == []
    assert result.stderr == (
        f"warning: this loads {broker['backend']} with up to 600 messages of 100 bytes and their envelopes, "
        f"on {figures['topic']}\n"
    )
    assert until(lambda: traces(broker, prefix) == before, PATIENCE)


def test_the_time_bounds_it_and_people_get_a_table(config: Path) -> None:
    with takes(at_most=PATIENCE):
        result = bench(config, "--messages", "1000000", "--seconds", "0.3", "--threads", "1")
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert "bodies of" in head
    assert [row.strip().split("  ")[0] for row in rows] == [
        "publish, 1 threads", "publish to callback", "publish_batch", "consume",
    ]  # fmt: skip
    assert "p50" in rows[0]
    assert "/s" in rows[2]


def test_interrupted_it_takes_all_away_again(broker: dict[str, Any], config: Path, prefix: str) -> None:
    command = [sys.executable, "-m", "incident_messaging.cli", "bench", "--config", str(config)]
    running = subprocess.Popen(
        [*command, "--messages", "1000000", "--seconds", "30"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stderr is not None
        assert running.stderr.readline().startswith("warning: this loads")
        assert until(lambda: traces(broker, prefix) != [], PATIENCE)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()
    assert (running.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert until(lambda: traces(broker, prefix) == [], PATIENCE)


def test_what_is_left_is_said(nats_server: Any, prefix: str, tmp_path: Path) -> None:
    async def make() -> None:
        client = await nats.connect(nats_server.url)
        await client.jetstream().add_stream(name=prefix, subjects=[f"{prefix}.>"], deny_purge=True)
        await client.close()

    asyncio.run(make())
    config = tmp_path / "messaging.json"
    config.write_text(json.dumps({"nats": {"servers": nats_server.url}, "topic_prefix": prefix}))
    result = bench(config, "--messages", "5", "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    [left] = figures["left"]
    assert left.startswith(f"the messages of {figures['topic']} in stream {prefix}: ")
    assert f"left on nats: {left}" in result.stderr


def test_a_stream_that_it_made_is_told_or_taken_away(nats_server: Any, prefix: str, tmp_path: Path) -> None:
    config = tmp_path / "messaging.json"
    config.write_text(json.dumps({"nats": {"servers": nats_server.url}, "topic_prefix": prefix}))
    left = [f"stream {prefix.upper()}, which was made for {prefix}.>"]
    assert json.loads(bench(config, "--messages", "5", "--json").stdout)["left"] == left
    config.write_text(json.dumps({"nats": {"servers": nats_server.url}, "topic_prefix": ""}))
    figures = json.loads(bench(config, "--messages", "5", "--json").stdout)
    assert figures["left"] == []
    assert not any(figures["topic"].upper() == stream["name"] for stream in streams(nats_server))


def streams(nats_server: Any) -> list[dict[str, Any]]:
    account = nats_server.monitor("/jsz?streams=true&accounts=true").get("account_details", [{}])[0]
    found: list[dict[str, Any]] = account.get("stream_detail", [])
    return found


def test_core_delivery_keeps_nothing_to_consume(nats_server: Any, prefix: str, tmp_path: Path) -> None:
    config = tmp_path / "messaging.json"
    settings = {"nats": {"servers": nats_server.url, "delivery": "core"}, "topic_prefix": prefix}
    config.write_text(json.dumps(settings))
    figures = json.loads(bench(config, "--messages", "50", "--json").stdout)
    assert (figures["consume"], figures["left"]) == (None, [])
    assert figures["publish_batch"]["messages"] == 50
    assert "nothing is kept" in bench(config, "--messages", "5").stdout


def test_a_broker_that_is_gone_at_the_end() -> None:
    with NatsServer() as server:
        config = MessagingConfig(subscribe_timeout_ms=500, nats={"servers": server.url})
        on_nats = nats_traces.Traces(config, "p.bench-1")
    [words] = on_nats.remove(["the-group"])
    assert words.startswith("the messages of p.bench-1, and its durables the-group: ")
    config = MessagingConfig(subscribe_timeout_ms=500, kafka={"bootstrap_servers": f"127.0.0.1:{free_port()}"})
    left = kafka_traces.Traces(config, "p.bench-1").remove(["the-group"])
    assert [words.partition(":")[0] for words in left] == ["group the-group", "topic p.bench-1"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--messages", "0"], 2, "--messages"),
        (["--threads", "0"], 2, "--threads"),
        (["--seconds", "nan"], 2, "'nan' is no number"),
        (["--set", "enabled=false"], 2, "Error: messaging is disabled"),
        (["--set", "backend=memory"], 2, "Error: backend 'memory' is no broker"),
        (["--size", "2000000"], 1, "exceeds max_message_size"),
    ],
)
def test_what_cannot_be_measured(config: Path, arguments: list[str], code: int, says: str) -> None:
    result = bench(config, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr


@pytest.mark.parametrize("name", ["nats", "kafka"])
def test_a_broker_that_is_not_there(name: str, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    config = tmp_path / "messaging.json"
    reached = {"nats": {"servers": address}, "kafka": {"bootstrap_servers": address}}
    config.write_text(json.dumps({"backend": name, "connect_timeout_ms": 60_000, name: reached[name]}))
    with takes(at_most=PATIENCE):
        result = bench(config)
    assert (result.exit_code, result.stdout) == (1, "")
    assert address in result.stderr


def test_percentiles_are_nearest_ranks() -> None:
    times = Latency.of([number * 1_000_000 for number in range(100, 0, -1)])
    assert times == Latency(p50=50.0, p95=95.0, p99=99.0, max=100.0)
    assert Latency.of([2_000_000]) == Latency(p50=2.0, p95=2.0, p99=2.0, max=2.0)
    assert Latency.of([]) is None


def test_a_rate_that_starts_with_a_message_does_not_count_it() -> None:
    assert Rate(10, 2.0).per_second == 5.0
    assert Rate(11, 2.0, start=1).per_second == 5.0
    assert Rate(1, 0.0, start=1).per_second is None
