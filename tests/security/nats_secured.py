"""NATS servers that let in only whom they should, and traffic that must not notice it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from certificates import Certificate
from waiting import until

from incident_messaging import MessagingService
from incident_messaging.brokers import NatsServer

PATIENCE = 10.0

Make = Callable[..., MessagingService]


def tls(certificate: Certificate, *more: str) -> str:
    """A server's ``tls`` section."""
    lines = [f'cert_file: "{certificate.cert_file}"', f'key_file: "{certificate.key_file}"', *more]
    return f"tls {{ {', '.join(lines)} }}\n"


def user(login: str, permissions: str = "") -> str:
    """One user, as a server's ``authorization`` has it."""
    return f"authorization {{ users = [ {{ {login}{f', {permissions}' if permissions else ''} }} ] }}"


def included(path: Path) -> str:
    """A part of a server's configuration that is in a file of its own, read again with `NatsServer.reload`."""
    return f'include "{"../" * 20}{path}"'  # a path of an include begins at the folder of the configuration


@contextmanager
def unreadable(path: Path) -> Iterator[Path]:
    """A file that this process may not read; whoever runs the tests as root is somebody else meanwhile."""
    path.chmod(0)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield path
    finally:
        os.seteuid(me)
        path.chmod(0o600)


class Traffic:
    """Numbered messages, published one after another and handled by a group; none may get lost or be refused."""

    def __init__(self, service: MessagingService) -> None:
        self._service = service
        self._over = threading.Event()
        self._errors: list[Exception] = []
        self.sent = 0
        self.got: set[int] = set()
        self._thread = threading.Thread(target=self._publish, name="test-traffic", daemon=True)

    def __enter__(self) -> Traffic:
        self._subscription = self._service.subscribe("load", callback=lambda each: self.got.add(each.payload["n"]))
        self._thread.start()
        self.flows()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * PATIENCE)

    def _publish(self) -> None:
        while not self._over.wait(0.005):
            try:
                self._service.publish("load", {"n": self.sent}, timeout=PATIENCE)
            except Exception as error:
                self._errors.append(error)
                return
            self.sent += 1

    def flows(self, more: int = 20) -> None:
        """Return when so many more were acknowledged, and all that was so far is handled."""
        goal = self.sent + more
        assert until(lambda: self._errors or (self.sent >= goal and self.got.issuperset(range(goal))), PATIENCE), (
            self._service.health()
        )
        assert not self._errors, self._errors

    def stands_still(self, cause: str) -> None:
        """Return when the connection is lost, or cannot be had again, for this cause."""
        assert until(lambda: cause in self.trouble, PATIENCE), self.trouble

    @property
    def trouble(self) -> str:
        return self._service.health().backends["nats"].error or ""


def replace_config(server: NatsServer, config: str) -> None:
    """Restart a server with another configuration."""
    server.stop()
    server._config = config
    server.start()
