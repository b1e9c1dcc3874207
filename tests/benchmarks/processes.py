"""Contestants as processes: started in the right Python, asked with a bound, ended whatever they do."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .tasks import CONTESTANTS

_TESTS = Path(__file__).parents[1]
#: Where ``tox -e bench-peers`` puts the peers.
PEERS = _TESTS.parent / ".tox" / "bench-peers" / "bin" / "python"


class Failed(Exception):
    """A contestant could not be started, raised, ended or did not answer in time."""

    def told(self, who: str) -> str:
        """What results keep of it, on one line; all of it goes to standard error."""
        print(f"{who} failed: {self}", file=sys.stderr, flush=True)  # noqa: T201
        return str(self).strip().splitlines()[-1]


class Process:
    """One contestant; a context manager that ends it."""

    def __init__(self, name: str, settings: dict[str, Any], peers: Path, timeout: float = 30.0) -> None:
        contestant = CONTESTANTS[name]
        if contestant.peer and not peers.is_file():
            raise Failed("no environment of the peers: make it by tox -e bench-peers, or name its Python by --peers")
        python = str(peers) if contestant.peer else sys.executable
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            [python, "-m", f"benchmarks.contestants.{contestant.module}", json.dumps(settings | contestant.settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, cwd=_TESTS,
        )  # fmt: skip
        self._heard = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._child.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        try:
            self.versions: dict[str, str] = self._listen(timeout)["ready"]
        except BaseException:
            self.close()
            raise

    def ask(
        self, call: str, *, timeout: float = 90.0, progress: Callable[[int], None] | None = None, **arguments: Any
    ) -> Any:
        """The result of a call; ``progress`` is called with what the contestant says meanwhile.

        Raises:
            Failed: It raised, ended or did not answer in time.
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"call": call, **arguments}).encode() + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise Failed(f"has ended: {self._said()}") from error
        ends = time.monotonic() + timeout
        while "progress" in (heard := self._listen(ends - time.monotonic())):
            if progress is not None:
                progress(heard["progress"])
        if "error" in heard:
            raise Failed(heard["error"].strip())
        return heard["result"]

    def _listen(self, timeout: float) -> dict[str, Any]:
        ends = time.monotonic() + timeout
        while b"\n" not in self._heard:
            if not self._selector.select(max(0.0, ends - time.monotonic())):
                raise Failed(f"no answer within {timeout:.0f} s: {self._said()}")
            some = os.read(self._child.stdout.fileno(), 65536)  # type: ignore[union-attr]
            if not some:
                raise Failed(f"has ended: {self._said()}")
            self._heard += some
        line, _, self._heard = self._heard.partition(b"\n")
        words: dict[str, Any] = json.loads(line)
        return words

    def _said(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()[-2000:] or "without a word"

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.wait()
        self._selector.close()
        for stream in (self._child.stdin, self._child.stdout):
            try:
                stream.close()  # type: ignore[union-attr]
            except OSError:  # an order that it never read
                pass
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
