"""A worker process, and the modules that it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds that a worker may take to start, to be ready, to end.
PATIENCE = 40.0

COMMAND = [sys.executable, "-m", "incident_messaging.cli", "worker"]


class Worker:
    """A worker process, what it said so far, and its port."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments, "--port", "0"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def handled(self) -> list[str]:
        return [line.split()[1] for line in self.lines if line.startswith("handled ")]

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 while nobody answers."""
        found = re.search(r"on http://127\.0\.0\.1:(\d+)", self.output)
        if found is None:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def ended(self) -> int:
        """Its exit code, once it has ended and all it said is read."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))


Start = Callable[..., Worker]


def module(settings: dict[str, Any], *lines: str) -> str:
    """A module with a service and what follows."""
    head = f"""\
import json, os
from incident_messaging import *
service = MessagingService(MessagingConfig.from_mapping(json.loads({json.dumps(json.dumps(settings))})))
"""
    return head + "\n".join(lines) + os.linesep
