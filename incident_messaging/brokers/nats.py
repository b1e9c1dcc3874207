"""A real NATS server on this machine."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from incident_messaging.brokers.errors import HOW_TO_GET, BrokerError
from incident_messaging.brokers.ports import HOST, free_port
from incident_messaging.brokers.process import BrokerProcess

__all__ = ["NatsServer"]


class NatsServer(BrokerProcess):
    """One NATS server, by default with JetStream, its file store and its monitoring on loopback ports.

    ``max_payload`` is in bytes (None is the server's own, 1 MiB). ``config`` is text in the server's
    configuration language, put behind ours (its keys win): users, TLS, accounts, limits. Without
    ``store_dir`` the data lives in a temporary folder until ``close``.
    """

    kind = "NATS"

    def __init__(
        self,
        *,
        port: int | None = None,
        jetstream: bool = True,
        max_payload: int | None = None,
        config: str = "",
        store_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(port, store_dir)
        self.monitor_port = free_port()
        self._jetstream = jetstream
        self._max_payload = max_payload
        self._config = config

    @property
    def url(self) -> str:
        """Where clients connect, as ``nats://127.0.0.1:PORT``."""
        return f"nats://{self.address}"

    @property
    def monitor_url(self) -> str:
        """The server's monitoring (``/varz``, ``/jsz``, ``/healthz``, ...), as ``http://127.0.0.1:PORT``."""
        return f"http://{HOST}:{self.monitor_port}"

    def monitor(self, path: str) -> dict[str, Any]:
        """What the server's monitoring answers at ``path``; empty if it does not within 2 s."""
        connection = http.client.HTTPConnection(HOST, self.monitor_port, timeout=2.0)
        try:
            connection.request("GET", path)
            answer: dict[str, Any] = json.load(connection.getresponse())
            return answer
        except (OSError, ValueError, http.client.HTTPException):
            return {}
        finally:
            connection.close()

    def reload(self) -> None:
        """Have the server read its configuration again, and the files that it includes: users and their rights."""
        self._signal(signal.SIGHUP)

    def _prepare(self) -> Sequence[str]:
        path = self.folder / "nats.conf"
        path.write_text(self._settings(), "utf-8")
        return [_find_server(), "-c", str(path)]

    def _settings(self) -> str:
        lines = [
            f"server_name: nats-{self.port}",
            f"listen: {json.dumps(self.address)}",
            f"http: {json.dumps(f'{HOST}:{self.monitor_port}')}",
        ]
        if self._jetstream:
            lines.append(f"jetstream {{ store_dir: {json.dumps(str(self.data_dir))} }}")
        if self._max_payload is not None:
            lines.append(f"max_payload: {self._max_payload}")
        return "\n".join([*lines, self._config, ""])

    def _is_ready(self) -> bool:
        # /healthz asks for the clients' listener, and with JetStream for its streams and (in a cluster) a
        # leader; unlike a look at the client port it works the same where TLS comes first.
        return self.monitor("/healthz").get("status") == "ok"


def _find_server() -> str:
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file():
        return str(beside)
    found = shutil.which("nats-server")
    if found is None:
        raise BrokerError(f"no nats-server beside {sys.executable} or on PATH; get it by: {HOW_TO_GET}")
    return found
