"""What the configuration means to nats-py, and what nats-py's troubles mean to users. Pure but for files."""

from __future__ import annotations

import base64
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

#: JWT and seed in a ``.creds`` file that is whole (one that is just written may not be).
_CREDENTIALS = re.compile(
    r"-BEGIN NATS USER JWT-+\s+([\w.-]+)\s+-+END NATS USER JWT-"
    r".*-BEGIN USER NKEY SEED-+\s+(\w+)\s+-+END USER NKEY SEED-",
    re.DOTALL | re.ASCII,
)

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
        code: The code of the `ConnectionFailed` that it becomes, or ``unusable`` for a file that was good before.
        words: The cause, without any secret.
        final: Whether the address has said no, rather than nothing.
    """

    code: Literal["unreachable", "unauthorized", "tls", "unusable"]
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
        f"NATS connection failed: {in_words(telling)}",
        code=telling[0].code,
        backend="nats",
    )
    error.__cause__ = telling[0].cause
    return error


def in_words(refusals: Iterable[Refusal]) -> str:
    """All of them in one text."""
    return "; ".join(str(refusal) for refusal in refusals)


def met_again(exc: BaseException, address: str) -> Refusal:
    """What an error means once there was a connection: a file that was good is maybe just being changed."""
    if isinstance(exc, ConfigurationError | Unusable):
        return Refusal("unusable", str(exc), address=address)
    return refusal(exc, address)


def refusal(exc: BaseException, address: str = "") -> Refusal:
    """What an error of an attempt to connect means.

    Raises:
        ConfigurationError: It is the configuration's fault.
    """
    if isinstance(exc, Unusable):
        raise ConfigurationError(str(exc), backend="nats")
    _forget_frames(exc)
    # aiohttp, where a WebSocket could not be made, wraps what happened.
    exc = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", None) or exc
    if isinstance(exc, ssl.SSLError):
        return Refusal("tls", _tls_words(exc), cause=exc, address=address)
    if isinstance(exc, nats.errors.SecureConnWantedError):
        return Refusal("tls", "TLS is asked for and the server offers none", cause=exc, address=address)
    if isinstance(exc, TimeoutError):
        return Refusal("unreachable", "no answer", final=False, cause=exc, address=address)
    if isinstance(exc, OSError):
        return Refusal("unreachable", _system_words(exc), cause=exc, address=address)
    words = str(exc).removeprefix("nats: ").strip("'\" ") or type(exc).__name__
    code: Literal["unreachable", "unauthorized"] = "unauthorized" if _UNAUTHORIZED.search(words) else "unreachable"
    return Refusal(code, words.lower(), cause=exc, address=address)


def _forget_frames(exc: BaseException | None) -> None:
    """Take away where an error passed: nats-py's frames hold the secrets, and some tools show what frames hold."""
    while exc is not None:
        exc.__traceback__ = None
        exc = exc.__cause__ or exc.__context__


def _tls_words(exc: ssl.SSLError) -> str:
    reason = exc.reason or ""
    if verdict := getattr(exc, "verify_message", ""):
        return f"TLS failed: {verdict}"
    if "ALERT" in reason:  # by the other side, mostly about a certificate of ours that it asks for
        said = reason.partition("ALERT_")[2].lower().replace("_", " ")
        return f"TLS failed: the server said {said}, so see nats.tls_cert_file"
    if reason == "WRONG_VERSION_NUMBER":
        return "TLS failed: the server answered in plain text (nats.tls_first is for one with handshake_first)"
    return f"TLS failed: {reason or exc}"


def _system_words(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return "host name not known"
    for number, words in _WORDS.items():
        # A name with several addresses: asyncio lists their errors in the text, without a number.
        if exc.errno == number or f"[Errno {number}]" in str(exc):
            return words
    return exc.strerror or str(exc)


def options(config: NatsConfig) -> dict[str, Any]:
    """What nats-py's ``connect`` is given, all that is in files or secret apart."""
    return {
        "name": config.connection_name,
        "ping_interval": config.ping_interval_secs,
        "max_outstanding_pings": 2,
        "tls_handshake_first": config.tls_first,
    }


class Unusable(nats.errors.Error):
    """A `ConfigurationError` met in the middle of connecting, as an error that nats-py takes for a failed attempt."""


@attrs.frozen
class Login:
    """What the server is told about who connects.

    Attributes:
        user: The user's name.
        password: The user's password.
        token: A token.
        jwt: The user's JWT.
        key: The user's key pair, which signs what the server asks for.
    """

    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    jwt: str | None = attrs.field(default=None, repr=False)
    key: Any = attrs.field(default=None, repr=False)

    def sign(self, nonce: str) -> bytes:
        """The signature of what the server asks for."""
        return base64.b64encode(self.key.sign(nonce.encode()))


def login(config: NatsConfig) -> Login | None:
    """Who connects, with files as they are now; ``None`` without a name.

    Raises:
        ConfigurationError: A file cannot be read, or does not hold what it should; its content is not shown.
    """
    try:
        return _login(config)
    except ConfigurationError as exc:
        raise exc.with_traceback(None) from exc.__cause__  # the frames below hold the secrets


def _login(config: NatsConfig) -> Login | None:
    if (text := config.resolve_credentials()) is not None:
        where = "nats.credentials_text" if config.credentials is None else f"nats.credentials: {config.credentials}"
        found = _CREDENTIALS.search(text)
        if found is None:
            raise ConfigurationError(f"{where} is not a .creds text, with a JWT and a seed", backend="nats")
        return Login(jwt=found[1], key=_key(found[2], where))
    if (seed := config.resolve_nkey_seed()) is not None:
        file = config.nkey_seed_file
        return Login(key=_key(seed.strip(), "nats.nkey_seed" if file is None else f"nats.nkey_seed_file: {file}"))
    if config.user is not None:
        return Login(config.user, config.resolve_password())
    token = config.resolve_token()
    return None if token is None else Login(token=token)


def _key(seed: str, where: str) -> Any:
    try:
        import nkeys

        key = nkeys.from_seed(bytearray(seed.encode()))
        key.sign(b"")
        return key
    except ImportError as exc:
        raise ConfigurationError(f"NATS credentials need the extra nkeys: {exc}", backend="nats") from exc
    except Exception:  # of half a dozen kinds, some with the seed in them
        raise ConfigurationError(f"{where} holds no NKey seed", backend="nats") from None


def tls_context(config: NatsConfig) -> ssl.SSLContext:
    """How certificates are checked and which one is shown, with files as they are now.

    Raises:
        ConfigurationError: A file cannot be used.
    """
    for name in ("tls_ca_file", "tls_cert_file", "tls_key_file"):
        _check_readable(f"nats.{name}", getattr(config, name))
    try:
        context = ssl.create_default_context(cafile=config.tls_ca_file)
    except OSError as exc:  # ssl.SSLError is one
        words = f"nats.tls_ca_file: {config.tls_ca_file} holds no certificate in PEM"
        raise ConfigurationError(f"NATS TLS files cannot be used: {words} ({exc})", backend="nats") from exc
    if config.tls_cert_file is not None:
        files = f"nats.tls_cert_file: {config.tls_cert_file}, nats.tls_key_file: {config.tls_key_file}"
        try:
            context.load_cert_chain(config.tls_cert_file, config.tls_key_file, password=_no_password)
        except OSError as exc:
            words = f"{files}: no certificate and its key in PEM ({exc})"
            raise ConfigurationError(f"NATS TLS files cannot be used: {words}", backend="nats") from exc
    return context


def _no_password() -> str:
    # Without this OpenSSL asks whoever sits at the terminal, and waits.
    raise ConfigurationError("NATS TLS files cannot be used: nats.tls_key_file is encrypted", backend="nats")


def _check_readable(name: str, path: str | None) -> None:
    # ssl's own errors do not say which file it is.
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as exc:
        words = f"{name}: cannot read {path}: {exc.strerror}"
        raise ConfigurationError(f"NATS TLS files cannot be used: {words}", backend="nats") from exc


def bare(url: str) -> str:
    """An address without the credentials that may be in it."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
