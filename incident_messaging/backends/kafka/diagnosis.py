"""What is wrong with TLS at an address: librdkafka says that a certificate failed, not why, and of a server that
hangs up nothing at all. A handshake of our own finds out; it sends nothing but that.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from incident_messaging.config import KafkaConfig

#: Seconds for each step; the thread that looks has other work to do.
_PATIENCE = 1.0


def tls_trouble(config: KafkaConfig, server: str) -> str:
    """The trouble in words; empty if there is none, or if nobody answers."""
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=_PATIENCE) as plain,
            _context(config).wrap_socket(plain, server_hostname=host),
        ):
            return "" if config.enable_ssl else "the server speaks TLS, and kafka.enable_ssl is not set"
    except ssl.SSLCertVerificationError as exc:
        return f"the broker's certificate is refused: {exc.verify_message}"
    except (OSError, ValueError):
        return ""


def _context(config: KafkaConfig) -> ssl.SSLContext:
    if config.enable_ssl:
        file = config.ssl_ca_file
        folder = file is not None and Path(file).is_dir()
        return ssl.create_default_context(cafile=None if folder else file, capath=file if folder else None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
