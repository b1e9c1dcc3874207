"""Free loopback ports that stay ours while a broker is down."""

from __future__ import annotations

import os
import random
import socket

__all__ = ["HOST", "free_port"]

HOST = "127.0.0.1"

# Below the range that kernels take for outgoing connections (Linux from 32768, macOS from 49152): while a
# broker is down, a client that keeps knocking on a port of that range may be given the same port as its own
# and connect to itself, or any other connection may take it and the restart fails.
_LOWEST, _HIGHEST = 20_000, 32_000
_taken: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on and that this process was not given before.

    Raises:
        OSError: no port of the range is free.
    """
    chosen = random.SystemRandom()
    lowest, highest = _own_range()
    for _ in range(1000):
        port = chosen.randint(lowest, highest)
        if port not in _taken and _is_free(port):
            _taken.add(port)
            return port
    raise OSError(f"no free port between {lowest} and {highest} on {HOST}")


def _own_range() -> tuple[int, int]:
    """Each process of pytest-xdist, with all that it starts, has a part of the range to itself.

    Until somebody listens on a port, and while its broker is down, another process would find it free.
    """
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    count = os.environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    if not (number.isdecimal() and count.isdecimal() and int(count)):
        return _LOWEST, _HIGHEST
    size = (_HIGHEST - _LOWEST + 1) // int(count)
    # One that replaces a crashed one has the next number, and so shares another's part.
    lowest = _LOWEST + int(number) % int(count) * size
    return lowest, lowest + size - 1


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
