"""Where the microseconds of a message go: by thread, and by function within it.

    python -m tests.benchmarks.profiles [--only NAMES] [--messages N] [--top N]

First the processor time a message without a profiler, the garbage collector's share of it among them; then a profile of
every thread of the SDK (cProfile, on each thread's own processor time, which the profiler multiplies: read the order).
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import itertools
import pstats
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from incident_messaging import IncidentEvent, MessagingConfig, MessagingService
from incident_messaging.brokers import KafkaBroker, NatsServer

from .contestants.child import shares, together
from .contestants.sdk import events, key_of

Work = Callable[[MessagingService, int], None]
TOPIC = "profiled"


def batch(service: MessagingService, count: int) -> None:
    service.publish_batch(TOPIC, events(count), key=key_of)


def nowait(service: MessagingService, count: int) -> None:
    for event in events(count):
        service.publish_nowait(TOPIC, event, key=event.incident_id, block=30.0)
    service.flush(30.0)


def each(service: MessagingService, count: int, threads: int = 16) -> None:
    given = events(count // threads + 1)

    def publish(share: int) -> None:
        for event in given[:share]:
            service.publish(TOPIC, event, key=event.incident_id)

    together(publish, shares(count, threads))


def iterate(service: MessagingService, count: int) -> None:
    got = service.consume(TOPIC, IncidentEvent, group=uuid.uuid4().hex, timeout=30.0, limit=count, prefetch=1000)
    assert sum(1 for _ in got) == count


def handle(service: MessagingService, count: int) -> None:
    numbers, done = itertools.count(1), threading.Event()

    def callback(_delivery: object) -> None:
        if next(numbers) == count:
            done.set()

    with service.subscribe(TOPIC, IncidentEvent, group=uuid.uuid4().hex, callback=callback, prefetch=1000):
        assert done.wait(60.0)


#: What is published before the clock starts.
CONSUMING = (iterate, handle)

WORKS: Mapping[str, tuple[str, dict[str, Any], Work, int]] = {
    "jetstream-batch": ("nats", {}, batch, 1),
    "jetstream-16": ("nats", {}, each, 4),
    "core-nowait": ("nats", {"delivery": "core"}, nowait, 1),
    "kafka-batch": ("kafka", {}, batch, 1),
    "kafka-16": ("kafka", {}, each, 8),
    "jetstream-iterator": ("nats", {}, iterate, 1),
    "jetstream-callback": ("nats", {}, handle, 1),
    "kafka-iterator": ("kafka", {}, iterate, 1),
}


class Collecting:
    """The garbage collector's time while it is entered."""

    def __init__(self) -> None:
        self.seconds = self._begun = 0.0

    def __enter__(self) -> Collecting:
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, _: object) -> None:
        if phase == "start":
            self._begun = time.perf_counter()
        else:
            self.seconds += time.perf_counter() - self._begun


class Profiles:
    """A profile of each thread that starts while it is entered, and of the one that enters it."""

    def __init__(self) -> None:
        self.by_thread: dict[str, cProfile.Profile] = {}

    def __enter__(self) -> Profiles:
        threading.setprofile(self._begin)
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        threading.setprofile(None)  # type: ignore[arg-type]  # documented so
        sys.setprofile(None)

    def _begin(self, *_: object) -> None:
        sys.setprofile(None)
        profile = self.by_thread[threading.current_thread().name] = cProfile.Profile(time.thread_time)
        profile.enable()

    def tell(self, messages: int, top: int) -> None:
        """Print what takes longest in each thread that did something; the threads have ended."""
        for thread, profile in self.by_thread.items():
            stats = pstats.Stats(profile)
            each = stats.total_tt / messages * 1e6  # type: ignore[attr-defined]
            if each > 0.5:
                print(f"\nthread {thread}: {each:.1f} us a message under the profiler")  # noqa: T201
                stats.sort_stats("tottime").print_stats(top)


def run(name: str, messages: int, top: int) -> None:
    """Measure and profile one way to publish or to consume, on a broker of its own."""
    backend, options, work, share = WORKS[name]
    count = messages // share
    with NatsServer() if backend == "nats" else KafkaBroker() as broker:
        address = {"servers": [broker.url]} if isinstance(broker, NatsServer) else {
            "bootstrap_servers": broker.bootstrap_servers
        }  # fmt: skip
        config = MessagingConfig(backend=backend, **{backend: {**address, **options}})
        with MessagingService(config) as service:
            if work in CONSUMING:
                batch(service, count)
            work(service, count // 5)
            with Collecting() as collecting:
                begun, own, whole = time.perf_counter(), time.thread_time(), time.process_time()
                work(service, count)
                parts = [time.process_time() - whole, time.thread_time() - own, time.perf_counter() - begun]
        process, caller, wall = (part / count * 1e6 for part in parts)
        words = f"{caller:.1f} on the calling thread, {collecting.seconds / count * 1e6:.1f} of all in the collector"
        print(f"{name}: {process:.1f} us of processor time a message ({words}), {wall:.1f} us by the clock")  # noqa: T201
        with Profiles() as profiles, MessagingService(config) as service:
            work(service, count)
        profiles.tell(count, top)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.profiles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(WORKS), help="by comma, of " + ", ".join(WORKS))
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--top", type=int, default=15, help="functions of each thread that are shown")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(WORKS)
    if unknown:
        parser.error(f"--only: nothing is called {', '.join(sorted(unknown))}; there are {', '.join(WORKS)}")
    for name in options.only.split(","):
        run(name, options.messages, options.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
