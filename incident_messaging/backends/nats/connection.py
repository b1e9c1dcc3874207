"""The one connection of a NATS backend: made, kept, and its troubles put into words. Lives on the loop.

Everything that uses it is a `Rider`: told when it is up, down, or given up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, Protocol

import attrs
import nats.errors

from incident_messaging.backends.nats.client import Client, Handler, Shortcut
from incident_messaging.backends.nats.dial import ADDRESS_SECS, FIRST_DELAY, dial, hang_up
from incident_messaging.backends.nats.options import Refusal, bare, connection_failed, in_words, met_again, refusal
from incident_messaging.backends.nats.wire import publish_command
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, ConfigurationError, ConnectionFailed, MessagingError

_log = logging.getLogger("incident_messaging.nats")

#: How often the client is looked after.
_WATCH_SECS = 0.5

#: Before the end of a call's time: what an address that says nothing is silent about must be known by then.
_LAST_WORD_SECS = 0.03

_DENIED = re.compile(r"permissions violation for (publish|subscription)(?: with reply)?(?: of| to) \"([^\"]+)\"")


class Rider(Protocol):
    """Who uses the connection. All are called on the loop and must not raise."""

    def up(self) -> None:
        """Connected, for the first time or again: everything may be written."""

    def down(self) -> None:
        """The connection is lost; what was written may be lost with it."""

    def denied(self, action: str, subject: str) -> None:
        """The server refused ``publish`` or ``subscription`` on a subject (in lower case)."""

    def gave_up(self, error: MessagingError) -> None:
        """There is no connection and nobody is trying any more."""


@attrs.define
class _Subscription:
    subject: str
    queue: str
    handler: Handler


@attrs.define
class _Request:
    subject: str
    answer: asyncio.Future[tuple[bytes, bytes | None] | None]


class Connection:
    """Guarantees: after the first connection it is rebuilt for ever (or as often as configured), also where
    nats-py has closed for good; `state` and `error` may be read from any thread.
    """

    def __init__(self, config: MessagingConfig) -> None:
        self._config = config
        self.state: Literal["new", "connected", "disconnected", "closed"] = "new"
        self.error: str | None = None
        self.max_payload = config.max_message_size
        self.inbox = f"_INBOX.{os.urandom(12).hex()}"
        self._client: Client | None = None
        self._at = ""
        self._told = ""
        self._cause = ""
        self._riders: list[Rider] = []
        self._subscriptions: dict[int, _Subscription] = {}
        self._shortcut: tuple[bytes, Shortcut] | None = None
        self._last_sid = 0
        self._task: asyncio.Task[None] | None = None
        self._until = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._dropped: set[asyncio.Task[None]] = set()
        self._waiters: set[asyncio.Future[None]] = set()
        self._requests: dict[int, _Request] = {}
        self._last_request = 0
        self._last_inbox = 0
        self._answers = self.new_inbox()
        self.listen(f"{self._answers}*", self._answer)

    # -- use ------------------------------------------------------------------------------------------------

    @property
    def online(self) -> bool:
        """Whether commands may be written."""
        return self.state == "connected"

    @property
    def ever(self) -> bool:
        """Whether there ever was a connection."""
        return self.state in ("connected", "disconnected")

    @property
    def server_info(self) -> dict[str, Any]:
        """What the server said about itself."""
        return self._client.server_info if self._client else {}

    def attach(self, rider: Rider) -> None:
        """Tell a rider from now on; it is told ``up`` only by the next connection."""
        self._riders.append(rider)

    def detach(self, rider: Rider) -> None:
        """Tell a rider nothing more."""
        with suppress(ValueError):
            self._riders.remove(rider)

    def write(self, data: bytes) -> None:
        """Write commands; lost while offline, and riders are told to write anew."""
        if self.online and self._client is not None and data:
            self._client.write(data)

    async def barrier(self) -> bool:
        """Whether the server has taken all that was written before; false when the connection went."""
        if not self.online or self._client is None:
            return False
        return await self._client.barrier()

    def confirm(self, then: Callable[[bool], None]) -> None:
        """As `barrier`, for callers that do not wait."""
        if self._client is None or not self.online:
            then(False)
            return
        self._client.barrier().add_done_callback(lambda done: then(not done.cancelled() and done.result()))

    def listen(self, subject: str, handler: Handler, queue: str = "") -> int:
        """Subscribe, now and after every reconnect; returns a number for `deafen`."""
        self._last_sid += 1
        self._subscriptions[self._last_sid] = entry = _Subscription(subject, queue, handler)
        if self._client is not None:
            self._client.handlers[self._last_sid] = handler
        self.write(_subscribe_command(self._last_sid, entry))
        return self._last_sid

    def shorten(self, begin: bytes, shortcut: Shortcut) -> None:
        """Let messages that begin so be taken as they come off the wire, many in one read."""
        self._shortcut = begin, shortcut
        if self._client is not None:
            self._client.shortcut = self._shortcut

    def deafen(self, sid: int) -> None:
        """Unsubscribe; what is on its way is still handed over, until the next `barrier`."""
        if self._subscriptions.pop(sid, None) is not None:
            self.write(b"UNSUB %d\r\n" % sid)

    def forget(self, sid: int) -> None:
        """Hand nothing more to the handler of a subscription."""
        self.deafen(sid)
        if self._client is not None:
            self._client.handlers.pop(sid, None)

    def new_inbox(self) -> str:
        """The first part of subjects that only this connection has; any last level may be put behind it."""
        self._last_inbox += 1
        return f"{self.inbox}.{self._last_inbox}."

    async def request(self, subject: str, body: bytes) -> tuple[bytes, bytes | None] | None:
        """Body and headers of the answer; ``None`` when the connection went or nobody answered in time.

        Raises:
            PermissionError: The server refused the request.
        """
        self._last_request += 1
        number = self._last_request
        request = self._requests[number] = _Request(subject, asyncio.get_running_loop().create_future())
        try:
            self.write(publish_command(subject, self._answers + str(number), b"", body))
            return await asyncio.wait_for(request.answer, self._config.nats.request_timeout_ms / 1000)
        except TimeoutError:
            return None
        finally:
            self._requests.pop(number, None)

    def _answer(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        request = self._requests.get(int(subject[len(self._answers) :]))
        if request is not None and not request.answer.done():
            request.answer.set_result((body, headers))

    async def until_up(self, deadline: Deadline | None = None) -> None:
        """Return when connected; starts connecting where nobody does.

        Raises:
            ConnectionFailed: Every address has said no, or none had answered by the deadline.
            ConfigurationError: The server is too old, or an option is not usable.
        """
        if self.online:
            return
        self.want(deadline)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait_for(waiter, deadline.left() if deadline else None)
        except TimeoutError:
            raise self.failed("no answer in time") from None
        finally:
            self._waiters.discard(waiter)

    def failed(self, words: str) -> ConnectionFailed:
        """The error for who waited in vain, with the last trouble where it is known."""
        return ConnectionFailed(
            f"NATS connection failed: {self.error or f'{words} ({self._addresses()})'}",
            code="unreachable",
            backend="nats",
        )

    # -- life -----------------------------------------------------------------------------------------------

    def want(self, deadline: Deadline | None = None) -> None:
        """Start connecting, unless it is done or somebody does."""
        at = (deadline or Deadline.after(self._config.connect_timeout_ms / 1000)).at
        self._until = max(self._until, at or 0.0)
        if self.state == "closed" or self._client is not None or self._task is not None:
            return
        self._task = asyncio.get_running_loop().create_task(self._connect())

    async def close(self, deadline: Deadline) -> None:
        """Drop the connection for good, politely as far as the deadline allows."""
        self.state = "closed"
        for handle in (self._watch, self._task):
            if handle is not None:
                handle.cancel()
        self._fail_all(ConnectionFailed("NATS connection closed", backend="nats"))
        client, self._client = self._client, None
        if client is not None:
            await hang_up(client, deadline.wait(0.2))

    async def _connect(self) -> None:
        try:
            if self.ever:
                await self._connect_again()
            else:
                await self._connect_first()
        except MessagingError as exc:
            self._give_up(exc)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            _log.exception("NATS connection failed")
            error = ConnectionFailed(f"NATS connection failed: {exc!r}", backend="nats")
            error.__cause__ = exc
            self._give_up(error)
        finally:
            self._task = None

    async def _connect_first(self) -> None:
        while True:
            refusals = await self._ask_all()
            if not refusals:
                return
            if Deadline(self._until).over or all(no.final for no in refusals):
                raise connection_failed(refusals)
            await asyncio.sleep(FIRST_DELAY)

    async def _connect_again(self) -> None:
        delay, limit = FIRST_DELAY, self._config.nats.max_reconnect_attempts
        attempts = 0
        while await self._ask_all():
            attempts += 1
            if 0 <= limit < attempts:
                raise self._used_up()
            await asyncio.sleep(delay)
            delay = self._next_delay(delay)

    async def _ask_all(self) -> list[Refusal]:
        """Ask every address once; none has refused once connected.

        Raises:
            ConfigurationError: An option is not usable, and never was.
        """
        urls = list(self._config.nats.servers)
        random.shuffle(urls)
        refusals = []
        for url in urls:
            # Who waits is to hear what the last one said.
            patience = ADDRESS_SECS if self.ever else Deadline(self._until).wait(ADDRESS_SECS) - _LAST_WORD_SECS
            try:
                asked = await dial(self._config.nats, url, patience, self._down, self.inbox)
            except ConfigurationError as exc:
                if not self.ever:
                    raise
                asked = met_again(exc, bare(url))
            if isinstance(asked, Client):
                self._adopt(asked, [other for other in urls if other != url])
                return []
            refusals.append(asked)
        if self.ever:
            self._tell_once(refusals)
        else:
            self.error = in_words(refusals)
        return refusals

    def _adopt(self, client: Client, others: list[str]) -> None:
        if self.state == "closed":
            client.abort()
            return
        client.keep(
            others,
            attempts=self._config.nats.max_reconnect_attempts,
            error_cb=self._trouble,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed_for_good,
            lame_duck_mode_cb=self._lame_duck,
        )
        client.options["connect_timeout"] = ADDRESS_SECS
        client.handlers.update({sid: entry.handler for sid, entry in self._subscriptions.items()})
        client.shortcut = self._shortcut
        self._client = client
        self._up()
        if self._watch is None:
            self._look_after()

    def _next_delay(self, delay: float) -> float:
        return min(delay * 2, self._config.nats.reconnect_delay_ms / 1000) * random.uniform(0.75, 1.0)

    def _up(self) -> None:
        client = self._client
        if client is None or self.state == "closed":
            return
        if self.state == "disconnected":
            _log.warning("NATS connection is back (%s)", self._where())
        else:
            _log.info("NATS connection made (%s)", self._where())
        self.state = "connected"
        self._at, self._told, self._cause = self._where(), "", ""
        self.max_payload = client.max_payload
        client.options["reconnect_time_wait"] = FIRST_DELAY
        self.write(b"".join(_subscribe_command(sid, entry) for sid, entry in self._subscriptions.items()))
        for rider in list(self._riders):
            rider.up()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _down(self) -> None:
        if self.state != "connected":
            return
        self.state = "disconnected"
        self.error = f"connection lost ({self._at})" + (f": {self._cause}" if self._cause else "")
        _log.warning("NATS %s, connecting again", self.error)
        for request in self._requests.values():
            if not request.answer.done():
                request.answer.set_result(None)
        for rider in list(self._riders):
            rider.down()

    async def _reconnected(self) -> None:
        self._up()

    async def _trouble(self, exc: Exception) -> None:
        denied = _DENIED.search(str(exc))
        if denied is not None:
            self._deny(str(exc).removeprefix("nats: "), denied[1], denied[2])
        elif self.state == "connected" and type(exc) is nats.errors.Error:
            self._cause = refusal(exc).words  # the server's last words, before it hangs up
        elif self.state == "disconnected" and self._client is not None:
            # An attempt that was refused leaves its socket open.
            self._client.abort()
            self._tell_once([met_again(exc, self._addresses())])
            delay = self._client.options["reconnect_time_wait"]
            self._client.options["reconnect_time_wait"] = self._next_delay(delay)

    def _deny(self, words: str, action: str, subject: str) -> None:
        self.error = words
        _log.error("NATS: %s", words)
        # Without its inbox no answer to any request arrives.
        deaf = action == "subscription" and subject.startswith(self.inbox.lower())
        for request in self._requests.values():
            if (deaf or request.subject.lower() == subject) and not request.answer.done():
                request.answer.set_exception(PermissionError(words))
        for rider in list(self._riders):
            rider.denied(action, subject)

    def _tell_once(self, refusals: list[Refusal]) -> None:
        """Why the connection cannot be made again; what does not pass by itself is logged, once per change."""
        self.error = words = in_words(refusals)
        if words != self._told and any(no.code != "unreachable" for no in refusals):
            self._told = words
            _log.error("NATS cannot connect again: %s", words)

    async def _lame_duck(self) -> None:
        # The server is about to leave and closes its clients one by one: go before it does.
        if self._client is not None and len(self._client.servers) > 1:
            await asyncio.sleep(random.uniform(0, 1))
            await self._client.reconnect()

    async def _closed_for_good(self) -> None:
        self._start_over()

    def _start_over(self) -> None:
        """The client is of no use any more: make a new one, where attempts are not counted."""
        self._down()
        client, self._client = self._client, None
        if self.state == "closed" or client is None:
            return
        task = asyncio.get_running_loop().create_task(hang_up(client, 0.0))
        self._dropped.add(task)
        task.add_done_callback(self._dropped.discard)
        if self._config.nats.max_reconnect_attempts >= 0:
            self._give_up(self._used_up())
        else:
            self.want()

    def _used_up(self) -> BackendUnavailable:
        attempts = self._config.nats.max_reconnect_attempts
        text = f"NATS connection lost ({self._addresses()}), and max_reconnect_attempts={attempts} are used up"
        return BackendUnavailable(text, code="down", backend="nats")

    def _give_up(self, error: MessagingError) -> None:
        if self.state == "closed":
            return
        words = str(error)
        # Each record sent to a dead address asks it anew; that is no news.
        _log.log(logging.DEBUG if words == self._told else logging.ERROR, "%s", words)
        self._told = words
        self.error = words.removeprefix("NATS connection failed: ")
        self._fail_all(error)

    def _fail_all(self, error: MessagingError) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
        for request in self._requests.values():
            if not request.answer.done():
                request.answer.set_result(None)
        for rider in list(self._riders):
            rider.gave_up(error)

    def _look_after(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(_WATCH_SECS, self._look_after)
        if self._client is not None and self._client.is_stuck():
            _log.warning("NATS client stopped working")
            self._start_over()

    def _where(self) -> str:
        url = self._client.connected_url if self._client else None
        return bare(url.geturl()) if url is not None else self._addresses()

    def _addresses(self) -> str:
        return ", ".join(bare(url) for url in self._config.nats.servers)


def _subscribe_command(sid: int, entry: _Subscription) -> bytes:
    return b"SUB %s %s %d\r\n" % (entry.subject.encode(), entry.queue.encode(), sid)
