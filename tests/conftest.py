"""For every test: what it leaves behind fails it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings
from waiting import until

pytest_plugins = ("pytester", "not_asked")

#: Seconds that what was closed has to be gone; librdkafka ends its own threads behind the close.
PATIENCE = 30.0

_TASKS = Path("/proc/self/task")

# Brokers keep the machine busy, so nothing is said of how long an example takes; each run sees the same examples.
settings.register_profile("busy", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def _sdk_threads() -> set[str]:
    return {f"thread {t.name} ({t.ident})" for t in threading.enumerate() if t.name.startswith("incident-messaging-")}


def _native_threads() -> set[str]:
    """librdkafka's own threads, which Python does not know, where the kernel names them."""
    found = set()
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:  # it has just ended
            continue
        if name.startswith("rdk:"):
            found.add(f"native thread {name} ({task.name})")
    return found


def _descriptors() -> set[str]:
    """Sockets, pipes and the like, each by its number; files belong to whoever wants them."""
    process = psutil.Process()
    found = {f"socket {c.fd}: {c.laddr} to {c.raddr}" for c in process.net_connections("inet") if c.fd != -1}
    descriptors = Path("/proc/self/fd")
    for entry in descriptors.iterdir() if descriptors.is_dir() else ():
        try:
            target = os.readlink(entry)
        except OSError:  # the one that the listing itself used
            continue
        if target.startswith(("pipe:", "anon_inode:")):
            found.add(f"descriptor {entry.name}: {target}")
    return found


def _present() -> set[str]:
    return _sdk_threads() | _native_threads() | _descriptors()


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in its background with Ctrl-C ignored, and so would be all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(*features): what a conformance case asks of a backend")


@pytest.fixture(scope="session", autouse=True)
def process_wide() -> None:
    """What a process makes once and keeps: libuv's pipe for signals."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Threads, sockets and descriptors are gone when a test is over; fixtures of wider scope may keep theirs."""
    before = _present()
    yield
    if not until(lambda: _present() <= before, PATIENCE):
        left = sorted(_present() - before)
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Run something on another thread, which is joined when the test is over; what it raises is raised then."""
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def start(work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="test-later", daemon=True)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(10.0)
    assert not [thread for thread in threads if thread.is_alive()], "a thread of the test still runs"
    if errors:
        raise errors[0]
