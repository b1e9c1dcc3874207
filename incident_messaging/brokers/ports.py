"""Free loopback ports that stay ours while a broker is down."""

from __future__ import annotations

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
    for _ in range(1000):
        port = chosen.randint(_LOWEST, _HIGHEST)
        if port not in _taken and _is_free(port):
            _taken.add(port)
            return port
    raise OSError(f"no free port between {_LOWEST} and {_HIGHEST} on {HOST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
