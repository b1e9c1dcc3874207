"""The event that a signal sets."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from incident_messaging.handlers import Stop

#: Signals that come at the very end of a wait, where the lock of a `threading.Event` would be held.
HAMMER = """
import faulthandler, random, signal
from incident_messaging.handlers import Stop
faulthandler.dump_traceback_later(120, exit=True)
for _ in range(20_000):
    stop = Stop()
    signal.signal(signal.SIGALRM, stop.handle)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.0006))
    while not stop.wait(0.00005):
        pass
print("alive")
"""


def test_a_signal_may_set_it_at_any_moment_of_a_wait() -> None:
    done = subprocess.run([sys.executable, "-c", HAMMER], capture_output=True, text=True, timeout=150, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


@pytest.mark.parametrize("timeout", [0.0, 0.01, -1.0])
def test_without_a_signal_a_wait_ends_with_its_time(timeout: float) -> None:
    stop = Stop()
    assert (stop.wait(timeout), stop.is_set()) == (False, False)


def test_all_who_wait_are_let_go(later: Callable[[Callable[[], object]], threading.Thread]) -> None:
    stop, told = Stop(), []
    waiting = [later(lambda: told.append(stop.wait())) for _ in range(5)]
    stop.set()
    stop.set()
    for thread in waiting:
        thread.join(10.0)
    assert (told, stop.wait(), stop.is_set()) == ([True] * 5, True, True)
