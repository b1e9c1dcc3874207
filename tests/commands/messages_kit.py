"""The commands that move messages, on one of the session's brokers with a topic prefix of a test's own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from incident_messaging import MessageEnvelope, MessagingBackend, MessagingConfig, MessagingService, from_json
from incident_messaging.commands import commands
from incident_messaging.commands.messages import users_headers
from incident_messaging.deadline import Deadline
from incident_messaging.record import Received, Record

#: Seconds that a process may take to start, to say something, to end.
PATIENCE = 40.0


class Running:
    """A command as a process of its own, and what it said so far."""

    def __init__(self, arguments: Sequence[str], folder: Path, prelude: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{prelude}\nfrom incident_messaging.cli import main\nmain()", *arguments],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=lines.extend, args=(iter(pipe.readline, ""),), daemon=True)
            for lines, pipe in ((self.out, self.process.stdout), (self.err, self.process.stderr))
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()

    def ended(self) -> int:
        """Its exit code, once it has ended and all it said is read."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def close(self) -> None:
        self.process.kill()
        self.ended()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Held:
    """A message that a topic holds."""

    def __init__(self, received: Received) -> None:
        envelope: MessageEnvelope[Any] = from_json(received.body or b"", MessageEnvelope[Any])
        self.payload, self.metadata = envelope.payload, envelope.metadata
        self.key = received.key
        self.headers = users_headers(received.headers)
        self.position = str(received.position)


class Cli:
    """The commands with a configuration of a test's own, and a service with the same."""

    def __init__(self, backend: str, ways: dict[str, Any], folder: Path) -> None:
        self.backend = MessagingBackend(backend)
        self.folder = folder
        self.prefix = f"m-{uuid.uuid4().hex[:8]}"
        self.config = folder / "messaging.json"
        self.config.write_text(json.dumps({"backend": backend, "topic_prefix": self.prefix, backend: ways}))
        self.service = MessagingService(MessagingConfig.from_file(self.config))
        self._running: list[Running] = []

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        """A command in this process."""
        return CliRunner().invoke(commands, [*arguments, "--config", str(self.config)], input=stdin)

    def start(self, *arguments: str, prelude: str = "") -> Running:
        """A command as a process of its own, which may run lines of Python before."""
        self._running.append(Running([*arguments, "--config", str(self.config)], self.folder, prelude))
        return self._running[-1]

    def held(self, topic: str) -> list[Held]:
        """All that a topic holds by now."""
        broker = self.service._connections.outlet(self.backend).broker
        broker.connect(Deadline.after(PATIENCE))
        with closing(broker.archive(f"{self.prefix}.{topic}", PATIENCE)) as archive:
            return [Held(each) for each in archive.read()]

    def publish_raw(self, topic: str, body: bytes) -> None:
        """Publish bytes as they are, as a program without this SDK may."""
        errors: list[Any] = []
        told = threading.Event()

        def done(_position: Any, _duplicate: bool, error: Any) -> None:
            errors.append(error)
            told.set()

        record = Record(topic=f"{self.prefix}.{topic}", body=body, dedup_id=uuid.uuid4().hex)
        self.service._connections.outlet(self.backend).broker.send(record, Deadline.after(10.0), done)
        assert told.wait(PATIENCE)
        assert errors == [None]

    def close(self) -> None:
        for running in self._running:
            running.close()
        self.service.close()


def now() -> str:
    """This moment, as an option's time."""
    return datetime.now(UTC).isoformat()
