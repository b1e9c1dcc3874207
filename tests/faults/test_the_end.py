"""The end of a service and of its process, whatever is on its way, and whoever does not answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from history import LATE, History, judge
from load import handlers, last
from programs import HEAD, process, said
from rigs import Rig
from waiting import takes, until

from incident_messaging import BackendUnavailable, MessagingConfig, MessagingError, MessagingService

NewService = Callable[..., MessagingService]

PATIENCE = 60.0
#: Seconds that `close` and `run_until_signal` are given here, and that they may take longer (docs: "errors").
GIVEN, OVER = 2.0, 0.5
#: What a machine with two cores may add, where brokers and tests share them, to the end of a thread or process.
SLACK = 5.0

pytestmark = pytest.mark.slow

#: Publishes as fast as the window lets it, consumes with a callback that never returns, and waits for SIGTERM.
BUSY = (
    HEAD
    + """
import logging
logging.basicConfig(format="%(message)s")
from incident_messaging import BackendUnavailable
def handle(delivery):
    history.note("started", name_of(delivery.payload))
    if delivery.payload["n"] == 5:
        threading.Event().wait()
    history.note("handled", name_of(delivery.payload))
service.subscribe("load", group="g", callback=handle, concurrency=4, timeout=40.0)
def busy():
    for number in range(1_000_000):
        payload = {"key": str(number % 10), "n": number}
        while True:
            try:
                future = service.publish_nowait("load", payload, key=payload["key"], block=0.1)
            except BackendUnavailable as error:
                if error.code == "closed":
                    return
            else:
                name = name_of(payload)
                future.add_done_callback(lambda future, n=name: future.exception() or acknowledged.append(n))
                break
acknowledged = []
threading.Thread(target=busy, daemon=True).start()
service.run_until_signal(timeout=float(sys.argv[4]))
with history.path.open("a") as file:  # at once: a line each would be what takes the time
    file.writelines(f'["acknowledged", "{name}", 0, 0]\\n' for name in list(acknowledged))
"""
)


@pytest.mark.parametrize("frozen", [False, True], ids=["broker-there", "broker-frozen"])
def test_sigterm_ends_a_busy_process_in_time(rig: Rig, new_service: NewService, tmp_path: Path, frozen: bool) -> None:
    history = History(tmp_path / "history")
    new_service().publish("load", {"key": "q", "n": 0})
    with process(BUSY, rig, history.path, str(GIVEN)) as running:
        assert until(lambda: {"5/5", "9/499"} <= set(history.of("started")), PATIENCE)
        if frozen:
            rig.broker.freeze()
            last(0.5)
        with takes(at_most=GIVEN + OVER + SLACK):
            running.send_signal(signal.SIGTERM)
            code = running.wait(PATIENCE)
    if frozen:
        rig.broker.thaw()
    assert code == 0
    words = said(history)
    assert re.search(r"callback in thread incident-messaging-worker-\S+ has not ended in time", words), words
    assert "Traceback" not in words
    stored = set(rig.stored("load"))
    assert set(history.of("acknowledged")) <= stored


def sockets() -> int:
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the folder's own
            continue
    return sum(link.startswith("socket:") for link in links)


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("incident-messaging")]


def test_close_names_a_callback_that_never_returns_and_leaves_nothing_else(rig: Rig, new_service: NewService) -> None:
    before, release, stuck = sockets(), threading.Event(), threading.Event()
    service = new_service()

    def never(_delivery: Any) -> None:
        stuck.set()
        release.wait()

    service.subscribe("load", group="g", callback=never, timeout=30.0)
    service.publish("load", {"key": "k", "n": 0})
    assert stuck.wait(PATIENCE)
    try:
        with takes(at_most=GIVEN + OVER + SLACK):
            callback, *leaving = service.close(GIVEN)
        # The callback had all of the time: a broker may not have confirmed the leave in the little that is added.
        assert all(re.search("did not end in time|left before NATS|closed meanwhile", words) for words in leaving), (
            leaving
        )
        assert until(lambda: len(ours()) == 1, PATIENCE), ours()
        (thread,) = ours()
        assert thread in callback, "what is left is named, and it is the callback's thread alone"
        assert until(lambda: sockets() <= before + len(rig_sockets(rig)), PATIENCE)
    finally:
        release.set()
    assert until(lambda: not ours(), PATIENCE)


def rig_sockets(rig: Rig) -> list[Any]:
    """What the proxy of this process holds for connections that are being closed."""
    return list(rig.proxy._pairs.items())


def test_close_with_a_full_window_and_a_frozen_broker(rig: Rig, new_service: NewService) -> None:
    service = new_service(max_in_flight=200, publish_timeout_ms=30_000)
    history = History()
    with handlers(service, history):
        service.publish("load", {"key": "k", "n": -1})
        rig.broker.freeze()
        futures: list[Any] = []
        with pytest.raises(BackendUnavailable):
            _hand_over(service, futures)
        waiting = threading.Thread(target=_wait_for_room, args=(service,), name="test-waiting")
        waiting.start()
        with takes(at_most=GIVEN + OVER + SLACK):
            left = service.close(GIVEN)
        assert left, "what could not be finished is told"
        waiting.join(PATIENCE)
        assert not waiting.is_alive(), "who waited for room was told of the end"
        begun = time.monotonic()
        outcomes = [future.exception(LATE + SLACK) for future in futures]
        assert time.monotonic() - begun < LATE + SLACK
        assert all(isinstance(outcome, MessagingError) for outcome in outcomes)
    rig.broker.thaw()
    assert until(lambda: not ours(), PATIENCE), "the threads left behind ended when the broker was back"
    stored = rig.stored("load")
    assert len(stored) == len(set(stored))


def _wait_for_room(service: MessagingService) -> None:
    """Wait at a full window for the end: it says no, or its future does."""
    with pytest.raises(MessagingError):
        service.publish_nowait("load", {"key": "k", "n": -2}, block=60.0).result(PATIENCE)


def _hand_over(service: MessagingService, futures: list[Any]) -> None:
    for number in range(1_000):
        futures.append(service.publish_nowait("load", {"key": "k", "n": number}, key="k"))


def test_many_lives_leave_nothing(rig: Rig, new_service: NewService) -> None:
    """Twenty services that publish and consume, one after another: threads, sockets and memory as before."""
    history = History()

    def live(number: int) -> None:
        service = new_service()
        name = {"key": f"life{number}", "n": 0}
        with handlers(service, history, group=f"g{number}", start="latest"):
            history.note("sent", f"life{number}/0")
            service.publish("load", name)
            history.note("acknowledged", f"life{number}/0")
            assert until(lambda: f"life{number}/0" in history.of("handled"), PATIENCE)
        assert service.close() == []

    live(0)
    assert until(lambda: not ours(), PATIENCE)
    before = sockets()
    for number in range(1, 20):
        live(number)
    assert until(lambda: not ours() and sockets() <= before, PATIENCE), (ours(), sockets(), before)
    judge(history, rig.stored("load")).require(again=0)


MANY = """
import json, sys
from incident_messaging import *
config = MessagingConfig.from_mapping(json.loads(sys.argv[1]))
services = [MessagingService(config) for _ in range(50)]
used = services[25]
for number in range(2_000):
    used.publish_nowait("orders", {"number": number}, block=10.0)
"""


def test_services_that_were_never_used_take_nothing_of_the_last_seconds(rig: Rig) -> None:
    command = [sys.executable, "-c", MANY, json.dumps(rig.settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with MessagingService(MessagingConfig.from_mapping(rig.settings)) as service:
        found = [delivery.payload["number"] for delivery in service.consume("orders", limit=2_000, timeout=20.0)]
    assert sorted(found) == list(range(2_000))
