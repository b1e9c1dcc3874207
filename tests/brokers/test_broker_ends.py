"""No broker outlives the Python that started it, whichever way that one ends, and no fork ends one."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from broker_waits import eventually, gone

from incident_messaging.brokers.__main__ import main
from incident_messaging.brokers.ports import free_port

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

    _, errors = parent.communicate(timeout=60)

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
@pytest.mark.parametrize(("number", "are_given"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_the_command_line_runs_both_until_a_signal(python: Python, number: signal.Signals, are_given: bool) -> None:
    nats, kafka = (free_port(), free_port()) if are_given else ("", "")
    ports = ["--nats-port", str(nats), "--kafka-port", str(kafka)] if are_given else []
    command = python("-m", "incident_messaging.brokers", *ports)
    try:
        assert command.stdout is not None
        lines = [command.stdout.readline() for _ in range(4)]
        text = "".join(lines)
        assert f"nats://127.0.0.1:{nats}" in text
        assert f"Kafka  127.0.0.1:{kafka}" in text
        children = psutil.Process(command.pid).children()
        assert len(children) == 4, "two brokers, two guards"
        command.send_signal(number)
        _, errors = command.communicate(timeout=60)
    finally:
        command.kill()
    assert (command.returncode, errors) == (0, "")
    assert all(gone(child.pid) for child in children)


def test_the_command_line_tells_what_it_takes_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert {"--nats-port", "--kafka-port", "4222", "9092"} <= set(re.split(r"[\s;,]+", said)), said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--nats-port", "70000"],
            "argument --nats-port: '70000' is no port: allowed is a whole number from 1 to 65535",
        ),
        (["--kafka-port", "kafka"], "argument --kafka-port: 'kafka' is no port"),
        (["--kafka-port", "0"], "argument --kafka-port: '0' is no port"),
        (["9092"], "unrecognized arguments: 9092"),
    ],
)
def test_the_command_line_refuses_what_it_does_not_take(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert told in err


def test_the_command_line_names_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        assert main(["--nats-port", str(port)]) == 1
    err = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in err
    assert "ddress already in use" in err
