"""What a service takes from a machine (docs/capacity.rst), and what its settings change (docs/tuning.rst).

    python -m tests.benchmarks.capacity resources [--only PART ...]
    python -m tests.benchmarks.capacity knobs [--only KNOB ...] [--rounds R]

``resources`` reads threads, descriptors, connections and memory in a fresh child process for each way of use.
``knobs`` are in knobs.py. No test depends on a figure.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import psutil
from prometheus_client import generate_latest

from incident_messaging import MESSAGING_METRICS, BackendUnavailable, MessagingConfig, MessagingService
from incident_messaging.brokers import KafkaCluster

from .brokers import Brokers, Settings, event, incident, say
from .knobs import KNOBS, Bench

MEGABYTE = 1024 * 1024
#: How many subscriptions there are when it is looked again.
STEPS = (1, 2, 10, 50)


def usage(process: psutil.Process) -> dict[str, float]:
    """Threads, descriptors, connections to brokers (whatever is not gunicorn's own), megabytes, seconds of CPU."""
    memory, times = process.memory_full_info(), process.cpu_times()
    sockets = process.net_connections("tcp")
    own = {one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN}
    there = [one for one in sockets if one.status == psutil.CONN_ESTABLISHED and one.laddr.port not in own]
    return {
        "threads": process.num_threads(),
        "descriptors": process.num_fds() - (process.pid == os.getpid()),  # without that of the look itself
        "connections": len(there),
        "rss": memory.rss / MEGABYTE,
        "pss": memory.pss / MEGABYTE,
        "cpu": times.user + times.system,
    }


def names() -> str:
    """The threads of this process, those that Python does not know as the kernel names them."""
    known = [thread.name for thread in threading.enumerate()]
    tasks = [task.id for task in psutil.Process().threads()]
    ours = {thread.native_id for thread in threading.enumerate()}
    native = [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks if task not in ours]  # noqa: SIM115
    return ", ".join(sorted(known) + sorted(native))


def first_use(service: MessagingService) -> Iterator[str]:
    yield "made"
    service.connect()
    yield "connected"
    service.publish("first", {"n": 1})
    yield "published"
    service.publish_nowait("first", {"n": 2}).add_done_callback(lambda _: None)
    yield "a future has a callback"


def subscriptions(service: MessagingService, **options: Any) -> Iterator[str]:
    """One after another; each on a topic of its own, unless it is a broadcast."""
    service.publish("first", {"n": 1})
    yield "none"
    for number in range(1, max(STEPS) + 1):
        service.subscribe("same" if options.get("broadcast") else f"topic-{number}", timeout=30.0, **options)
        if number in STEPS:
            yield str(number)


def idle(service: MessagingService, number: int) -> Iterator[str]:
    for topic in range(number):
        service.subscribe(f"topic-{topic}", callback=lambda _: None, timeout=30.0)
    yield f"{number} subscriptions"
    time.sleep(20.0)
    yield "20 s later"


def topics(service: MessagingService, number: int) -> Iterator[str]:
    """Series and memory of metrics, when topics are published to and then consumed."""

    def series() -> str:
        return f"{sum(not line.startswith(b'#') for line in generate_latest().splitlines()):,} series"

    yield series()
    for topic in range(number):
        service.publish(f"topic.{topic}", {})
    yield series()
    left = threading.Semaphore(0)
    service.subscribe("topic.*", callback=lambda _: left.release())
    for _ in range(number):
        assert left.acquire(timeout=60.0)
    yield series()


def held(service: MessagingService, prefetch: int) -> Iterator[str]:
    """A handler that never ends, and a topic that has more than the prefetch."""
    service.connect()
    yield "before"
    over = threading.Event()
    service.subscribe("full", callback=lambda _: over.wait(60.0), prefetch=prefetch)
    quiet = [0, 1]
    while quiet[-1] - quiet[0] > MEGABYTE // 4 or len(quiet) < 8:  # until nothing more arrives
        time.sleep(0.25)
        quiet = [*quiet, psutil.Process().memory_info().rss][-8:]
    yield "held"
    over.set()


def window(service: MessagingService, size: int, pid: int) -> Iterator[str]:
    """As many publishes as the window lets in, while the broker is frozen."""
    service.publish("window", {"n": 0})
    yield "before"
    os.kill(pid, signal.SIGSTOP)
    futures = []
    try:
        for number in itertools.count():
            futures.append(service.publish_nowait("window", {"n": number, "body": str(number).zfill(size)}))
    except BackendUnavailable:
        yield f"{len(futures)} in flight"
    finally:
        os.kill(pid, signal.SIGCONT)


SCENES: Mapping[str, Callable[..., Iterator[str]]] = {
    "first_use": first_use,
    "callbacks": partial(subscriptions, callback=lambda _: None),
    "callbacks of 4 workers": partial(subscriptions, callback=lambda _: None, concurrency=4),
    "iterators": subscriptions,
    "broadcasts of one topic": partial(subscriptions, broadcast=True),
    "idle": idle,
    "topics": topics,
    "held": held,
    "window": window,
}


def scene(name: str, settings: str, *numbers: str) -> None:
    """In a child: play a scene, and tell what is used after each of its steps."""
    process = psutil.Process()
    service = MessagingService(MessagingConfig.from_mapping(json.loads(settings)))
    for step in SCENES[name](service, *map(int, numbers)):
        time.sleep(0.5)  # connections that are replaced by others are closed by then
        gc.collect()
        say(json.dumps({"step": step, "names": names()} | usage(process)))
    service.close(5.0)


def play(name: str, settings: Settings, *numbers: int) -> list[dict[str, Any]]:
    """A scene's steps, played in a fresh child."""
    command = [sys.executable, "-m", "tests.benchmarks.capacity", "scene", name, json.dumps(settings)]
    done = subprocess.run([*command, *map(str, numbers)], stdout=subprocess.PIPE, text=True, timeout=180, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


COLUMNS = " " * 62 + "threads, descriptors, connections to brokers, RSS and PSS in MB, seconds of CPU"


def show(title: str, steps: Sequence[Mapping[str, Any]], *, threads: bool = False) -> None:
    for step in steps:
        counts = " ".join(f"{step[name]:5.0f}" for name in ("threads", "descriptors", "connections"))
        say(f"{title:36} {step['step']:24} {counts} {step['rss']:7.1f} {step['pss']:7.1f} {step['cpu']:6.2f}")
        if threads:
            say(f"    {step['names']}")


def measure_first_use(brokers: Brokers) -> None:
    for backend in ("nats", "core", "kafka", "both"):
        show(backend, play("first_use", brokers.settings(backend)), threads=True)
    named = {"servers": [brokers.nats.url.replace("127.0.0.1", "localhost")]}
    show("nats, by name", play("first_use", brokers.settings("nats", nats=named)), threads=True)


def measure_subscriptions(brokers: Brokers) -> None:
    for backend in ("nats", "core", "kafka"):
        for name in ("callbacks", "callbacks of 4 workers", "iterators", "broadcasts of one topic"):
            show(f"{backend}: {name}", play(name, brokers.settings(backend)))


def measure_cluster(brokers: Brokers) -> None:
    cluster = brokers.ends.enter_context(KafkaCluster(3))
    settings = brokers.settings("kafka", kafka={"bootstrap_servers": cluster.bootstrap_servers})
    show("kafka, 3 nodes", play("first_use", settings), threads=True)
    show("kafka, 3 nodes: callbacks", play("callbacks", settings | {"topic_prefix": "three"}))


def measure_idle(brokers: Brokers) -> None:
    for backend, number in itertools.product(("nats", "kafka"), (1, 50)):
        show(f"{backend}: idle", play("idle", brokers.settings(backend), number))


def measure_topics(brokers: Brokers) -> None:
    settings = brokers.settings("nats", metrics_topic_limit=10_000)
    show("metrics of 1,000 topics", play("topics", settings, 1_000))


def measure_held(brokers: Brokers) -> None:
    for backend in ("nats", "kafka"):
        for size in (250, 10_000):
            settings = brokers.settings(backend)
            with MessagingService(MessagingConfig.from_mapping(settings)) as service:
                service.publish_batch("full", ({"n": number, "body": "x" * size} for number in range(15_000)))
            for prefetch in (1, 1_000, 10_000):
                title = f"{backend}: {size:,} bytes, prefetch {prefetch:,}"
                show(title, play("held", settings, prefetch))
    sparing = {"queued.max.messages.kbytes": 1024, "fetch.message.max.bytes": 100_000}  # the last topic is Kafka's
    for extra in ({}, sparing, dict([*sparing.items()][:1]), dict([*sparing.items()][1:])):
        kafka = settings["kafka"] | {"extra": extra}
        show(f"kafka: prefetch 100, {extra}", play("held", settings | {"kafka": kafka}, 100))


def measure_window(brokers: Brokers) -> None:
    for backend, server in (("nats", brokers.nats), ("kafka", brokers.kafka)):
        for size in (250, 10_000):
            settings = brokers.settings(backend, publish_timeout_ms=60_000)
            show(f"{backend}: {size:,} bytes each", play("window", settings, size, server.pid or 0))


def measure_stored(brokers: Brokers) -> None:
    """What 20,000 incident events are on disk, beside their own size (body, key and headers)."""
    for backend in ("nats", "kafka"):
        settings = brokers.settings(backend)
        prefix, count = settings["topic_prefix"], 20_000
        with MessagingService(MessagingConfig.from_mapping(settings)) as service:
            service.publish_batch("stored", map(event, range(count)), key=incident)
        own = MESSAGING_METRICS.value("message_size", topic="stored", backend=backend)
        folder = brokers.nats.data_dir if backend == "nats" else brokers.kafka.data_dir
        files = [*folder.glob(f"**/{prefix.upper()}/msgs/*.blk"), *folder.glob(f"{prefix}.stored-*/*.log")]
        disk = sum(file.stat().st_size for file in files)
        say(f"{backend}: events of {own / count:.0f} bytes, {disk / count:.0f} on disk")


# Eight workers of four threads --------------------------------------------------------------------------------


def site() -> Callable[[Mapping[str, Any], Callable[..., Any]], list[bytes]]:
    """For gunicorn: an application that publishes at each request, and says which worker and thread it was."""
    service = MessagingService(MessagingConfig.from_env())

    def application(_environ: Mapping[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        service.publish("requests", {"n": 1})
        time.sleep(0.02)  # so that the next request finds another thread
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{os.getpid()} {threading.get_ident()}".encode()]

    return application


def measure_gunicorn(brokers: Brokers) -> None:
    for backend, preload in itertools.product(("nats", "kafka", "both"), (False, True)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--workers", "8", "--worker-class", "gthread", "--threads", "4"]
        command += ["--log-level", "warning", "--bind", f"127.0.0.1:{port}", "tests.benchmarks.capacity:site()"]
        settings = brokers.settings(backend)
        with subprocess.Popen([*command, *["--preload"] * preload], env=environment(settings)) as master:
            try:
                answered = request_until_all_work(port, workers=8, threads=4)
                title = f"{backend}{', preloaded' if preload else ''}"
                tell_workers(title, psutil.Process(master.pid), answered)
            finally:
                master.terminate()
                master.wait(20.0)


def environment(settings: Settings) -> dict[str, str]:
    """For `MessagingConfig.from_env`."""
    nats, kafka = settings["nats"].get("servers", ()), settings["kafka"].get("bootstrap_servers", "")
    known = {"BACKEND": settings["backend"], "TOPIC_PREFIX": settings["topic_prefix"]}
    known |= {"NATS__SERVERS": ",".join(nats)} if nats else {}
    known |= {"KAFKA__BOOTSTRAP_SERVERS": kafka} if kafka else {}
    return os.environ | {f"INCIDENT_MESSAGING_{name}": value for name, value in known.items()}


def request_until_all_work(port: int, *, workers: int, threads: int, seconds: float = 30.0) -> set[int]:
    """Ask until every thread of every worker has answered, for so long at most; the workers' process ids."""
    seen: set[tuple[str, str]] = set()
    until = time.monotonic() + seconds

    def ask() -> None:
        while len(seen) < workers * threads and time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10.0) as answer:
                    pid, thread = answer.read().decode().split()
                seen.add((pid, thread))
            except OSError:
                time.sleep(0.1)  # not listening yet

    askers = [threading.Thread(target=ask) for _ in range(2 * workers * threads)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    return {int(pid) for pid, _ in seen}


def tell_workers(title: str, master: psutil.Process, answered: set[int]) -> None:
    time.sleep(1.0)
    workers = [usage(psutil.Process(pid)) for pid in sorted(answered)]
    middle = {name: statistics.median(worker[name] for worker in workers) for name in workers[0]}
    every = {name: sum(worker[name] for worker in workers) + usage(master)[name] for name in workers[0]}
    show(title, [middle | {"step": "a worker (median)"}, usage(master) | {"step": "master"}])
    show(title, [every | {"step": f"{len(workers)} workers and master"}])


RESOURCES: Mapping[str, Callable[[Brokers], None]] = {
    "first_use": measure_first_use,
    "subscriptions": measure_subscriptions,
    "cluster": measure_cluster,
    "idle": measure_idle,
    "topics": measure_topics,
    "held": measure_held,
    "window": measure_window,
    "stored": measure_stored,
    "gunicorn": measure_gunicorn,
}


def main() -> int:
    if sys.argv[1:2] == ["scene"]:
        scene(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.capacity", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("resources").add_argument("--only", nargs="+", choices=RESOURCES, default=[])
    turned = commands.add_parser("knobs")
    turned.add_argument("--only", nargs="+", choices=KNOBS, default=[])
    turned.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    parts = RESOURCES if options.command == "resources" else KNOBS
    for name in options.only or parts:
        say(f"\n{name}")
        with ExitStack() as ends:  # each part has brokers of its own
            if options.command == "resources":
                say(COLUMNS)
                RESOURCES[name](Brokers(ends))
            else:
                KNOBS[name](Bench(Brokers(ends)), options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
