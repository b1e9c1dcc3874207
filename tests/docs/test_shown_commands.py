"""Commands that the documentation shows: they exist and take these words, on every page.

The page of errors has three for each code, and the code's text, which is the source's.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple
from urllib.request import urlopen

import click
import pytest
from confluent_kafka import KafkaError
from page_code import DOCS, pages

from incident_messaging import MessagingError
from incident_messaging.backends.kafka.errors import subscribe
from incident_messaging.brokers.__main__ import wanted_ports
from incident_messaging.commands import commands
from incident_messaging.worker import probes

PAGE = (DOCS / "errors.rst").read_text()
SOURCE = DOCS.parent / "incident_messaging"
CASES = [(kind.__name__, code) for kind in MessagingError.__subclasses__() for code in kind.codes]

#: What is not part of this project, and is asked for by the page: the brokers' own, the system's.
FOREIGN = {
    *("curl", "docker", "env", "grep", "nc", "openssl", "ps", "py-spy"),
    *(f"kafka-{name}.sh" for name in ("acls", "configs", "console-consumer", "get-offsets", "topics")),
}


class Told(NamedTuple):
    """What the page says of a code."""

    text: str
    commands: list[str]


def told(kind: str, code: str) -> Told:
    section = re.search(rf"^{kind}\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None
    entry = re.search(rf"^``{code}``\n((?: {{4}}.*\n|\n(?= {{4}}))+)", section[1] + "\n", re.MULTILINE)
    assert entry is not None
    text = re.search(r":Text: (.*?)\n    :Cause:", entry[1], re.DOTALL)
    assert text is not None
    return Told(" ".join(text[1].split()), re.findall(r"^ {8}\| ``(.+?)``:", entry[1], re.MULTILINE))


def all_commands() -> list[str]:
    return sorted({command for case in CASES for command in told(*case).commands})


def constant_parts() -> list[str]:
    """Every piece of text in the source, between what is put into it, and librdkafka's; the longest first."""
    found = {KafkaError(code).str() for code in range(-200, 140)}
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
                found.add(re.sub(r"\s+", " ", node.value))
    return sorted((part for part in found if len(part) >= 4 and " " in part), key=len, reverse=True)


PARTS = constant_parts()

#: What is put into the texts: values, and the words of NATS servers, which are in no source.
VALUES = re.compile(
    r"operations\.audit\.logins[\d-]*|operations\.>|OPERATIONS|AUDIT|(?:nats|tls)://localhost:4222|reports:|\bnats\b"
    r"|incident-messaging-loop|^publish\b|IncidentCreated|Created\b|'severity'|'audit logins'|KeyError"
    r"|authorization violation|maximum bytes exceeded"
)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_text_is_in_the_source(case: tuple[str, str]) -> None:
    left = VALUES.sub("\0", told(*case).text)
    for part in PARTS:
        left = left.replace(part, "\0")
    assert re.findall("[A-Za-z]+", left) == []


def test_the_text_about_a_right_is_that_of_its_error() -> None:
    refused = subscribe(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), "operations.audit.logins")
    assert (refused.code, str(refused)) == ("denied", told("SubscribeFailed", "denied").text)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_three_commands_find_it(case: tuple[str, str]) -> None:
    found = told(*case).commands
    assert len(found) == len(set(found)) == 3, found


def own_commands() -> Iterator[list[str]]:
    for line in all_commands():
        words = shlex.split(line)
        if words[0] == "incident-messaging":
            yield words[1:]
        else:
            assert words[0] in FOREIGN or words[:2] == ["python", "-c"], line


def shown_commands() -> set[str]:
    """What console blocks show of this project's command, each in one line."""
    found = set()
    for page in pages():
        text = page.read_text().replace("\\\n", " ")
        found |= {" ".join(line.split()) for line in re.findall(r"^ +\$ (incident-messaging .+)$", text, re.MULTILINE)}
    return found


def taken(words: list[str]) -> None:
    """Read a command line as the command would, without running it.

    Raises:
        click.ClickException: It is not taken.
    """
    command: click.Command = commands
    context = click.Context(command)
    while True:
        context = command.make_context(command.name, words, parent=context)
        if not isinstance(command, click.Group):
            return
        name, chosen, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert chosen is not None, name
        command = chosen


OWN = sorted(shown_commands() | {shlex.join(["incident-messaging", *words]) for words in own_commands()})


@pytest.mark.parametrize("line", OWN)
def test_the_command_takes_what_pages_show(line: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.split(r" [|<>] ", line)[0])[1:]
    for name in re.findall(r"(?<![\w./-])(?:\./)?[\w-]+\.(?:toml|jsonl?|sh)\b", " ".join(words)):
        (tmp_path / name).touch(mode=0o755)
    taken(words)


STARTS = r"python -m\s+incident_messaging\.brokers((?:\s+--[\w-]+\s+\d+)*)"
STARTED = {
    " ".join(found.split())
    for page in [*pages(), DOCS.parent / "README.md"]
    for found in re.findall(STARTS, page.read_text())
}


@pytest.mark.parametrize("line", sorted(STARTED))
def test_brokers_start_as_pages_say(line: str) -> None:
    ports = wanted_ports(line.split())
    assert {ports.nats_port, ports.kafka_port} <= {4222, 9092, None}


NAMED = sorted({found for page in pages() for found in re.findall(r"``incident-messaging ([a-z]+)", page.read_text())})


@pytest.mark.parametrize("name", NAMED)
def test_a_command_that_is_named_exists(name: str) -> None:
    assert commands.get_command(click.Context(commands), name) is not None


@pytest.mark.parametrize("line", [line for line in all_commands() if line.startswith("python -c")])
def test_the_python_commands_run(line: str, tmp_path) -> None:
    (tmp_path / "messaging.toml").write_text('backend = "kafak"\n')
    words = [sys.executable, *shlex.split(line)[1:]]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
    kind = "SerializationError" if "to_json" in line else "ConfigurationError"
    assert run.stderr.splitlines()[-1].startswith(f"incident_messaging.errors.{kind}: ")


def asked_of(port: int) -> list[str]:
    return sorted({path for line in all_commands() for path in re.findall(rf":{port}(/[^\s']+)", line)})


@pytest.mark.parametrize("path", asked_of(8222))
def test_a_nats_server_has_what_is_asked_of_it(path: str, nats_server) -> None:
    with urlopen(f"{nats_server.monitor_url}{path}", timeout=10) as answer:
        assert json.load(answer)


@pytest.mark.parametrize("path", asked_of(9100))
def test_a_worker_has_what_is_asked_of_it(path: str, messaging) -> None:
    answers: list[str] = []
    body = probes(messaging)(
        {"REQUEST_METHOD": "GET", "PATH_INFO": path}, lambda status, _headers: answers.append(status)
    )
    assert (answers, bool(b"".join(body))) == (["200 OK"], True)
