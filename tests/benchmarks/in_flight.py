"""What one produce request in flight costs beside five (docs/decisions/0009), with confluent-kafka alone.

python -m tests.benchmarks.in_flight [--rounds R]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from incident_messaging.brokers import KafkaBroker

BODY = b"x" * 250


def batch(producer: Producer, topic: str) -> int:
    for number in range(60_000):
        producer.produce(topic, BODY, key=b"%d" % (number % 997))
        if number % 100 == 0:
            producer.poll(0)
    producer.flush()
    return 60_000


def blocking(threads: int, each: int) -> Callable[[Producer, str], int]:
    def run(producer: Producer, topic: str) -> int:
        over = threading.Event()

        def poll() -> None:
            while not over.is_set():
                producer.poll(0.1)

        def publish(first: int) -> None:
            for number in range(each):
                done = threading.Event()
                producer.produce(topic, BODY, key=b"%d" % (first + number), on_delivery=lambda *_, d=done: d.set())
                done.wait()

        poller = threading.Thread(target=poll)
        workers = [threading.Thread(target=publish, args=(number * 1009,)) for number in range(threads)]
        for thread in (poller, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        over.set()
        poller.join()
        return threads * each

    return run


TASKS = {"batch": batch, "1 thread": blocking(1, 300), "16 threads": blocking(16, 150)}


def measure(servers: str, topic: str, task: Callable[[Producer, str], int], in_flight: int) -> float:
    producer = Producer(
        {"bootstrap.servers": servers, "enable.idempotence": True, "acks": "all", "linger.ms": 0,
         "max.in.flight.requests.per.connection": in_flight}
    )  # fmt: skip
    producer.produce(topic, b"warm")
    producer.flush()
    begun = time.perf_counter()
    return task(producer, topic) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.in_flight", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with KafkaBroker() as broker:
        servers = broker.bootstrap_servers
        admin = AdminClient({"bootstrap.servers": servers})
        for partitions in (1, 3, 50):
            topic = f"p{partitions}"
            admin.create_topics([NewTopic(topic, num_partitions=partitions)])[topic].result(10)
            for name, task in TASKS.items():
                pairs = [(measure(servers, topic, task, 1), measure(servers, topic, task, 5)) for _ in range(rounds)]
                one, five = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
                ratios = sorted(first / second for first, second in pairs)
                print(f"{partitions:3} partitions, {name:10} one {one:9,.0f}/s  five {five:9,.0f}/s  "  # noqa: T201
                      f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
