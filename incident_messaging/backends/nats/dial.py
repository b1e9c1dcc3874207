"""One attempt to connect to one address, and the end of a connection; both bounded."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import nats.errors
from nats.aio.client import ErrorCallback
from nats.protocol.parser import PERMISSIONS_ERR

from incident_messaging.backends.nats.client import Client
from incident_messaging.backends.nats.options import Refusal, Unusable, bare, login, options, refusal, tls_context
from incident_messaging.config import NatsConfig
from incident_messaging.errors import ConfigurationError

#: Seconds an address gets to answer before the next one is asked.
ADDRESS_SECS = 2.0
#: Seconds between two tries at first; doubled up to ``reconnect_delay_ms``.
FIRST_DELAY = 0.02

#: The oldest server that is supported (consumers made by name and filter, metadata).
_OLDEST = (2, 10)
#: Seconds that are always allowed, whatever is left of a deadline: a refusal takes less.
_LEAST_SECS = 0.05
#: Seconds for nats-py to tidy up behind a connection that is dropped already.
_TIDY_SECS = 0.1
#: Above what the windows of the SDK let in: nats-py never waits in the middle of a write.
_PENDING_BYTES = 1 << 40


class FreshClient(Client):
    """A client that tells the server what the configuration's files hold now, also when it connects again.

    nats-py reads most of them once, and waits for ever for the end of a ``.creds`` file that is cut short.
    """

    def __init__(self, config: NatsConfig, on_down: Callable[[], None]) -> None:
        super().__init__(tls=config.uses_tls, on_down=on_down)
        self._config = config

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """What the next handshake is made with."""
        if not self._config.uses_tls:
            return super().ssl_context  # the server wants TLS: the system's authorities may know it
        with _as_an_attempt():
            return tls_context(self._config)

    @property
    def is_silent(self) -> bool:
        """Whether the server took the connection and has not said a word."""
        return bool(self._transport) and not self._server_info

    def hung_up_on(self, trouble: Exception) -> bool:
        """Whether a server that asks for certificates has ended the connection without a word."""
        gone = isinstance(trouble, ConnectionError | nats.errors.UnexpectedEOF)
        return gone and self._config.uses_tls and bool(self._server_info.get("tls_verify"))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self._config.uses_tls and info.get("tls_available"):
            info["tls_required"] = True  # by us, where the server leaves it open; nats-py asks for this alone
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        with _as_an_attempt():
            who = login(self._config)
        if who is not None:
            self._auth_configured = True
            self.options.update(user=who.user, password=who.password, token=who.token)
            self._signature_cb = who.sign if who.key else None
            jwt = who.jwt
            self._user_jwt_cb = None if jwt is None else jwt.encode
            self._public_nkey = who.key.public_key.decode() if who.key else None
        return super()._connect_command()


@contextmanager
def _as_an_attempt() -> Iterator[None]:
    try:
        yield
    except ConfigurationError as exc:
        raise Unusable(str(exc)) from None


async def dial(
    config: NatsConfig, url: str, patience: float, on_down: Callable[[], None], inbox: str
) -> Client | Refusal:
    """A connected client that may listen to its inbox, or why the address is of no use.

    Raises:
        ConfigurationError: The server is too old, or an option is not usable.
    """
    troubles: list[Exception] = []

    async def note(exc: Exception) -> None:
        if not isinstance(exc, nats.errors.NoServersError):
            troubles.append(exc)

    login(config)
    if config.uses_tls:
        tls_context(config)
    patience = max(_LEAST_SECS, patience)
    client = FreshClient(config, on_down)
    attempt = _attempt(client, config, url, patience, note)
    try:
        # Not wait_for: nats-py swallows cancellations.
        await asyncio.wait({attempt}, timeout=patience)
        if not attempt.done():
            raise TimeoutError
        await attempt
        _check(client)
        if config.delivery == "jetstream" and not await _hears(client, inbox, troubles, patience):
            client.end()
            return Refusal("unauthorized", f"no right to subscribe to {inbox}.>, where answers come", address=bare(url))
        return client
    except (ConfigurationError, asyncio.CancelledError):
        client.end()
        raise
    except Exception as exc:
        client.end()
        return _explained(config, client, troubles[-1] if troubles else exc, bare(url))
    finally:
        attempt.cancel()


def _attempt(client: Client, config: NatsConfig, url: str, patience: float, note: ErrorCallback) -> asyncio.Task[None]:
    attempt = asyncio.get_running_loop().create_task(
        client.connect(
            [url],
            error_cb=note,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=FIRST_DELAY,  # type: ignore[arg-type]  # any number will do
            connect_timeout=patience,  # type: ignore[arg-type]
            pending_size=_PENDING_BYTES,
            **options(config),
        )
    )
    attempt.add_done_callback(_look_at)
    return attempt


def _explained(config: NatsConfig, client: FreshClient, cause: Exception, address: str) -> Refusal:
    """A refusal, with what to look at where the two sides do not agree on TLS."""
    refused = refusal(cause, address)
    if isinstance(cause, ssl.SSLError):
        hint = "" if config.uses_tls else "; the server wants TLS, so see nats.enable_tls and nats.tls_ca_file"
    elif client.hung_up_on(cause):
        # What it has to say of our certificate comes behind the handshake, and may be lost with the connection.
        hint = "; the server asks for a certificate that it accepts, so see nats.tls_cert_file"
        refused = attrs.evolve(refused, code="tls")
    elif client.is_silent and not config.tls_first:
        hint = "; a server with handshake_first says nothing before TLS, so see nats.tls_first"
    else:
        hint = ""
    return attrs.evolve(refused, words=refused.words + hint)


async def hang_up(client: Client, patience: float) -> None:
    """Wait for the server to have read all while the patience lasts, then drop the connection.

    nats-py's own close waits without limit for a peer that reads nothing.
    """
    try:
        if patience and client.is_connected:
            await asyncio.wait({client.barrier()}, timeout=patience)
    finally:
        client.let_go()
    task = asyncio.get_running_loop().create_task(client.close())
    task.add_done_callback(_look_at)
    try:
        await asyncio.wait({task}, timeout=_TIDY_SECS)
    finally:
        task.cancel()
        client.end()  # a reconnect that was under way may have made a new connection since


def _check(client: Client) -> None:
    version = str(client.server_info.get("version", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ConfigurationError(f"NATS server {version} is too old: {oldest} or later is needed", backend="nats")
    if not client.is_connected:
        raise nats.errors.UnexpectedEOF


async def _hears(client: Client, inbox: str, troubles: list[Exception], patience: float) -> bool:
    """Whether the server lets us listen to our inbox: without it every request would wait in vain."""
    client.write(b"SUB %s.0.* 0\r\n" % inbox.encode())
    said = client.barrier()
    await asyncio.wait({said}, timeout=patience)
    if not said.done():
        raise TimeoutError
    if not said.result():
        raise nats.errors.UnexpectedEOF
    client.write(b"UNSUB 0\r\n")
    return not any(PERMISSIONS_ERR in str(each) for each in troubles)


def _look_at(task: asyncio.Task[None]) -> None:
    """An error that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()
