"""The doctor's order, its arithmetic, and that its page tells of every check."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from incident_messaging import MessagingConfig
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


def test_an_answer_that_nobody_foresaw_is_a_finding_and_the_others_go_on() -> None:
    def fails(_checkup: Any) -> Iterator[Finding]:
        yield ok("as far as it went")
        raise KeyError("le")

    found = findings_of(Check(name="a", asks="", why="", look=fails), check("b", ok("well")))
    assert [(each.check, each.severity) for each in found] == [("a", OK), ("a", BROKEN), ("b", OK)]
    assert found[1].what == "the check itself failed: KeyError: 'le'"


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
    arguments = ["doctor", "--set", "nats.servers=nats://127.0.0.1:1"]
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
        (
            ["--set", "backend=memory"],
            "backend 'memory' is no broker: there is nothing to look at\n         why: nothing was",
        ),
        (["--metrics-url", "http://u:hunter2@127.0.0.1:1/metrics"], "--metrics-url holds a user or a password"),
        (["--set", "nats.usr=x"], "the nearest known name is nats.user"),
        (["--topic", "a b"], "topic 'a b' is not allowed"),
    ],
)
def test_a_configuration_that_is_not_allowed_is_broken(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(commands, ["doctor", *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("broken   configuration: ")
    assert says in result.output
    assert "hunter2" not in result.output
    assert result.output.endswith("0 ok, 0 warning, 1 broken, 0 not done\n")


def test_wrong_usage() -> None:
    result = CliRunner().invoke(commands, ["doctor", "--role", "patient"])
    assert (result.exit_code, "'patient' is not one of" in result.output) == (2, True)
