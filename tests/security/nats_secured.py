"""NATS servers that let in only whom they should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from certificates import Certificate

from incident_messaging import MessagingService
from incident_messaging.brokers import NatsServer

#: Seconds that a call or a wait may take on a machine that has much to do.
PATIENCE = 20.0

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


def replace_config(server: NatsServer, config: str) -> None:
    """Restart a server with another configuration."""
    server.stop()
    server._config = config
    server.start()
