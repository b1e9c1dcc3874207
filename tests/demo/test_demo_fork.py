"""``incident-messaging demo --fork``: what becomes of messages that a forked child publishes, counted in the broker."""

from __future__ import annotations

import fcntl
import re
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from waiting import takes, until

from incident_messaging import MessagingBackend, commands
from incident_messaging.demo.fork import Outcome


def demo(*arguments: str) -> Result:
    return CliRunner().invoke(commands.commands, ["demo", "--fork", *arguments])


def test_a_forked_child_loses_all_with_the_clients_alone_and_nothing_with_the_sdk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    result = demo()

    assert result.exit_code == 0, result.output
    rows = re.findall(r"^ *([a-z-]+) +(nats|kafka) +(\d+) +(\d+) +(\d+) +(\d+) *$", result.output, re.MULTILINE)
    counts = {(client, broker): [int(count) for count in more] for client, broker, *more in rows}
    assert counts == {
        ("nats-py", "nats"): [10, 0, 2, 2],
        ("incident-messaging", "nats"): [10, 10, 2, 2],
        ("confluent-kafka", "kafka"): [10, 0, 2, 2],
        ("incident-messaging", "kafka"): [10, 10, 2, 2],
    }
    assert list(tmp_path.iterdir()) == []


def test_the_exit_code_says_when_the_sdk_lost_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("incident_messaging.demo.fork.SDK", "nats-py")
    result = demo("--backend", "nats")
    assert result.exit_code == 1, result.output
    assert "nats-py" in result.output


CRASHES = "import sys; print('a word before', file=sys.stderr); sys.exit('out of\\nmemory')"
BABBLES = "print('many')"
HANGS = """
import fcntl, os, time
lock = open({path!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
os.fork()
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("program", "reason"),
    [(CRASHES, "ended with exit code 1: memory"), (BABBLES, "said 'many', not how many calls raised nothing")],
    ids=["crashes", "babbles"],
)
def test_a_program_that_fails_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    monkeypatch.setattr("incident_messaging.demo.fork.PROGRAM", ("-c", program))

    result = demo("--backend", "nats")

    assert result.exit_code == 1
    assert result.stderr == f"Error: the program that publishes with nats-py {reason}\n"


def test_a_program_that_hangs_is_ended_with_its_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = tmp_path / "held while one of them lives"
    lock.touch()
    monkeypatch.setattr("incident_messaging.demo.fork.PROGRAM", ("-c", HANGS.format(path=str(lock))))
    monkeypatch.setattr("incident_messaging.demo.fork.SECONDS", 3.0)

    with takes(60.0):
        result = demo("--backend", "nats")

    assert result.exit_code == 1
    assert result.stderr == "Error: the program that publishes with nats-py did not end within 3 s\n"
    assert until(lambda: is_free(lock), 30.0)


def is_free(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("more", [["--limit", "3"], ["--file", __file__]])
def test_what_belongs_to_the_replay_is_refused(more: list[str]) -> None:
    result = demo(*more)
    assert result.exit_code == 2
    assert "it takes neither --file nor --limit" in result.stderr


@pytest.mark.parametrize(
    ("accepted", "child", "parent"), [(10, 9, 2), (10, 11, 2), (9, 9, 2), (10, 10, 1), (10, 10, 3)]
)
def test_missing_and_repeated_messages_are_no_whole_outcome(accepted: int, child: int, parent: int) -> None:
    assert not Outcome("incident-messaging", MessagingBackend.NATS, accepted, child, parent).whole
