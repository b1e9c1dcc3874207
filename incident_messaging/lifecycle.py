"""The life of a process: forks, and the interpreter's end.

A fork copies locks as they are and threads not at all. So every lock that the child will need is
held over it, among them the one round metric updates and the one round the import of a backend (a module
that was half imported stays locked in the child for ever), and a service in the child forgets what it
inherited (see ``docs/decisions/0003-forks.rst``). At the end every service is closed, with a bound.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  # its hooks for forks must be there before ours wait for an import
import ctypes
import os
import sys
import threading
import weakref
from typing import Any, Protocol

from incident_messaging import metrics

#: Seconds that closing all services may take when the interpreter ends.
EXIT_TIMEOUT = 5.0


class Service(Protocol):
    """What a service shows to this module."""

    #: Held over a fork.
    lock: Any

    def after_fork_in_child(self) -> None:
        """Forget what was inherited."""

    def close(self, timeout: float = ...) -> Any:
        """Close, bounded."""


#: Held over a fork, and by who imports a backend.
IMPORTING = threading.RLock()

_services: weakref.WeakSet[Any] = weakref.WeakSet()
_used: set[Any] = set()
_registry_lock = threading.Lock()
_held: list[Any] = []


def watch(service: Service) -> None:
    """Take a service into care, from its construction on."""
    with _registry_lock:
        _services.add(service)


def hold(service: Service) -> None:
    """Keep a service that has connections alive until it is closed: what it was handed is to be sent at the end."""
    with _registry_lock:
        _used.add(service)


def let_go(service: Service) -> None:
    """A service is closed."""
    with _registry_lock:
        _used.discard(service)


def closes_at_exit() -> None:
    """Make sure that `close_all` runs at the end of this process.

    ``atexit`` does not run in the children of multiprocessing; their finalizers do.
    """
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, close_all, exitpriority=100)


def close_all() -> None:
    """Close every service that is still open, all together within `EXIT_TIMEOUT` seconds."""
    with _registry_lock:
        services = list(_services)
    for service in services:
        service.close(EXIT_TIMEOUT / len(services))


def leak(thing: object) -> None:
    """Keep an inherited object alive beyond the interpreter's own end.

    Freeing an inherited librdkafka handle aborts the child, closing an inherited asyncio
    transport unregisters the parent's socket from the epoll they share.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _before_fork() -> None:
    _registry_lock.acquire()
    IMPORTING.acquire()
    metrics.LOCK.acquire()
    _held[:] = sorted(_services, key=id)
    for service in _held:
        service.lock.acquire()


def _release() -> list[Any]:
    services = list(_held)
    _held.clear()
    for service in reversed(services):
        service.lock.release()
    metrics.LOCK.release()
    IMPORTING.release()
    _registry_lock.release()
    return services


def _after_fork_in_parent() -> None:
    _release()


def _after_fork_in_child() -> None:
    metrics.after_fork_in_child()
    for service in _release():
        service.after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(close_all)
