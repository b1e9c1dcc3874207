"""The NATS backend against a real server."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from nats_kit import Reader, config, in_time, spec

from incident_messaging.backends.nats.broker import NatsBroker
from incident_messaging.brokers import ports
from incident_messaging.eventloop import EventLoop

_prefixes = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _pipes_of_the_process() -> None:
    """libuv opens two pipes with the first loop of a process and keeps them: no test leaves them behind."""
    loop = EventLoop("incident-messaging-first-loop")
    loop.call(lambda: None)
    loop.stop(in_time())


@pytest.fixture
def prefix() -> str:
    """A topic prefix, and so a stream, of the test's own on the shared server."""
    return f"t{next(_prefixes)}"


@pytest.fixture
def new_broker(nothing_left_behind: None) -> Iterator[Callable[..., NatsBroker]]:
    """Make brokers on a URL, closed when the test is over."""
    with ExitStack() as stack:

        def make(url: str, **options: Any) -> NatsBroker:
            broker = NatsBroker(config(url, **options))
            stack.callback(broker.close, in_time(2.0))
            return broker

        yield make


@pytest.fixture
def broker(new_broker: Callable[..., NatsBroker], nats_server: Any, prefix: str) -> NatsBroker:
    """A broker on the shared server."""
    return new_broker(nats_server.url, prefix=prefix)


@pytest.fixture
def read() -> Iterator[Callable[..., Reader]]:
    """Open readers, closed when the test is over."""
    with ExitStack() as stack:

        def open_one(broker: NatsBroker, topic: str, *, acks: bool = True, **asked: Any) -> Reader:
            reader = Reader(broker, spec(topic, **asked), acks=acks)
            stack.callback(reader.close, 3.0)
            return reader.open()

        yield open_one


@pytest.fixture
def free_port() -> int:
    """A loopback port where nobody listens, outside the range that the kernel gives to outgoing connections."""
    return ports.free_port()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A loopback port that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield server.getsockname()[1]


@pytest.fixture
def fake_server() -> Iterator[Callable[..., int]]:
    """Servers that say what they are told to, and answer each PING."""
    with ExitStack() as stack:

        def start(**info: Any) -> int:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            greeting = {"server_id": "x", "version": "2.10.0", "headers": True, "max_payload": 1024} | info
            thread = threading.Thread(target=_serve, args=(listener, greeting), name="fake-server", daemon=True)
            thread.start()
            stack.callback(thread.join, 5.0)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            port: int = listener.getsockname()[1]
            return port

        yield start


def _serve(listener: socket.socket, greeting: dict[str, Any]) -> None:
    with suppress(OSError):
        while True:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5.0)
                peer.sendall(b"INFO " + json.dumps(greeting).encode() + b"\r\n")
                while data := peer.recv(4096):
                    if b"PING" in data:
                        peer.sendall(b"PONG\r\n")
