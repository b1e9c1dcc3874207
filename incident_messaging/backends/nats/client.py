"""nats-py's client with its faults mended, and a short way in and out for bytes.

Each override is here for one fault, reproduced with nats-py 2.11 to 2.16; the canary tests in
``tests/backends/test_nats_client.py`` fail when upstream has mended the original, so that the
override can go. The rest of the package uses nats-py only through this class: it connects, speaks
TLS, authenticates, parses and reconnects; what is published, awaited and subscribed is ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from nats import errors
from nats.aio.client import Callback, ErrorCallback
from nats.aio.client import Client as NatsPyClient
from nats.aio.transport import Transport, WebSocketTransport
from nats.protocol.parser import AWAITING_CONTROL_LINE, PERMISSIONS_ERR, Parser

_log = logging.getLogger("incident_messaging.nats")

#: ``handler(subject, reply, body, headers)``: a message as it came (foreign bytes by surrogateescape); must not raise.
Handler = Callable[[str, str, bytes, bytes | None], None]

#: ``shortcut(data, at)``: takes the whole messages of the usual form that begin there; returns where they end.
Shortcut = Callable[[bytes, int], int]

#: Bytes of an unfinished message that are read again with the next piece; a larger one is nats-py's.
_SMALL = 128 * 1024
_PING = b"PING\r\n"
_MESSAGES = (b"MSG ", b"HMSG ")


class Client(NatsPyClient):
    """A connection to one server at a time.

    Attributes:
        handlers: Who gets the messages of a subscription, by its number.
        shortcut: Who takes messages as they come off the wire, and how those begin.
        on_down: Called when the connection is lost, before anything else happens.
    """

    def __init__(self, *, tls: bool, on_down: Callable[[], None]) -> None:
        super().__init__()
        self.handlers: dict[int, Handler] = {}
        self.shortcut: tuple[bytes, Shortcut] | None = None
        self.on_down = on_down
        self._tls_wanted = tls
        self._ending: asyncio.Task[None] | None = None
        self._ps = _SafeParser(self)

    # -- ours -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write commands: to an idle socket at once, else behind what is queued for the loop's next turn."""
        if self._transport is not None and not self._pending and _is_idle(self._transport):
            self._transport.write(data)  # the flusher is a task, and waking it takes as long as a whole publish
            return
        self._pending.append(data)
        self._pending_data_size += len(data)
        if self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    def barrier(self) -> asyncio.Future[bool]:
        """A future that is true once the server has taken all that was queued before, false if it is lost."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pongs.append(future)
        self.write(_PING)
        return future

    def abort(self) -> None:
        """Drop the connection, and what is queued for it, without waiting for the peer."""
        self._drop_queued()
        transport = self._transport
        for name in ("_io_writer", "_bare_io_writer"):
            writer = getattr(transport, name, None)
            if writer is not None:
                writer.transport.abort()

    def end(self) -> None:
        """Drop the connection for good, with the session of a WebSocket, which nats-py leaves open."""
        self.abort()
        if isinstance(self._transport, WebSocketTransport) and self._transport._client is not None:
            self._ending = asyncio.get_running_loop().create_task(self._transport._client.close())

    def is_stuck(self) -> bool:
        """Whether the client claims to work and one of its tasks is dead."""
        if self._status == self.CONNECTED:
            return any(task is not None and task.done() for task in (self._reading_task, self._flusher_task))
        if self._status in (self.RECONNECTING, self.CONNECTING):
            return self._reconnection_task is None or self._reconnection_task.done()
        return self._status in (self.CLOSED, self.DISCONNECTED)

    def take(self, sid: int, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        """Hand a message to whom it is for; without one it is dropped."""
        handler = self.handlers.get(sid)
        if handler is None:
            return
        try:
            to, answer = subject.decode(), reply.decode()
        except UnicodeDecodeError:  # a writer may choose any bytes; the way of all others is the shorter call
            to, answer = (name.decode("utf-8", "surrogateescape") for name in (subject, reply))
        try:
            handler(to, answer, body, headers)
        except Exception:
            _log.exception("a message could not be taken")

    async def reconnect(self) -> None:
        """Drop this connection and make a new one."""
        await self._process_op_err(errors.StaleConnectionError())

    def keep(
        self,
        others: list[str],
        *,
        attempts: int,
        error_cb: ErrorCallback,
        reconnected_cb: Callback,
        closed_cb: Callback,
        lame_duck_mode_cb: Callback,
    ) -> None:
        """From now on reconnect, also to other servers, and tell.

        The first connection is made without: nats-py would retry an address for minutes before it
        says anything.
        """
        self.options["allow_reconnect"] = attempts != 0
        self.options["max_reconnect_attempts"] = attempts
        self._error_cb = error_cb
        self._reconnected_cb = reconnected_cb
        self._closed_cb = closed_cb
        self._lame_duck_mode_cb = lame_duck_mode_cb
        if others:
            self._setup_server_pool(others)

    def let_go(self) -> None:
        """Tell nobody anything any more, and drop the connection."""
        self.handlers.clear()
        self.on_down = lambda: None
        self._error_cb = _tell_nobody
        self._reconnected_cb = self._closed_cb = self._lame_duck_mode_cb = None
        self.abort()

    @property
    def server_info(self) -> dict[str, Any]:
        """What the server said about itself."""
        return self._server_info

    # -- mended -----------------------------------------------------------------------------------------

    async def _process_pong(self) -> None:
        # A PONG that comes after its waiter gave up met a cancelled future: set_result raised inside
        # the reading task, which died while is_connected stayed true.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # PING was written past the queued PUB and SUB commands, so its PONG proved nothing about them.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self.write(_PING)

    def _connect_command(self) -> bytes:
        # With TLS asked for and a server without it, the credentials went out in the clear.
        if self._tls_wanted and not self._is_encrypted():
            raise errors.SecureConnWantedError
        return super()._connect_command()

    async def _process_err(self, err_msg: str) -> None:
        # Expired or revoked credentials, too many connections, a server that shuts down: the client
        # closed for good, where a reconnect may find another server, or this one in a better mood.
        if PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
            return
        error = errors.Error(f"nats: {err_msg.strip(chr(39))}")
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _attempt_reconnect(self) -> None:
        # A frozen peer never takes what is buffered, and close() waits for it: the reconnect never
        # began. What was queued would be sent ahead of the older records that are sent again.
        self.on_down()
        self.abort()
        await super()._attempt_reconnect()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # nats-py passes a message on through a queue and a task, with a dict for the headers: bytes
        # that are no UTF-8, repeated names and half of the speed are lost in it.
        self.take(sid, subject, reply, data, headers)

    def _is_encrypted(self) -> bool:
        if isinstance(self._transport, WebSocketTransport):
            return bool(self._transport._using_tls)
        writer = getattr(self._transport, "_io_writer", None)
        return writer is not None and writer.get_extra_info("ssl_object") is not None

    def _drop_queued(self) -> None:
        self._pending = []
        self._pending_data_size = 0
        # nats-py forgets these; whoever waits for one would wait to its time-out.
        for future in self._pongs:
            if not future.done():
                future.set_result(False)
        self._pongs = []


def _is_idle(transport: Transport) -> bool:
    """Whether what is written now goes straight to the socket; over a web socket nothing does."""
    writer = getattr(transport, "_io_writer", None)
    if writer is None or writer.transport.is_closing():
        return False
    return not writer.transport.get_write_buffer_size()


async def _tell_nobody(_error: Exception) -> None:
    pass


class _SafeParser(Parser):
    """A corrupt byte raised anything from the parser, and the reading task died of all but its own errors.

    Whole messages, nearly all there is to parse, are also taken out in half of the time.
    """

    nc: Client

    async def parse(self, data: bytes = b"") -> None:
        try:
            if self.state == AWAITING_CONTROL_LINE:
                data = bytes(self.buf) + data
                self.buf.clear()
                data = data[self._take_messages(data) :]
                if _is_message(data) and len(data) < _SMALL:
                    self.buf.extend(data)  # the rest of it is on its way
                    return
            await super().parse(data)
        except errors.ProtocolError:
            raise
        except Exception as exc:
            raise errors.ProtocolError from exc

    def _take_messages(self, data: bytes) -> int:
        """Hand over the messages that the data begins with; returns how many bytes they have."""
        at, take = 0, self.nc.take
        begin, shortcut = self.nc.shortcut or (b"", _no_shortcut)
        while data.startswith(_MESSAGES, at):
            if begin and data.startswith(begin, at) and (behind := shortcut(data, at)) > at:
                at = behind
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            words = data[at:end].split()
            body = end + 2
            stop = body + int(words[-1])
            if stop + 2 > len(data):
                break
            if words[0] == b"HMSG":
                block = body + int(words[-2])
                take(int(words[2]), words[1], words[3] if len(words) > 5 else b"", data[block:stop], data[body:block])
            else:
                take(int(words[2]), words[1], words[3] if len(words) > 4 else b"", data[body:stop], None)
            at = stop + 2
        return at


def _no_shortcut(_: bytes, at: int) -> int:
    return at


def _is_message(data: bytes) -> bool:
    return data.startswith(_MESSAGES)
