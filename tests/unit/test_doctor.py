"""The doctor's order, its arithmetic, what it makes of clusters, and that its page tells of every check."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from incident_messaging import MessagingConfig
from incident_messaging.backends.kafka import findings as kafka
from incident_messaging.backends.kafka.findings import Topic
from incident_messaging.backends.nats import findings as nats
from incident_messaging.backends.nats import rights
from incident_messaging.commands import commands
from incident_messaging.config import MessagingBackend
from incident_messaging.doctor import (
    Check,
    Checkup,
    Finding,
    Scope,
    Severity,
    broken,
    checks_of,
    client_library,
    clock,
    exit_code,
    ok,
    repeat_secs,
    retries_secs,
    run,
    slow,
    spoken,
    warning,
)
from incident_messaging.errors import BackendUnavailable, MessagingError

DOCS = Path(__file__).parents[2] / "docs"
OK, WARNING, BROKEN, NOT_DONE = Severity


class Patient(Checkup):
    def explain(self, error: MessagingError) -> Finding:
        return broken(str(error), "mend it")

    def close(self) -> None:
        pass


def findings_of(*checks: Check) -> list[Finding]:
    return list(run(Patient(MessagingConfig(), Scope()), checks, "nats"))


def check(name: str, *found: Finding, needs: tuple[str, ...] = ()) -> Check:
    return Check(name=name, asks="", why="it matters", look=lambda _checkup: found, needs=needs)


def test_findings_carry_their_check_and_why_it_matters() -> None:
    found = findings_of(check("a", ok("well"), warning("ill", "mend"), warning("worse", "mend", "for another reason")))
    assert [(each.check, each.backend, each.severity, each.why) for each in found] == [
        ("a", "nats", OK, ""),
        ("a", "nats", WARNING, "it matters"),
        ("a", "nats", WARNING, "for another reason"),
    ]


def test_a_check_without_its_ground_is_said_to_be_not_done() -> None:
    found = findings_of(
        check("ground", broken("gone", "mend")), check("middle", ok("?"), needs=("ground",)),
        check("top", ok("?"), needs=("middle",)), check("beside", warning("ill", "mend")),
        check("after", ok("well"), needs=("beside",)),
    )  # fmt: skip
    assert [(each.check, each.severity) for each in found] == [
        ("ground", BROKEN), ("middle", NOT_DONE), ("top", NOT_DONE), ("beside", WARNING), ("after", OK),
    ]  # fmt: skip
    assert found[1].what == "rests on the check ground"


def test_an_error_of_the_sdk_is_a_finding() -> None:
    def fails(_checkup: Any) -> Iterator[Finding]:
        yield ok("as far as it went")
        raise BackendUnavailable("it went away")

    found = findings_of(Check(name="a", asks="", why="it matters", look=fails))
    assert [(each.severity, each.what) for each in found] == [(OK, "as far as it went"), (BROKEN, "it went away")]


@pytest.mark.parametrize(
    ("severities", "code"),
    [([], 0), ([OK, NOT_DONE], 0), ([OK, WARNING, NOT_DONE], 1), ([WARNING, BROKEN, OK], 2)],
)
def test_the_exit_code_is_that_of_the_worst(severities: Iterable[Severity], code: int) -> None:
    assert exit_code(severities) == code


@pytest.mark.parametrize(
    ("retry", "seconds"),
    [
        ({}, 1 + 2 + 4 + 8),
        ({"max_attempts": 1}, 0),
        ({"max_attempts": 8}, 1 + 2 + 4 + 8 + 16 + 30 + 30),
        ({"max_attempts": 1_000_001}, 1 + 2 + 4 + 8 + 16 + 30 * (1_000_000 - 5)),
        ({"initial_delay_secs": 5.0, "multiplier": 1.0, "max_attempts": 3000}, 5 * 2999),
    ],
)
def test_the_time_that_retries_take(retry: dict[str, Any], seconds: float) -> None:
    assert retries_secs(MessagingConfig.from_mapping({"retry": retry})) == pytest.approx(seconds)


def test_the_time_within_which_a_message_is_published_again() -> None:
    assert repeat_secs(MessagingConfig()) == 30 + 15
    assert repeat_secs(MessagingConfig(enable_dlq=False)) == 2 * 10
    assert repeat_secs(MessagingConfig(publish_timeout_ms=60_000)) == 2 * 60


def test_times_are_spoken() -> None:
    spoken_of = {seconds: spoken(seconds) for seconds in (0.25, 45, 100, 3600, 7200, 604_800)}
    assert list(spoken_of.values()) == ["0.25 s", "45 s", "100 s", "60 minutes", "2 hours", "7 days"]


INF = float("inf")


@pytest.mark.parametrize(
    ("buckets", "total", "seconds"),
    [
        ({0.1: 10, 1.0: 10, INF: 10}, 0.5, 0.1),
        ({0.1: 98, 1.0: 100, INF: 100}, 10.0, 1.0),
        ({0.1: 0, 10.0: 0, INF: 2}, 84.0, 42.0),
        ({0.1: 90, 10.0: 90, INF: 100}, 409.0, 40.9),
        ({INF: 4}, 20.0, 5.0),
    ],
    ids=["all fast", "a few slow", "all beyond", "some beyond", "no bounds"],
)
def test_the_slow_runs_of_a_histogram(buckets: dict[float, float], total: float, seconds: float) -> None:
    assert slow(buckets, total) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("installed", "severity"), [("2.10.9", WARNING), ("2.11", OK), ("2.16.0", OK), ("3.0.0rc1", WARNING)]
)
def test_the_client_library(monkeypatch: pytest.MonkeyPatch, installed: str, severity: Severity) -> None:
    monkeypatch.setattr(metadata, "version", lambda _name: installed)
    [found] = client_library("nats-py")
    assert found.severity is severity
    assert f"nats-py {installed}" in found.what
    if severity is WARNING:
        assert found.remedy == 'pip install "nats-py>=2.11,<3"' or found.remedy == 'pip install "nats-py<3,>=2.11"'


def test_a_client_library_that_nobody_has_installed() -> None:
    [found] = client_library("no-such-distribution")
    assert found.severity is NOT_DONE


def test_clocks_are_as_sure_as_the_answer_was_quick() -> None:
    assert clock("it", 103.0, 100.0, 100.0).severity is WARNING
    assert clock("it", 103.0, 99.0, 101.0).severity is OK
    assert "3 s ahead of" in clock("it", 103.0, 100.0, 100.0).what


def severities(found: Iterable[Finding]) -> list[Severity]:
    return [each.severity for each in found]


def topic(**fields: Any) -> Topic:
    return Topic(**{"name": "t", "partitions": 1, "copies": 3, "in_sync": 3} | fields)


@pytest.mark.parametrize(
    ("fields", "replication_factor", "brokers", "expected"),
    [
        ({}, None, 3, [OK]),
        ({"in_sync": 2}, None, 3, [WARNING, OK]),
        ({"leaderless": 1, "in_sync": 0}, None, 3, [BROKEN, OK]),
        ({"copies": 1, "in_sync": 1}, None, 3, [WARNING]),
        ({"copies": 1, "in_sync": 1}, 1, 3, [OK]),
        ({"copies": 2, "in_sync": 2}, 3, 3, [WARNING]),
    ],
)
def test_copies_on_a_kafka_cluster(
    fields: dict[str, Any], replication_factor: int | None, brokers: int, expected: list[Severity]
) -> None:
    config = MessagingConfig.from_mapping({"kafka": {"replication_factor": replication_factor}})
    cluster = SimpleNamespace(brokers=dict.fromkeys(range(brokers)))
    assert severities(kafka.replicas(config, topic(**fields), cluster)) == expected


@pytest.mark.parametrize(
    ("fields", "least", "severity", "says"),
    [
        ({}, 2, OK, ""),
        ({}, 1, WARNING, "what a single broker has"),
        ({}, 3, WARNING, "when one broker is away"),
        ({"in_sync": 1}, 2, BROKEN, "every publish is refused"),
        ({"copies": 1, "in_sync": 1}, 1, OK, ""),
        ({"copies": 2, "in_sync": 2}, 3, BROKEN, "before Kafka 4"),
    ],
)
def test_copies_that_acknowledge(fields: dict[str, Any], least: int, severity: Severity, says: str) -> None:
    one = topic(**fields, settings={"min.insync.replicas": str(least)})
    [found] = kafka.in_sync(MessagingConfig(), one, None)
    assert found.severity is severity
    assert says in found.what


def test_lag_that_nobody_may_look_at() -> None:
    config = MessagingConfig().kafka
    assert severities(kafka.lag(config, "g", 0, {}, {})) == [OK]
    assert severities(kafka.lag(config, "g", 3, {}, {})) == [WARNING]


@pytest.mark.parametrize(
    ("copies", "cluster", "wanted", "expected"),
    [
        (3, {"name": "c", "leader": "a", "replicas": [{"name": "b", "current": True}]}, None, [OK]),
        (3, {"name": "c", "leader": "a", "replicas": [{"name": "b", "offline": True}]}, None, [WARNING, OK]),
        (3, {"name": "c", "leader": "a", "replicas": [{"name": "b", "current": False}]}, None, [WARNING, OK]),
        (3, {"name": "c", "replicas": []}, None, [BROKEN, OK]),
        (1, {"name": "c", "leader": "a"}, None, [WARNING]),
        (1, {"name": "c", "leader": "a"}, 1, [OK]),
    ],
)
def test_copies_on_a_nats_cluster(
    copies: int, cluster: dict[str, Any], wanted: int | None, expected: list[Severity]
) -> None:
    config = MessagingConfig.from_mapping({"nats": {"stream_replicas": wanted}})
    info = {"config": {"num_replicas": copies}, "cluster": cluster}
    assert severities(nats.replicas(config, "S", info, {"cluster": "c"})) == expected


def test_whose_a_durable_is() -> None:
    def ours(name: str, subject: str) -> bool:
        return nats.is_ours({"config": {"durable_name": name, "filter_subject": subject}})

    assert ours("pager-llm-im-orders-0123abcd", "llm-im.orders")
    assert ours("on-call-llm-im-any-all-0123abcd", "llm-im.*.>")
    assert not ours("pager-llm-im-orders", "llm-im.orders")
    assert not ours("pager-llm-im-bills-0123abcd", "llm-im.orders")
    assert not ours("pager", "")


def test_the_rights_that_are_tried_are_those_of_the_documentation() -> None:
    page = (DOCS / "nats_security.rst").read_text()
    tried = {*rights.for_subscribing(MessagingConfig(), "llm-im.orders", ["LLM-IM"]).values()}
    tried |= {rule for rule, _ in rights.welcome(["LLM-IM"]).values()}
    listed = re.search(r"# consumer\n(.+?)\]", page, re.DOTALL)
    assert listed is not None
    assert tried | {"$JS.API.STREAM.NAMES"} == set(re.findall(r'"(.+?)"', listed[1]))


@pytest.mark.parametrize("backend", [MessagingBackend.NATS, MessagingBackend.KAFKA])
def test_the_page_tells_of_every_check_in_its_order(backend: MessagingBackend) -> None:
    page = (DOCS / "doctor.rst").read_text()
    section = page[page.index(f".. _doctor-{backend.value}:") :].split("\n.. _")[0]
    told = re.findall(r"^   \* - (.+)\n     - (.+(?:\n       .+)*)\n     - (.+(?:\n       .+)*)", section, re.MULTILINE)
    rows = [tuple(" ".join(cell.split()).replace("``", "") for cell in row) for row in told]
    assert rows[1:] == [(one.name, one.asks, one.why) for one in checks_of(backend)]


@pytest.mark.parametrize("backend", [MessagingBackend.NATS, MessagingBackend.KAFKA])
def test_checks_rest_on_earlier_ones(backend: MessagingBackend) -> None:
    names: list[str] = []
    for one in checks_of(backend):
        assert set(one.needs) <= set(names), one.name
        names.append(one.name)
    assert len(set(names)) == len(names)


def test_findings_for_people() -> None:
    arguments = ["doctor", "--set", "nats.servers=nats://127.0.0.1:1", "--set", "connect_timeout_ms=200"]
    result = CliRunner().invoke(commands, arguments)
    lines = result.output.splitlines()
    assert result.exit_code == 2
    assert lines[0].startswith("broken   nats server: NATS connection failed: connection refused")
    assert lines[1].startswith("         why: without a connection")
    assert lines[2].startswith("         mend: nats --server nats://127.0.0.1:1 rtt")
    assert lines[-1] == "1 ok, 0 warning, 1 broken, 17 not done"
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "backend=memory"], "backend 'memory' is no broker"),
        (["--set", "nats.usr=x"], "the nearest known name is nats.user"),
        (["--topic", "a b"], "topic 'a b' is not allowed"),
    ],
)
def test_a_configuration_that_is_not_allowed_is_broken(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(commands, ["doctor", *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("broken   configuration: ")
    assert says in result.output
    assert result.output.endswith("0 ok, 0 warning, 1 broken, 0 not done\n")


def test_wrong_usage() -> None:
    result = CliRunner().invoke(commands, ["doctor", "--role", "patient"])
    assert (result.exit_code, "'patient' is not one of" in result.output) == (2, True)
