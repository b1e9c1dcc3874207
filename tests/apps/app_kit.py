"""Applications in processes of their own, asked as their users ask them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from waiting import until

HERE = Path(__file__).parent

#: Seconds for a process to start, to answer and to end, on a machine that is busy.
PATIENCE = 60.0


class Answer(NamedTuple):
    status: int
    body: Any


class App:
    """A running process of an application; what it says goes to a file, which a forked child may keep open."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self.process = process
        self.log = log
        self.url = url

    @property
    def said(self) -> str:
        return self.log.read_text()

    def get(self, path: str) -> Answer:
        return self._ask(path)

    def post(self, path: str, **fields: Any) -> Answer:
        return self._ask(path, json.dumps(fields).encode())

    def answers(self, path: str = "/") -> bool:
        """Whether it has an answer, any answer."""
        assert self.process.poll() is None, self.said
        try:
            self.get(path)
        except OSError:
            return False
        return True

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def interrupt(self) -> int:
        """Press Ctrl-C in its terminal, which all its processes hear, and return the exit code when all have ended."""
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(PATIENCE)
        assert until(lambda: not _group_lives(self.process.pid), PATIENCE), self.said
        return code

    def _ask(self, path: str, body: bytes | None = None) -> Answer:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return Answer(response.status, json.loads(response.read() or b"null"))
        except urllib.error.HTTPError as error:
            with error:
                error.read()
                return Answer(error.code, None)


@contextmanager
def running(
    command: list[str], environment: Mapping[str, str], folder: Path, *, log: str, port: int = 0
) -> Iterator[App]:
    """A process until the block ends, from when its port answers if it has one."""
    path = folder / log
    with path.open("ab") as words:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment_with(environment),
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
    app = App(process, path, f"http://127.0.0.1:{port}")
    try:
        if port:
            assert until(app.answers, PATIENCE), app.said
        yield app
    finally:
        with process:
            end_group(process)


def _group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all have ended
        pass


def outcome(command: list[str], environment: Mapping[str, str], folder: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of a process that ends by itself."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment_with(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def environment_with(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "DJANGO_", "SITE_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}
