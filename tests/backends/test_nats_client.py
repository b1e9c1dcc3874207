"""The faults of nats-py that ours mends. A canary fails when upstream has mended the original: then ours can go."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client as NatsPyClient
from nats.protocol.parser import Parser
from nats_kit import PATIENCE, QUIET

from incident_messaging.backends.nats.client import Client

Make = Callable[[], NatsPyClient]

#: The original, and whether it has the fault; ours has none.
BOTH = pytest.mark.parametrize(
    ("make", "faulty"), [(NatsPyClient, True), (lambda: Client(tls=False, on_down=lambda: None), False)]
)


async def quiet(_error: Exception) -> None:
    pass


async def true_within(condition: Callable[[], object], seconds: float) -> bool:
    end = asyncio.get_running_loop().time() + seconds
    while not condition() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.01)
    return bool(condition())


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def abandon(client: NatsPyClient) -> None:
    """Close without waiting for a peer that may be frozen."""
    for name in ("_io_writer", "_bare_io_writer"):
        writer = getattr(client._transport, name, None)
        if writer is not None:
            writer.transport.abort()
    with suppress(Exception):
        await asyncio.wait_for(client.close(), 1.0)


@BOTH
def test_a_late_pong_kills_the_reader(nats_server_factory: Callable[..., Any], make: Make, faulty: bool) -> None:
    server = nats_server_factory()

    async def work() -> None:
        client = make()
        await client.connect(server.url, error_cb=quiet, allow_reconnect=False)
        server.freeze()
        with pytest.raises(nats.errors.Error):
            await client.flush(timeout=0.1)  # type: ignore[arg-type]
        server.thaw()
        assert await true_within(lambda: not client._pongs, PATIENCE)
        await asyncio.sleep(0)
        task = client._reading_task
        assert task is not None
        assert await true_within(task.done, PATIENCE if faulty else QUIET) == faulty
        await abandon(client)

    run(work())


@BOTH
def test_ping_overtakes_what_is_queued(nats_server: Any, make: Make, faulty: bool) -> None:
    async def work() -> None:
        client = make()
        await client.connect(nats_server.url, error_cb=quiet)
        written: list[bytes] = []
        transport = client._transport
        assert transport is not None
        write, writelines = transport.write, transport.writelines
        transport.write = lambda data: (written.append(data), write(data))  # type: ignore[method-assign,func-returns-value]
        transport.writelines = lambda data: (written.extend(data), writelines(data))  # type: ignore[method-assign,func-returns-value]
        await client._send_command(b"PUB x 0\r\n\r\n")
        await client._send_ping()
        assert await true_within(lambda: len(written) > 1, PATIENCE)
        assert (written[0] == b"PING\r\n") == faulty
        await abandon(client)

    run(work())


@contextmanager
def plaintext_server() -> Iterator[tuple[int, bytearray]]:
    """A server without TLS that keeps what it is sent."""
    heard = bytearray()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer:
                        peer.settimeout(5.0)
                        peer.sendall(b'INFO {"server_id":"x","version":"2.10.0","headers":true,"max_payload":1024}\r\n')
                        while data := peer.recv(4096):
                            heard.extend(data)
                            if b"PING" in data:
                                peer.sendall(b"PONG\r\n")

        thread = threading.Thread(target=serve, name="plaintext-server", daemon=True)
        thread.start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5.0)


@pytest.mark.parametrize(
    ("make", "faulty"), [(NatsPyClient, True), (lambda: Client(tls=True, on_down=lambda: None), False)]
)
def test_credentials_go_out_in_the_clear_although_tls_is_asked_for(make: Make, faulty: bool) -> None:
    with plaintext_server() as (port, heard):

        async def work() -> None:
            client = make()
            with suppress(nats.errors.Error):
                await client.connect(
                    f"tls://127.0.0.1:{port}",
                    tls=ssl.create_default_context(),
                    user="u",
                    password="the-secret",
                    error_cb=quiet,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                )
            await abandon(client)

        run(work())
        assert (b"the-secret" in heard) == faulty


@BOTH
@pytest.mark.parametrize("words", ["'user authentication expired'", "'authorization violation'", "'server shutdown'"])
def test_an_error_of_the_server_closes_for_good(nats_server: Any, make: Make, faulty: bool, words: str) -> None:
    async def work() -> None:
        client = make()
        await client.connect(nats_server.url, error_cb=quiet, max_reconnect_attempts=-1)
        await client._process_err(words)
        if faulty:
            assert await true_within(lambda: client.is_closed, PATIENCE)
        else:
            assert await true_within(lambda: client.stats["reconnects"] == 1 and client.is_connected, PATIENCE)
        await abandon(client)

    run(work())


@BOTH
def test_a_reconnect_waits_for_a_frozen_peer(nats_server_factory: Callable[..., Any], make: Make, faulty: bool) -> None:
    server = nats_server_factory()

    async def work() -> None:
        lost = asyncio.Event()

        async def disconnected() -> None:
            lost.set()

        client = make()
        await client.connect(server.url, error_cb=quiet, disconnected_cb=disconnected, max_reconnect_attempts=-1)
        server.freeze()
        transport = client._transport
        assert transport is not None
        transport.write(b"PUB x 8000000\r\n" + b"x" * 8_000_000)
        await client._process_op_err(nats.errors.StaleConnectionError())
        assert await true_within(lost.is_set, QUIET if faulty else PATIENCE) != faulty
        server.kill()
        await abandon(client)

    run(work())


@pytest.mark.parametrize("garbage", [b"-ERR \r\n", b"INFO {\xff}\r\n"])
def test_garbage_raises_anything_from_the_parser(garbage: bytes) -> None:
    async def parse(parser: Parser) -> BaseException:
        try:
            await parser.parse(garbage)
        except Exception as exc:
            return exc
        raise AssertionError("it was understood")

    async def work() -> None:
        assert not isinstance(await parse(Parser(NatsPyClient())), nats.errors.Error)
        assert isinstance(await parse(Client(tls=False, on_down=lambda: None)._ps), nats.errors.ProtocolError)

    run(work())


def test_header_bytes_are_lost() -> None:
    parse = getattr(NatsPyClient, "_parse_header_lines", None)
    if parse is not None:  # older ones lose the whole block
        assert parse(b"twice: a\r\ntwice: \xff\r\n") == {"twice": "\ufffd"}


def test_a_dead_reader_is_noticed(nats_server: Any) -> None:
    async def work() -> None:
        client = Client(tls=False, on_down=lambda: None)
        await client.connect(nats_server.url, error_cb=quiet)
        assert not client.is_stuck()
        assert client._reading_task is not None
        client._reading_task.cancel()
        assert await true_within(client.is_stuck, PATIENCE)
        await abandon(client)

    run(work())
