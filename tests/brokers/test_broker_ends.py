"""No broker outlives the Python that started it, whichever way that one ends, and no fork ends one."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from broker_waits import eventually, gone

Python = Callable[..., subprocess.Popen[str]]

START = """
import os, sys, time
from incident_messaging.brokers import NatsServer
server = NatsServer()
server.start()
{then}
print(server.pid, server._guard.pid, server.folder, flush=True)
{last}
"""


def started(process: subprocess.Popen[str]) -> tuple[int, int, Path]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"nothing was started: {process.communicate()[1]}")
    pid, guard, folder = line.split()
    return int(pid), int(guard), Path(folder)


def assert_nothing_left(pid: int, guard: int, folder: Path) -> None:
    assert eventually(lambda: gone(pid))
    assert eventually(lambda: gone(guard))
    assert eventually(lambda: not folder.exists())


@pytest.mark.parametrize("then", ["", "server.freeze()"], ids=["running", "frozen"])
def test_a_killed_parent_takes_its_broker_and_the_data_along(python: Python, then: str) -> None:
    parent = python("-c", START.format(then=then, last="time.sleep(60)"))
    pid, guard, folder = started(parent)
    assert folder.is_dir()
    assert not gone(pid)

    parent.kill()
    parent.communicate()

    assert_nothing_left(pid, guard, folder)


@pytest.mark.parametrize("last", ["", "sys.exit(0)"], ids=["end of script", "sys.exit"])
def test_a_parent_that_ends_without_closing_leaves_nothing(python: Python, last: str) -> None:
    parent = python("-c", START.format(then="", last=last))
    left = started(parent)

    _, errors = parent.communicate(timeout=20)

    assert (parent.returncode, errors) == (0, "")
    assert_nothing_left(*left)


def test_a_forked_child_that_exits_leaves_the_broker_alone(python: Python) -> None:
    then = "child = os.fork()\nif child == 0: sys.exit(server.running)\nassert os.waitpid(child, 0)[1] == 0"
    parent = python("-c", START.format(then=then, last="time.sleep(60)"))
    try:
        pid, guard, folder = started(parent)
        assert not gone(pid)
        assert not gone(guard)
        assert folder.is_dir()
    finally:
        parent.kill()
        parent.communicate()
    assert_nothing_left(pid, guard, folder)


def test_a_forked_child_that_lives_on_does_not_keep_the_broker(python: Python) -> None:
    then = "child = os.fork()\nif child == 0: time.sleep(60); os._exit(0)"
    parent = python("-c", START.format(then=then, last="time.sleep(60)"))
    left = started(parent)
    children = [child for child in psutil.Process(parent.pid).children() if child.pid not in left]
    try:
        parent.kill()
        parent.wait()
        assert_nothing_left(*left)
        assert [child.is_running() for child in children] == [True]
    finally:
        for child in children:
            child.kill()
        parent.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line_runs_both_until_a_signal(python: Python, number: signal.Signals) -> None:
    command = python("-m", "incident_messaging.brokers")
    try:
        assert command.stdout is not None
        lines = [command.stdout.readline() for _ in range(4)]
        text = "".join(lines)
        assert "nats://127.0.0.1:" in text
        assert "Kafka  127.0.0.1:" in text
        children = psutil.Process(command.pid).children()
        assert len(children) == 4, "two brokers, two guards"
        command.send_signal(number)
        _, errors = command.communicate(timeout=20)
    finally:
        command.kill()
    assert (command.returncode, errors) == (0, "")
    assert all(gone(child.pid) for child in children)
