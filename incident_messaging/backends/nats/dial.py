"""One attempt to connect to one address, and the end of a connection; both bounded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import nats.errors

from incident_messaging.backends.nats.client import Client
from incident_messaging.backends.nats.options import Refusal, bare, options, refusal, secrets
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


async def dial(config: NatsConfig, url: str, patience: float, on_down: Callable[[], None]) -> Client | Refusal:
    """A connected client, or why the address is of no use.

    Raises:
        ConfigurationError: The server is too old, or an option is not usable.
    """
    troubles: list[Exception] = []

    async def note(exc: Exception) -> None:
        if not isinstance(exc, nats.errors.NoServersError):
            troubles.append(exc)

    patience = max(_LEAST_SECS, patience)
    client = Client(tls=config.uses_tls, on_down=on_down)
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
            **secrets(config),
        )
    )
    attempt.add_done_callback(_look_at)
    try:
        # Not wait_for: nats-py swallows cancellations.
        await asyncio.wait({attempt}, timeout=patience)
        if not attempt.done():
            raise TimeoutError
        await attempt
        _check(client)
        return client
    except ConfigurationError:
        client.abort()
        raise
    except Exception as exc:
        client.abort()
        return refusal(troubles[-1] if troubles else exc, bare(url))
    finally:
        attempt.cancel()


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
        client.abort()  # a reconnect that was under way may have made a new connection since


def _check(client: Client) -> None:
    version = str(client.server_info.get("version", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ConfigurationError(f"NATS server {version} is too old: {oldest} or later is needed", backend="nats")
    if not client.is_connected:
        raise nats.errors.UnexpectedEOF


def _look_at(task: asyncio.Task[None]) -> None:
    """An error that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()
