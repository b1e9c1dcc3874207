"""The life of a process: forks, and the interpreter's end.

A fork copies locks as they are and threads not at all. So every lock that the child will need is
held over it, among them the one round metric updates and the one round the import of a backend (a module
that was half imported stays locked in the child for ever), and a service in the child forgets what it
inherited (see ``docs/decisions/0003-forks.rst``). At the end every service is closed, with a bound.

uWSGI forks in C, where no hook of Python's runs unless it is told to; and some servers take a process's threads
away (see ``docs/decisions/0011-forks-in-c-and-green-threads.rst``).
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  # its hooks for forks must be there before ours wait for an import
import ctypes
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from incident_messaging import metrics
from incident_messaging.deadline import Deadline
from incident_messaging.errors import ConfigurationError

log = logging.getLogger("incident_messaging")

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
#: Whether the fork that is happening was announced, and the locks are held.
_announced = False
#: The process for which the state above holds.
_pid = os.getpid()


def watch(service: Service) -> None:
    """Take a service into care, from its construction on."""
    _meet_uwsgi()
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

    ``atexit`` does not run in the children of multiprocessing; their finalizers do. Nor does it run in uWSGI's
    workers under ``skip-atexit-teardown``; uWSGI's own hook does.
    """
    _meet_uwsgi()
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, close_all, exitpriority=100)


def close_all() -> None:
    """Close every service that is still open, all together within `EXIT_TIMEOUT` seconds."""
    deadline = Deadline.after(EXIT_TIMEOUT)
    with _registry_lock:
        used, idle = list(_used), [service for service in _services if service not in _used]
    for service in idle:  # which takes no time
        service.close(0.0)
    for number, service in enumerate(used):
        service.close((deadline.left() or 0.0) / (len(used) - number))


def leak(thing: object) -> None:
    """Keep an inherited object alive beyond the interpreter's own end.

    Freeing an inherited librdkafka handle aborts the child, closing an inherited asyncio
    transport unregisters the parent's socket from the epoll they share.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def check_threads() -> None:
    """Refuse a process whose threads do not run beside its work, where the SDK would wait without end.

    Raises:
        ConfigurationError: Naming what took the threads away, and the remedy.
    """
    uwsgi = sys.modules.get("uwsgi")
    if not getattr(uwsgi, "has_threads", True):
        raise ConfigurationError("uWSGI runs without threads: set enable-threads = true (--enable-threads)")
    for name, module, patched in _GREEN:
        found = sys.modules.get(module)
        if found is not None and patched(found):
            raise ConfigurationError(
                f"{name} has replaced this process's threads, and broker clients written in C would stop all of "
                "them: use threads (gunicorn -k gthread; celery --pool=prefork or threads), or do not patch threads"
            )


def check_forks() -> None:
    """Refuse to begin threads in a process that uWSGI is to fork without Python's hooks.

    It forks whichever thread holds the interpreter's lock; in the child nobody would ever give that back.

    Raises:
        ConfigurationError: Naming the options that help.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None or uwsgi.worker_id():
        return
    master = uwsgi.masterpid()
    forks = master == os.getpid() or (not master and uwsgi.numproc > 1)
    options = {name.decode() if isinstance(name, bytes) else name for name in uwsgi.opt}
    if forks and "py-call-uwsgi-fork-hooks" not in options:
        raise ConfigurationError(
            "uWSGI would fork a process whose messaging service is in use, without Python's hooks, and the workers "
            "could hang: set py-call-uwsgi-fork-hooks = true or lazy-apps = true, or use the service in workers only"
        )


_GREEN: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("gevent", "gevent.monkey", lambda monkey: monkey.is_module_patched("threading")),
    ("eventlet", "eventlet.patcher", lambda patcher: patcher.is_monkey_patched("thread")),
)


def _meet_uwsgi() -> None:
    """Be told of uWSGI's forks before others are, and of the end of a worker behind others.

    Called again at each step of a service, since an application may have set the hooks anew.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    if "uwsgidecorators" not in sys.modules:
        _import_decorators(uwsgi)
    forked, ended = getattr(uwsgi, "post_fork_hook", None), getattr(uwsgi, "atexit", None)
    if not isinstance(forked, _Both):
        uwsgi.post_fork_hook = _Both(_after_fork_in_c, forked)
    if not isinstance(ended, _Both):
        uwsgi.atexit = _Both(ended, close_all)


class _Both:
    """Two hooks in the place of one."""

    def __init__(self, first: Callable[[], object] | None, second: Callable[[], object] | None) -> None:
        self._first, self._second = first, second

    def __call__(self) -> None:
        try:
            if self._first is not None:
                self._first()
        finally:
            if self._second is not None:
                self._second()


def _import_decorators(uwsgi: Any) -> None:
    """Import uWSGI's own module of hooks now: whoever does it later would overwrite what is set."""
    kept = {name: value for name in ("spooler", "post_fork_hook") if (value := getattr(uwsgi, name, None)) is not None}
    try:
        import_module("uwsgidecorators")
    except Exception as why:  # it is not there, or refuses a uWSGI without a master
        log.debug("uwsgidecorators: %s", why)
        return
    chain = uwsgi.post_fork_hook
    for name, value in kept.items():
        setattr(uwsgi, name, _Both(value, chain) if name == "post_fork_hook" else value)


def _after_fork_in_c() -> None:
    """uWSGI has forked. Python, and all that waits for its hooks, learns of it here if no option of uWSGI's told it."""
    if _pid == os.getpid():
        return
    ctypes.pythonapi.PyOS_AfterFork_Child()


def _before_fork() -> None:
    global _announced
    _registry_lock.acquire()
    IMPORTING.acquire()
    metrics.LOCK.acquire()
    _held[:] = sorted(_services, key=id)
    for service in _held:
        service.lock.acquire()
    _announced = True


def _release() -> list[Any]:
    global _announced
    _announced = False
    services = list(_held)
    _held.clear()
    for service in reversed(services):
        service.lock.release()
    metrics.LOCK.release()
    IMPORTING.release()
    _registry_lock.release()
    return services


def _renew() -> list[Any]:
    """Nobody announced the fork: a thread that the child does not have may hold any lock."""
    global IMPORTING, _registry_lock
    IMPORTING, _registry_lock, metrics.LOCK = threading.RLock(), threading.Lock(), threading.RLock()
    return list(_services)


def _after_fork_in_parent() -> None:
    _release()


def _after_fork_in_child() -> None:
    global _pid
    _pid = os.getpid()
    services = _release() if _announced else _renew()
    metrics.after_fork_in_child()
    for service in services:
        service.after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(close_all)
_meet_uwsgi()
