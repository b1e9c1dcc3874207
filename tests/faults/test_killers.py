"""Messages that end the process which handles them, and messages that only happened to be there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from history import History, name_of
from load import last
from programs import HEAD, said
from rigs import Rig
from waiting import until

from incident_messaging import MessagingService, RetryPolicy

NewService = Callable[..., MessagingService]

PATIENCE = 60.0
ATTEMPTS = 2

pytestmark = pytest.mark.slow

#: Two subscriptions in one process; one of them has a message that ends it.
CONSUMER = (
    HEAD
    + """
import ctypes, signal
from incident_messaging import RetryPolicy
ways = {
    "exit": lambda: os._exit(3),
    "crash": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
pause = float(sys.argv[4])
def handle(delivery):
    name = name_of(delivery.payload)
    history.note("started", name)
    time.sleep(pause)
    if "way" in delivery.payload:
        ways[delivery.payload["way"]]()
    history.note("handled", name)
options = {"concurrency": int(sys.argv[6]), "retry": RetryPolicy(max_attempts=int(sys.argv[5]))}
for topic in ("load", "other"):
    service.subscribe(topic, group="g", callback=handle, prefetch=20, timeout=40.0, **options)
def tell():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # until then it would end the process at once
        time.sleep(0.01)
    history.note("ready", "process/0")
threading.Thread(target=tell, daemon=True).start()
service.run_until_signal()
"""
)


@pytest.fixture
def settings(rig: Rig) -> dict[str, Any]:
    """A server that waits a second or two, not half a minute, for the messages of a process that died."""
    if "nats" in rig.settings:
        return rig.settings | {"nats": rig.settings["nats"] | {"ack_wait_ms": 1_000}}
    return rig.settings | {"kafka": rig.settings["kafka"] | {"session_timeout_ms": 2_000}}


def start(
    settings: dict[str, Any], history: History, *, pause: float = 0.0, concurrency: int = 4, attempts: int = ATTEMPTS
) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parent)
    arguments = [json.dumps(settings), str(history.path), here, str(pause), str(attempts), str(concurrency)]
    with history.path.with_suffix(".stderr").open("a") as words:
        return subprocess.Popen([sys.executable, "-c", CONSUMER, *arguments], stderr=words)


def publish(service: MessagingService, topic: str, payloads: list[dict[str, Any]]) -> set[str]:
    service.publish_batch(topic, payloads, key=lambda payload: payload["key"])
    return {name_of(payload) for payload in payloads}


def the_dead(service: MessagingService) -> dict[str, Any]:
    return {name_of(json.loads(dead.body)["payload"]): dead for dead in service.dead_letters.list()}


@pytest.mark.parametrize("way", ["exit", "crash", "kill"])
def test_a_message_that_ends_its_process_goes_to_the_dead_letters_alone(
    rig: Rig, new_service: NewService, settings: dict[str, Any], tmp_path: Path, way: str
) -> None:
    history, service = History(tmp_path / "history"), new_service()
    killer = {"key": "k2", "n": 1_000, "way": way}
    innocent = publish(service, "other", [{"key": f"o{n % 5}", "n": n} for n in range(30)])
    innocent |= publish(service, "load", [{"key": f"k{n % 5}", "n": n} for n in range(30)])
    publish(service, "load", [killer])
    innocent |= publish(service, "load", [{"key": f"k{n % 5}", "n": n} for n in range(2_000, 2_030)])

    def finished() -> bool:
        return innocent <= set(history.of("handled")) and bool(the_dead(service))

    deaths, done = 0, False
    while not done and deaths < 10:
        with start(settings, history, pause=0.01) as running:
            assert until(lambda running=running: running.poll() is not None or finished(), PATIENCE), said(history)
            done = running.poll() is None
            deaths += not done
            running.terminate()
    assert innocent <= set(history.of("handled")), said(history)
    dead = the_dead(service)
    assert set(dead) == {name_of(killer)}, "an innocent message was taken for one that kills"
    letter = dead[name_of(killer)]
    assert letter.exception_type.endswith("ProcessDied")
    assert letter.attempts == ATTEMPTS
    # Once unsuspected, and then as often as it has attempts.
    assert history.of("started").count(name_of(killer)) == deaths == ATTEMPTS + 1


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_rolling_deploy_dead_letters_nothing(
    rig: Rig, new_service: NewService, settings: dict[str, Any], tmp_path: Path, by: signal.Signals
) -> None:
    """Ten restarts in the middle of work, by a signal that a process obeys or by one that it cannot."""
    history, service = History(tmp_path / "history"), new_service()
    names = publish(service, "load", [{"key": f"k{n % 7}", "n": n} for n in range(400)])
    names |= publish(service, "other", [{"key": f"k{n % 7}", "n": n} for n in range(1_000, 1_010)])
    # Side by side, some would be handled behind one that is not, and Kafka could not commit them (docs: "delivery").
    concurrency = 1 if by is signal.SIGTERM else 4
    settings = rig.settings if by is signal.SIGTERM else settings
    attempts = RetryPolicy().max_attempts  # a message that SIGKILL meets so often in a hand, alone, is one that kills
    for _ in range(10):
        ready = len(history.of("ready"))
        with start(settings, history, pause=0.02, concurrency=concurrency, attempts=attempts) as running:
            assert until(lambda ready=ready: len(history.of("ready")) > ready, PATIENCE), said(history)
            last(0.2)
            running.send_signal(by)
            running.wait(20.0)
    with start(settings, history, attempts=attempts) as running:
        assert until(lambda: names <= set(history.of("handled")), PATIENCE), said(history)
        running.terminate()
    assert the_dead(service) == {}
    if by is signal.SIGTERM:
        assert "they are handled one at a time" not in said(history), "what was given back is no suspect"
        assert len(history.of("started")) == len(names), "what a process had begun it has finished"
