"""Standard streams that are closed, or take no more: that is told, and nothing else is written to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from incident_messaging.brokers.ports import free_port

COMMAND = f"exec {sys.executable} -m incident_messaging.cli"
FULL = "Error: stdout: No space left on device\n"


@pytest.mark.parametrize("arguments", ["schema", "config show", "--help"])
def test_a_full_stdout_is_one_line(arguments: str) -> None:
    done = shell(f"{COMMAND} {arguments} >/dev/full")
    assert (done.returncode, done.stderr) == (1, FULL)


@pytest.mark.parametrize(
    ("streams", "code", "says"),
    [
        (">&-", 1, "connection refused"),  # whose client would abort with its connection in the place of stdout
        ("2>&-", 1, ""),
        ("<&- >&- 2>&-", 2, ""),
        ("<&-", 2, "not readable as JSON"),
    ],
)
def test_a_closed_stream_is_nowhere(streams: str, code: int, says: str) -> None:
    message = "-" if "<" in streams else "1"
    url = f"nats://127.0.0.1:{free_port()}"
    done = shell(f"{COMMAND} publish orders {message} --set nats.servers={url} {streams}")
    assert (done.returncode, done.stdout, says in done.stderr) == (code, "", True), done.stderr
    assert "Traceback" not in done.stderr


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False, timeout=60)
