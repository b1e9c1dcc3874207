"""A TCP proxy on loopback that does to connections what networks do: cut, reset, delay, swallow, stay silent."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from incident_messaging.brokers.ports import HOST, free_port

_PIECE = 65_536
#: An SO_LINGER that makes a close a reset (RST).
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes between clients and one address, until told otherwise.

    Attributes:
        drop_up: Swallow what clients send.
        drop_down: Swallow what the server sends.
        delay: Seconds that every piece waits.
        silent: Accept connections and connect them to nobody.
    """

    def __init__(self, target_port: int, port: int) -> None:
        self.port = port
        self.drop_up = self.drop_down = self.silent = False
        self.delay = 0.0
        self._target = (HOST, target_port)
        self._listener = socket.create_server((HOST, port))
        self._lock = threading.Lock()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._closing = False
        self._threads = [threading.Thread(target=self._accept, name="test-proxy-accept", daemon=True)]
        self._threads[0].start()

    def reset(self) -> int:
        """Reset every connection; how many there were."""
        with self._lock:
            pairs = list(self._pairs.items())
        for client, server in pairs:
            for side in (client, server):
                with suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    side.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def heal(self) -> None:
        """Pass everything again; connections that lost bytes are reset, as their ends would find out later."""
        hurt = self.drop_up or self.drop_down or self.silent
        self.drop_up = self.drop_down = self.silent = False
        self.delay = 0.0
        if hurt:
            self.reset()

    def close(self) -> None:
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(5.0)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="test-proxy-serve", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=2.0)
        except OSError:
            client.close()
            return
        with client, server:
            with self._lock:
                self._pairs[client] = server
            try:
                self._pass(client, server)
            except OSError:
                pass
            finally:
                with self._lock:
                    del self._pairs[client]

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, (server, "drop_up"))
            ready.register(server, selectors.EVENT_READ, (client, "drop_down"))
            while not self._closing:
                for key, _ in ready.select(0.1):
                    source, (to, drop) = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    piece = source.recv(_PIECE)
                    if not piece:
                        return
                    if self.delay:
                        time.sleep(self.delay)
                    if not self.silent and not getattr(self, drop):
                        to.sendall(piece)


@contextmanager
def proxy(target_port: int, port: int | None = None) -> Iterator[Proxy]:
    running = Proxy(target_port, port or free_port())
    try:
        yield running
    finally:
        running.close()
