"""What the configuration means to nats-py, and what nats-py's troubles mean to users. Pure but for files."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterable
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs
import nats.errors

from incident_messaging.config import NatsConfig
from incident_messaging.errors import ConfigurationError, ConnectionFailed

#: Words of the server that mean: not with these credentials.
_UNAUTHORIZED = re.compile(r"authori[sz]ation|authentication|expired|revoked|nonce|jwt", re.IGNORECASE)

#: Errors of the system that have better words than the system's own.
_WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.ETIMEDOUT: "no answer",
}


@attrs.frozen
class Refusal:
    """Why an address was of no use.

    Attributes:
        code: The code of the `ConnectionFailed` that it becomes.
        words: The cause, without any secret.
        final: Whether the address has said no, rather than nothing.
    """

    code: Literal["unreachable", "unauthorized", "tls"]
    words: str
    final: bool = True
    cause: BaseException | None = None
    address: str = ""

    def __str__(self) -> str:
        return f"{self.words} ({self.address})" if self.address else self.words


def connection_failed(refusals: Iterable[Refusal]) -> ConnectionFailed:
    """The error for addresses that were all of no use; its code is that of the most telling one."""
    telling = sorted(refusals, key=lambda refusal: ("tls", "unauthorized", "unreachable").index(refusal.code))
    error = ConnectionFailed(
        f"NATS connection failed: {'; '.join(str(refusal) for refusal in telling)}",
        code=telling[0].code,
        backend="nats",
    )
    error.__cause__ = telling[0].cause
    return error


def refusal(exc: BaseException, address: str = "") -> Refusal:
    """What an error of an attempt to connect means.

    Raises:
        ConfigurationError: It is the configuration's fault.
    """
    if isinstance(exc, ImportError):
        raise ConfigurationError(f"NATS credentials need the extra nkeys: {exc}", backend="nats") from exc
    if isinstance(exc, ssl.SSLError):
        words = getattr(exc, "verify_message", "") or exc.reason or str(exc)
        return Refusal("tls", f"TLS failed: {words}", cause=exc, address=address)
    if isinstance(exc, nats.errors.SecureConnWantedError):
        return Refusal("tls", "TLS is asked for and the server offers none", cause=exc, address=address)
    if isinstance(exc, TimeoutError):
        return Refusal("unreachable", "no answer", final=False, cause=exc, address=address)
    if isinstance(exc, OSError):
        return Refusal("unreachable", _system_words(exc), cause=exc, address=address)
    words = str(exc).removeprefix("nats: ").strip("'\" ") or type(exc).__name__
    code: Literal["unreachable", "unauthorized"] = "unauthorized" if _UNAUTHORIZED.search(words) else "unreachable"
    return Refusal(code, words.lower(), cause=exc, address=address)


def _system_words(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return "host name not known"
    for number, words in _WORDS.items():
        # A name with several addresses: asyncio lists their errors in the text, without a number.
        if exc.errno == number or f"[Errno {number}]" in str(exc):
            return words
    return exc.strerror or str(exc)


def options(config: NatsConfig) -> dict[str, Any]:
    """What nats-py's ``connect`` is given, secrets apart.

    Raises:
        ConfigurationError: A file of certificates or credentials cannot be used.
    """
    chosen: dict[str, Any] = {
        "name": config.connection_name,
        "ping_interval": config.ping_interval_secs,
        "max_outstanding_pings": 2,
        "tls_handshake_first": config.tls_first,
    }
    if config.uses_tls:
        chosen["tls"] = _tls_context(config)
    for option, path in (("user_credentials", config.credentials), ("nkeys_seed", config.nkey_seed_file)):
        if path is not None:
            _check_readable(str(path))
            chosen[option] = str(path)
    return chosen


def secrets(config: NatsConfig) -> dict[str, Any]:
    """User, password and token as they are now: files are read anew."""
    return {"user": config.user, "password": config.resolve_password(), "token": config.resolve_token()}


def bare(url: str) -> str:
    """An address without the credentials that may be in it."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _tls_context(config: NatsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.tls_ca_file)
        if config.tls_cert_file is not None:
            context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigurationError(f"NATS TLS files cannot be used: {exc}", backend="nats") from exc
    return context


def _check_readable(path: str) -> None:
    # nats-py opens it in the middle of connecting, where a missing file looks like a missing server.
    try:
        with open(path, "rb"):
            pass
    except OSError as exc:
        raise ConfigurationError(f"NATS credentials cannot be read: {exc}", backend="nats") from exc
