"""What settings change (docs/tuning.rst): ``python -m tests.benchmarks.capacity knobs``.

The values of a setting take turns on the same brokers; medians, and the medians of each round's ratio to the first
value, are printed.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from incident_messaging import IncidentEvent, MessagingConfig, MessagingService
from incident_messaging.brokers import KafkaBroker, NatsCluster, NatsServer

from .brokers import Brokers, Settings, event, incident, say


class Figure(NamedTuple):
    """What one turn came to: messages a second, and the microseconds of CPU that one took this process."""

    rate: float
    cpu: float


Turn = Callable[[], Figure]


def compare(title: str, turns: Mapping[Any, Turn], rounds: int) -> None:
    """Let the values of a setting take turns."""
    figures: dict[Any, list[Figure]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            figures[name].append(turn())
    first = next(iter(figures.values()))
    say(f"{title:40} a second  ratio to the first       us of CPU  ratio")
    for name, mine in figures.items():
        ratios = sorted(one.rate / other.rate for one, other in zip(mine, first, strict=True))
        rate, cpu = (statistics.median(each) for each in zip(*mine, strict=True))
        effort = statistics.median(one.cpu / other.cpu for one, other in zip(mine, first, strict=True))
        middle = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        say(f"    {name!s:34} {rate:10,.5g}  {middle:22} {cpu:10,.4g}  {effort:.2f}")


def with_each(
    title: str, services: Mapping[Any, MessagingService], rounds: int, work: Callable[..., Figure], *arguments: Any
) -> None:
    """The same work by services of different settings."""
    compare(title, {name: partial(work, one, *arguments) for name, one in services.items()}, rounds)


class Clock:
    """Both times from now on."""

    def __init__(self) -> None:
        self._begun, self._cpu = time.perf_counter(), time.process_time()

    def figure(self, count: int) -> Figure:
        seconds, cpu = time.perf_counter() - self._begun, time.process_time() - self._cpu
        return Figure(count / seconds, cpu / count * 1e6)


def timed(count: int, work: Callable[[], object]) -> Figure:
    clock = Clock()
    work()
    return clock.figure(count)


class Bench:
    """Services on the brokers, each with its own prefix, open until the end."""

    def __init__(self, brokers: Brokers) -> None:
        self.brokers = brokers

    def service(self, backend: str, **more: Any) -> MessagingService:
        """A service that has published to each topic that is used here."""
        service = MessagingService(MessagingConfig.from_mapping(self.brokers.settings(backend, **more)))
        self.brokers.ends.enter_context(service)
        service.publish("bench", event(0))
        return service

    def full(self, backend: str, **more: Any) -> MessagingService:
        """A service, and a topic ``full`` with 20,000 events."""
        service = self.service(backend, **more)
        service.publish_batch("full", map(event, range(20_000)), key=incident)
        return service


def batch(service: MessagingService, count: int, topic: str = "bench") -> Figure:
    return timed(count, lambda: service.publish_batch(topic, map(event, range(count)), key=incident))


def each(service: MessagingService, count: int, threads: int = 1, topic: str = "bench") -> Figure:
    def publish() -> None:
        for number in range(count // threads):
            service.publish(topic, event(number), key=f"INC-{number}")

    def run() -> None:
        workers = [threading.Thread(target=publish) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return timed(count, run)


def nowait(service: MessagingService, count: int) -> Figure:
    def run() -> None:
        for number in range(count):
            service.publish_nowait("bench", event(number), key=f"INC-{number}", block=30.0)
        service.flush(30.0)

    return timed(count, run)


def iterate(service: MessagingService, count: int, prefetch: int = 1_000, take: int = 1) -> Figure:
    """From the first message on, so without the join; each is acknowledged."""
    with service.subscribe("full", IncidentEvent, group=uuid.uuid4().hex, prefetch=prefetch) as subscription:
        got = len(subscription.next_batch(take, timeout=30.0))
        clock, before = Clock(), got
        while got < count:
            got += len(subscription.next_batch(take, timeout=30.0))
        return clock.figure(got - before)


def call_back(
    service: MessagingService, count: int, work: Callable[[], object] = lambda: None, **options: Any
) -> Figure:
    """From the first message on."""
    numbers, over, clocks = itertools.count(1), threading.Event(), []

    def handle(_: object) -> None:
        work()
        number = next(numbers)
        if number == 1:
            clocks.append(Clock())
        elif number == count:
            over.set()

    with service.subscribe("full", IncidentEvent, group=uuid.uuid4().hex, callback=handle, **options):
        assert over.wait(60.0)
        return clocks[0].figure(count - 1)


def knob_ways(bench: Bench, rounds: int) -> None:
    for backend in ("nats", "kafka"):
        service = bench.service(backend)
        turns = {
            "publish, 1 thread": partial(each, service, 1_000),
            "publish, 16 threads": partial(each, service, 4_000, 16),
            "publish_nowait and flush": partial(nowait, service, 20_000),
            "publish_batch": partial(batch, service, 20_000),
        }
        compare(f"{backend}: ways to publish", turns, rounds)


def knob_window(bench: Bench, rounds: int) -> None:
    for backend in ("nats", "kafka"):
        services = {value: bench.service(backend, max_in_flight=value) for value in (10_000, 100, 1_000, 100_000)}
        with_each(f"{backend}: publish_batch, max_in_flight", services, rounds, batch, 20_000)


def knob_metrics(bench: Bench, rounds: int) -> None:
    for backend in ("nats", "kafka"):
        services = {value: bench.full(backend, enable_metrics=value) for value in (True, False)}
        with_each(f"{backend}: publish_batch, enable_metrics", services, rounds, batch, 20_000)
        with_each(f"{backend}: iterator, enable_metrics", services, rounds, iterate, 20_000)


def knob_compression(bench: Bench, rounds: int) -> None:
    kinds = ("snappy", "none", "lz4", "zstd", "gzip")
    services = {kind: bench.service("kafka", kafka={"compression_type": kind}) for kind in kinds}
    with_each("publish_batch", services, rounds, batch, 20_000, "many")
    with_each("publish, 1 thread", services, rounds, each, 1_000, 1, "few")
    for topic, count in (("many", 20_000 * rounds), ("few", 1_000 * rounds)):
        sizes = {kind: on_disk(bench, f"{one.config.topic_prefix}.{topic}") / count for kind, one in services.items()}
        say(f"bytes a message on disk, {topic} at once: {', '.join(f'{kind} {sizes[kind]:.0f}' for kind in sizes)}")


def on_disk(bench: Bench, topic: str) -> int:
    return sum(file.stat().st_size for file in bench.brokers.kafka.data_dir.glob(f"{topic}-*/*.log"))


def knob_linger(bench: Bench, rounds: int) -> None:
    services = {value: bench.service("kafka", kafka={"extra": {"linger.ms": value}}) for value in (0, 1, 5, 20)}
    with_each("publish_batch, linger.ms", services, rounds, batch, 20_000)
    with_each("publish, 1 thread, linger.ms", services, rounds, each, 300)
    with_each("publish, 16 threads, linger.ms", services, rounds, each, 4_000, 16)


def knob_partitions(bench: Bench, rounds: int) -> None:
    services = {value: bench.full("kafka", kafka={"partitions": value}) for value in (1, 6, 50)}
    with_each("publish_batch, partitions", services, rounds, batch, 20_000)
    with_each("iterator, partitions", services, rounds, iterate, 20_000)


def knob_prefetch(bench: Bench, rounds: int) -> None:
    counts = {1_000: 20_000, 1: 500, 10: 3_000, 100: 20_000, 10_000: 20_000}
    for backend in ("nats", "kafka"):
        service = bench.full(backend)
        turns = {value: partial(iterate, service, count, value) for value, count in counts.items()}
        compare(f"{backend}: iterator, prefetch", turns, rounds)


def knob_taking(bench: Bench, rounds: int) -> None:
    for backend in ("nats", "kafka"):
        service = bench.full(backend)
        turns = {
            "next": partial(iterate, service, 20_000),
            "next_batch(500)": partial(iterate, service, 20_000, 1_000, 500),
            "callback": partial(call_back, service, 20_000),
            "callback, concurrency 4": partial(call_back, service, 20_000, concurrency=4),
        }
        compare(f"{backend}: ways to take", turns, rounds)


def knob_concurrency(bench: Bench, rounds: int) -> None:
    for backend in ("nats", "kafka"):
        work = partial(call_back, bench.full(backend), work=partial(time.sleep, 0.005))
        turns = {value: partial(work, 100 * value, concurrency=value) for value in (1, 4, 16, 50)}
        compare(f"{backend}: a handler that waits for 5 ms, concurrency", turns, rounds)


def knob_commits(bench: Bench, rounds: int) -> None:
    auto = bench.full("kafka")
    often = bench.full("kafka", kafka={"auto_commit_interval_ms": 100})
    confirmed = bench.full("kafka", kafka={"enable_auto_commit": False})
    turns = {
        "auto commit, next": partial(iterate, auto, 20_000),
        "every 100 ms, next": partial(iterate, often, 20_000),
        "confirmed, next": partial(iterate, confirmed, 100),
        "confirmed, next_batch(100)": partial(iterate, confirmed, 3_000, 1_000, 100),
        "confirmed, next_batch(1000)": partial(iterate, confirmed, 20_000, 1_000, 1_000),
        "confirmed, callback": partial(call_back, confirmed, 100),
        "confirmed, callback, 16 workers": partial(call_back, confirmed, 400, concurrency=16),
    }
    compare("kafka: acknowledgements", turns, rounds)


def knob_joining(bench: Bench, rounds: int) -> None:
    def join(service: MessagingService) -> Figure:
        clock = Clock()
        with service.subscribe("bench", group=uuid.uuid4().hex):
            return clock.figure(1)

    services = {name: bench.service("kafka", kafka={"group_protocol": name}) for name in ("classic", "consumer")}
    with_each("subscribe", services | {"nats": bench.service("nats")}, rounds, join)


def knob_replicas(bench: Bench, rounds: int) -> None:
    urls = bench.brokers.ends.enter_context(NatsCluster(3)).urls
    services = {value: bench.full("nats", nats={"servers": urls, "stream_replicas": value}) for value in (1, 3)}
    with_each("publish, 1 thread, stream_replicas", services, rounds, each, 1_000)
    with_each("publish_batch, stream_replicas", services, rounds, batch, 20_000)
    with_each("iterator, stream_replicas", services, rounds, iterate, 20_000)


def knob_silence(bench: Bench, rounds: int) -> None:
    """How long a server that is frozen counts as connected: the rate is one through the seconds."""

    def notice(server: NatsServer | KafkaBroker, settings: Settings) -> Figure:
        with MessagingService(MessagingConfig.from_mapping(settings)) as service:
            service.publish("bench", event(0))
            server.freeze()
            clock = Clock()
            future = service.publish_nowait("bench", event(1))
            while service.is_connected:
                time.sleep(0.01)
            figure = clock.figure(1)
            server.thaw()
            future.exception(30.0)
            return figure

    brokers, pings, sockets = bench.brokers, (5.0, 1.0, 0.5), (10_000, 3_000)
    silent = {
        value: partial(notice, brokers.nats, brokers.settings("nats", nats={"ping_interval_secs": value}))
        for value in pings
    }
    compare("nats: noticed, ping_interval_secs", silent, rounds)
    extras = {value: {"extra": {"socket.timeout.ms": value}} for value in sockets}
    silent = {
        value: partial(notice, brokers.kafka, brokers.settings("kafka", kafka=extra)) for value, extra in extras.items()
    }
    compare("kafka: noticed, socket.timeout.ms", silent, rounds)


#: Takes packages away before anything is imported.
_WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(',')));"
    "from tests.benchmarks.knobs import accelerated; accelerated(sys.argv[2])"
)
_LACKING = {"neither": "orjson,uvloop", "orjson": "uvloop", "uvloop": "orjson", "orjson and uvloop": "-"}


def knob_speed(bench: Bench, rounds: int) -> None:
    for backend in ("nats", "kafka"):
        figures: dict[str, list[dict[str, Any]]] = {name: [] for name in _LACKING}
        for _, (name, packages) in itertools.product(range(rounds), _LACKING.items()):
            command = [sys.executable, "-c", _WITHOUT, packages, json.dumps(bench.brokers.settings(backend))]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60.0, check=True)
            figures[name].append(json.loads(done.stdout))
        for task in figures["neither"][0]:
            turns = {name: partial(next, iter([Figure(*one[task]) for one in mine])) for name, mine in figures.items()}
            compare(f"{backend}: {task}, with", turns, rounds)


def accelerated(settings: str) -> None:
    """In a child: what it does without the packages that were taken away."""
    with MessagingService(MessagingConfig.from_mapping(json.loads(settings))) as service:
        service.publish_batch("full", map(event, range(20_000)), key=incident)
        figures = {"publish_batch": batch(service, 20_000), "publish, 1 thread": each(service, 1_000)}
        say(json.dumps(figures | {"iterator": iterate(service, 20_000)}))


KNOBS: Mapping[str, Callable[[Bench, int], None]] = {
    knob.__name__.removeprefix("knob_"): knob
    for knob in (
        *(knob_ways, knob_window, knob_metrics, knob_speed),
        *(knob_prefetch, knob_taking, knob_concurrency),
        *(knob_silence, knob_replicas),
        *(knob_compression, knob_linger, knob_partitions, knob_commits, knob_joining),
    )
}
