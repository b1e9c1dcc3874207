"""A process with a live service forks: the child starts anew, the parent notices nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from bench import SLACK, Bench
from waiting import takes

from incident_messaging import BackendUnavailable

FORKS = """
import json, os, sys, threading, time
from incident_messaging import BackendUnavailable, MessagingConfig, MessagingService

service = MessagingService(MessagingConfig.from_mapping(json.loads(sys.argv[1])))
subscription = service.subscribe("orders", group="g")
expected = int(sys.argv[2])
service.publish("orders", {"n": "before"})
stop, gaps, sent = threading.Event(), [], []

def busy(name):
    last = time.monotonic()
    while not stop.is_set():
        text = f"{name}-{len(sent)}"
        service.publish("orders", {"n": text})
        sent.append(text)
        now = time.monotonic()
        gaps.append(now - last)
        last = now
        time.sleep(0.001)

threads = [threading.Thread(target=busy, args=(f"parent{n}",), daemon=True) for n in range(2)]
for thread in threads:
    thread.start()
children, begun = [], time.monotonic()
for number in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            subscription.next(0)
            sys.exit(3)
        except BackendUnavailable as error:
            assert error.code == "forked", error.code
        service.publish("orders", {"n": f"child-{number}"})
        if number == 0:
            service.close()
        sys.exit(0)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
took = time.monotonic() - begun
stop.set()
for thread in threads:
    thread.join()
missing, children = {"before", *sent}, []
while (delivery := subscription.next(10 if missing or len(children) < expected else 1)) is not None:
    missing.discard(delivery.payload["n"])
    if delivery.payload["n"].startswith("child"):
        children.append(delivery.payload["n"])
print(json.dumps({"codes": codes, "took": took, "gap": max(gaps), "missing": sorted(missing),
                  "children": sorted(children)}))
"""


@pytest.fixture
def run(bench: Bench) -> Any:
    """Run a script with the bench's configuration in a process of its own; what it printed as JSON.

    It is told how many messages of its children it will see.
    """

    def start(script: str, expected: int) -> Any:
        settings = json.dumps(bench.settings)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script, settings, str(expected)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    return start


def test_children_of_a_busy_process_publish_and_end(bench: Bench, run: Any) -> None:
    expected = ["child-0", "child-1", "child-2"] if bench.features.crosses_processes else []
    told = run(FORKS, len(expected))
    assert told["codes"] == [0, 0, 0]
    assert told["took"] < 10.0 + SLACK
    assert told["missing"] == []
    assert told["gap"] < SLACK  # the parent went on
    assert told["children"] == expected


LEAVES = """
import json, multiprocessing, sys, time
from incident_messaging import MessagingConfig, MessagingService

service = MessagingService(MessagingConfig.from_mapping(json.loads(sys.argv[1])))
subscription = service.subscribe("orders", group="g")
expected = int(sys.argv[2])

def child():
    service.publish_nowait("orders", {"n": "handed over, and no close"})

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(20)
found = []
while (delivery := subscription.next(10 if len(found) < expected else 1)) is not None:
    found.append(delivery.payload["n"])
print(json.dumps({"code": process.exitcode, "found": found}))
"""


def test_a_child_of_multiprocessing_sends_what_it_handed_over(bench: Bench, run: Any) -> None:
    expected = ["handed over, and no close"] if bench.features.crosses_processes else []
    told = run(LEAVES, len(expected))
    assert told["code"] == 0
    assert told["found"] == expected


def test_an_idle_child_leaves_the_parent_alone(bench: Bench) -> None:
    subscription = bench.service.subscribe("orders", group="g")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            subscription.close()  # not its own: nothing happens
            try:
                subscription.next(0)
            except BackendUnavailable as error:
                code = 0 if error.code == "forked" else 2
        finally:
            os._exit(code)
    with takes(at_most=5.0 + SLACK):
        assert os.waitpid(child, 0)[1] == 0
    bench.publish("orders", [1])
    delivery = subscription.next(10)
    assert delivery is not None
    assert delivery.payload == {"n": 1}
