"""Processes that are killed, forked and interrupted in the middle of their work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from history import History, judge, name_of
from load import Publishers, all_handled, handlers
from programs import CONSUMER, FORKS, PUBLISHER, process, said
from rigs import Rig
from waiting import until

from incident_messaging import MessagingService

NewService = Callable[..., MessagingService]

PATIENCE = 45.0

pytestmark = pytest.mark.slow

IN_A_FUNCTION = """
import json, sys
from incident_messaging import MessagingConfig, MessagingService
def main():
    service = MessagingService(MessagingConfig.from_mapping(json.loads(sys.argv[1])))
    for number in range(3_000):
        service.publish_nowait("load", {"key": "k", "n": number}, key="k")
main()
"""


def test_a_consumer_that_is_killed_again_and_again(rig: Rig, new_service: NewService, tmp_path: Path) -> None:
    history, kills = History(tmp_path / "history"), 4
    service = new_service()
    payloads = [{"key": f"k{n % 5}", "n": n} for n in range(1_500)]
    for payload in payloads:
        history.note("sent", name_of(payload))
    service.publish_batch("load", payloads, key=lambda payload: payload["key"])
    for payload in payloads:
        history.note("acknowledged", name_of(payload))
    for _ in range(kills):
        goal = len(history.of("handled")) + 100
        with process(CONSUMER, rig, history.path):
            assert until(lambda goal=goal: len(history.of("handled")) >= goal, PATIENCE), said(history)
    with process(CONSUMER, rig, history.path):
        assert until(all_handled(history), PATIENCE), said(history)
    # A killed member may have had its prefetch in hand, and up to a second of acknowledgements on their way.
    judge(history, rig.stored("load")).require(again=kills * 1_100, order=rig.order_survives_losses)


def test_a_publisher_that_is_killed_keeps_its_word(rig: Rig, new_service: NewService, tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    new_service().publish("load", {"key": "q", "n": 0})
    for round_ in range(3):
        goal = len(history.of("acknowledged")) + 100
        with process(PUBLISHER, rig, history.path, str(round_ * 1_000_000)):
            assert until(lambda goal=goal: len(history.of("acknowledged")) >= goal, PATIENCE), said(history)
    stored = [name for name in rig.stored("load") if name != "q/0"]
    verdict = judge(history, stored)
    verdict.require(again=0)
    assert verdict.acknowledged >= 300


def test_forks_under_load(rig: Rig, new_service: NewService, tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    new_service().publish("load", {"key": "q", "n": 0})
    with process(FORKS, rig, history.path, "20") as parent:
        assert parent.wait(120.0) == 0, said(history)
    assert said(history) == ""
    stored = [name for name in rig.stored("load") if name != "q/0"]
    judge(history, stored).require(again=0)
    assert len([name for name in stored if name.startswith("child")]) == 13, "two of three children published"


def test_what_a_service_without_a_name_was_handed_is_sent_at_the_end(rig: Rig) -> None:
    """The service goes out of scope with its function; the interpreter ends before its broker has all."""
    command = [sys.executable, "-c", IN_A_FUNCTION, json.dumps(rig.settings)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    assert len(set(rig.stored("load"))) == 3_000


def test_ctrl_c_at_any_moment_loses_nothing(rig: Rig, new_service: NewService) -> None:
    """The main thread iterates and is interrupted; what it had in hand comes again."""
    history, service = History(), new_service()
    interrupts, main = 0, threading.main_thread().ident
    assert main is not None
    exposed, stop = threading.Event(), threading.Event()

    def interrupt() -> None:
        while not stop.wait(0.05):
            if exposed.is_set():  # else it might meet the test, where nothing catches it
                exposed.clear()
                signal.pthread_kill(main, signal.SIGINT)

    with Publishers(service, history, threads=1, pause=0.001), service.subscribe(
        "load", group="g", prefetch=50, timeout=30.0
    ) as subscription:  # fmt: skip
        thread = threading.Thread(target=interrupt, name="test-interrupt")
        thread.start()
        try:
            while interrupts < 60:
                try:
                    exposed.set()
                    _handle_some(subscription, history)
                except KeyboardInterrupt:
                    interrupts += 1
        finally:
            stop.set()
            thread.join()
    with handlers(service, history):
        assert until(all_handled(history), PATIENCE)
    judge(history, rig.stored("load")).require(again=interrupts * 50, order=rig.order_survives_losses)


def _handle_some(subscription: Any, history: History) -> None:
    for delivery in subscription:
        name = name_of(delivery.payload)
        history.note("started", name)
        delivery.ack()
        history.note("handled", name)
