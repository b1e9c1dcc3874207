"""How much memory a process holds while messages go through it, in a process of its own.

    python memory.py SETTINGS WAY MESSAGES FULL

Ways: ``publish`` (as fast as the window lets it), ``consume`` (with callbacks), ``lag`` (a handler that is slower
than its topic). Prints a line of JSON: resident megabytes after FULL messages, when every window is full, and at
most after that.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any

from incident_messaging import MessagingConfig, MessagingService

BODY = "x" * 200


def resident() -> float:
    """Megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


class Watch:
    """What is held when the windows are full, and the most after it."""

    def __init__(self, messages: int, full: int) -> None:
        self._messages = messages
        self._full = full
        self._count = itertools.count(1)
        self.first = self.most = 0.0
        self.done = threading.Event()

    def one_more(self, *_: Any) -> None:
        count = next(self._count)
        if count == self._full:
            self.first = self.most = resident()
        elif count > self._full and count % 500 == 0:
            self.most = max(self.most, resident())
        if count == self._messages:
            self.done.set()


def main() -> None:
    settings, way, messages = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    watch = Watch(messages, int(sys.argv[4]))
    with MessagingService(MessagingConfig.from_mapping(settings)) as service:
        if way == "publish":
            for number in range(messages):
                future = service.publish_nowait("memory", {"n": number, "body": BODY}, key=str(number % 50), block=60.0)
                future.add_done_callback(watch.one_more)
        else:
            pause = 0.001 if way == "lag" else 0.0

            def handle(_delivery: Any) -> None:
                if pause:
                    threading.Event().wait(pause)
                watch.one_more()

            service.subscribe("memory", group=way, callback=handle, timeout=30.0)
        assert watch.done.wait(1800.0), "not all in time"
    print(json.dumps({"first": watch.first, "most": watch.most}))  # noqa: T201


if __name__ == "__main__":
    main()
