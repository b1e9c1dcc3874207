"""An application that reads whatever it is sent, in a process of its own: if it dies, hangs or grows, that is seen.

It is started with the settings of its service and a file for its log, says ``ready``, and answers each number on its
standard input, once so many messages are settled (or nothing has been settled for a while), with a line of JSON.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import sys
import threading
import time
from typing import Any

import psutil
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import generate_latest

from incident_messaging import (
    MESSAGING_METRICS,
    Delivery,
    IncidentCreated,
    IncidentEvent,
    MessagingConfig,
    MessagingService,
    RetryPolicy,
    to_json,
)
from incident_messaging.context import LogFields
from incident_messaging.contrib import otel

#: What is read as what: ``fuzz.<group>.*`` by a group of the same name.
TYPES: dict[str, Any] = {"events": IncidentEvent, "anything": Any}
#: Seconds without anything settled after which it is told how far it came.
QUIET = 8.0
MEGABYTE = 1024 * 1024


class Reader:
    """A handler that looks at all of a message, and keeps where it lay."""

    def __init__(self, service: MessagingService, group: str) -> None:
        self.places: list[str] = []
        self.group = group
        self._service = service

    def __call__(self, delivery: Delivery[Any]) -> None:
        str(delivery.metadata.time), str(delivery.key), dict(delivery.headers)
        to_json(delivery.envelope.payload)
        if len(self.places) % 500 == 0:  # in the name of what it belongs to, whatever a stranger has put there
            self._service.publish("noted", {"of": str(delivery.position)})
        self.places.append(str(delivery.position))


def counted(name: str) -> dict[str, float]:
    """What a counter says in all its labels, by the last of them."""
    found: dict[str, float] = {}
    for sample in getattr(MESSAGING_METRICS, name).collect()[0].samples:
        if sample.name.endswith("_total"):
            label = sample.labels.get("reason", "")
            found[label] = found.get(label, 0) + sample.value
    return found


def settled(readers: list[Reader]) -> int:
    left = sum(counted("dead_letters").values()) + sum(counted("skipped").values())
    return int(left) + sum(len(reader.places) for reader in readers)


def watch(most: list[float]) -> None:
    process = psutil.Process()
    while True:
        most[0] = max(most[0], process.memory_info().rss / MEGABYTE)
        time.sleep(0.02)


def await_settled(readers: list[Reader], wanted: int) -> None:
    last, since = -1, time.monotonic()
    while (there := settled(readers)) < wanted and time.monotonic() - since < QUIET:
        if there != last:
            last, since = there, time.monotonic()
        time.sleep(0.02)


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    faulthandler.enable()
    logging.basicConfig(filename=sys.argv[2], level=logging.INFO)
    logging.getLogger().handlers[0].addFilter(LogFields())
    otel.instrument(TracerProvider())
    config = MessagingConfig.from_mapping(json.loads(sys.argv[1]))
    retry = RetryPolicy(max_attempts=2, initial_delay_secs=0.01, jitter=False)
    most = [0.0]
    with MessagingService(config) as service:
        readers = [Reader(service, group) for group in TYPES]
        for reader in readers:  # makes the topics
            service.publish(f"fuzz.{reader.group}.a", IncidentCreated("INC-0", "low", "test", "first"))
        subscriptions = [
            service.subscribe(
                f"fuzz.{reader.group}.*", TYPES[reader.group], group=reader.group, callback=reader, retry=retry,
                concurrency=2,
            )
            for reader in readers
        ]  # fmt: skip
        await_settled(readers, len(readers))
        threading.Thread(target=watch, args=(most,), daemon=True).start()
        before = sorted(thread.name for thread in threading.enumerate())
        tell("ready")
        for line in sys.stdin:
            await_settled(readers, int(line) + len(readers))
            gc.collect()
            generate_latest()  # what is counted can be scraped
            state = {
                "handled": {reader.group: reader.places for reader in readers},
                "skipped": counted("skipped"),
                "dead_letters": sum(counted("dead_letters").values()),
                "most": most[0],
                "rss": psutil.Process().memory_info().rss / MEGABYTE,
                "lost threads": sorted(set(before) - {thread.name for thread in threading.enumerate()}),
                "errors": [repr(one.error) for one in subscriptions if one.error is not None],
                "health": service.health().to_dict(),
            }
            tell(json.dumps(state, default=str))


if __name__ == "__main__":
    main()
