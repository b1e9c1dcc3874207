"""Programs that run as processes of their own and note what they do into the history's file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from history import History
from rigs import Rig

HEAD = """
import json, os, sys, threading, time
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from history import History, name_of
from incident_messaging import MessagingConfig, MessagingService
history = History(Path(sys.argv[2]))
service = MessagingService(MessagingConfig.from_mapping(json.loads(sys.argv[1])))
"""

CONSUMER = (
    HEAD
    + """
def handle(delivery):
    history.note("started", name_of(delivery.payload))
    time.sleep(0.002)
    history.note("handled", name_of(delivery.payload))
service.subscribe("load", group="g", callback=handle, prefetch=100, timeout=40.0).join()
"""
)

PUBLISHER = (
    HEAD
    + """
first = int(sys.argv[4])
for number in range(first, first + 1_000_000):
    payload = {"key": "p", "n": number}
    history.note("sent", name_of(payload))
    service.publish("load", payload, key="p", timeout=30.0)
    history.note("acknowledged", name_of(payload))
"""
)

FORKS = (
    HEAD
    + """
stop = threading.Event()
def busy(key):
    number = 0
    while not stop.is_set():
        payload = {"key": key, "n": number}
        history.note("sent", name_of(payload))
        service.publish("load", payload, key=key, timeout=30.0)
        history.note("acknowledged", name_of(payload))
        number += 1
threads = [threading.Thread(target=busy, args=(f"parent{n}",), daemon=True) for n in range(2)]
for thread in threads:
    thread.start()
for number in range(int(sys.argv[4])):
    pid = os.fork()
    if pid == 0:
        stop.set()
        payload = {"key": f"child{number}", "n": 0}
        history.note("sent", name_of(payload))
        if number % 3 == 0:
            os._exit(0)
        if number % 3 == 1:
            service.publish_nowait("load", payload)  # flushed at the end of the process
            history.note("acknowledged", name_of(payload))
            sys.exit(0)
        service.publish("load", payload, timeout=30.0)
        history.note("acknowledged", name_of(payload))
        service.close()
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, code
stop.set()
for thread in threads:
    thread.join()
assert service.close() == []
"""
)


@contextmanager
def process(code: str, rig: Rig, file: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, json.dumps(rig.settings), str(file), here, *more]
    # Words go to a file: a forked child that outlives its parent would hold a pipe open.
    with file.with_suffix(".stderr").open("a") as words, subprocess.Popen(command, stderr=words) as running:
        try:
            yield running
        finally:
            running.kill()


def said(history: History) -> str:
    """What the processes that note into a history wrote to stderr."""
    return history.path.with_suffix(".stderr").read_text()
