"""What the SDK does beside the clients that it wraps: messages a second, as ratios of one run.

    python -m tests.benchmarks [--messages N] [--rounds R] [--only nats|kafka]

Contestants take turns on the same brokers, so that a noisy machine is noisy for both; medians and
the spread are printed. No test depends on a figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable

from incident_messaging import IncidentCreated, IncidentEvent, MessagingConfig, MessagingService
from incident_messaging.brokers import KafkaBroker, NatsServer

Contestant = Callable[[str, int], None]

WIRE = {
    "metadata": {
        "message_id": str(uuid.uuid4()), "correlation_id": None, "timestamp": 1_700_000_000,
        "source": "bench", "version": "1.0", "headers": {},
    },
    "payload": {"type": "Created", "incident_id": "INC-1", "severity": "high", "incident_type": "db", "title": "x"},
}  # fmt: skip


def events(count: int) -> list[IncidentCreated]:
    return [IncidentCreated(f"INC-{number % 997}", "high", "db", "x") for number in range(count)]


def sdk_publish(service: MessagingService) -> Contestant:
    def run(topic: str, count: int) -> None:
        service.publish_batch(topic, events(count), key=lambda event: event.incident_id)

    return run


def sdk_consume(service: MessagingService) -> Contestant:
    def run(topic: str, count: int) -> None:
        group = uuid.uuid4().hex
        got = sum(1 for _ in service.consume(topic, IncidentEvent, group=group, timeout=5, limit=count, prefetch=1000))
        assert got == count

    return run


def sdk_publish_each(service: MessagingService) -> Contestant:
    def run(topic: str, count: int) -> None:
        for event in events(count):
            service.publish(topic, event)

    return run


def nats_py_publish(url: str) -> Contestant:
    async def publish(topic: str, count: int) -> None:
        import nats

        client = await nats.connect(url)
        stream = client.jetstream(publish_async_max_pending=4000)
        for _ in range(count):
            await stream.publish_async(f"llm-im.{topic}", json.dumps(WIRE).encode())
        await stream.publish_async_completed()
        await client.close()

    return lambda topic, count: asyncio.run(publish(topic, count))


def nats_py_publish_each(url: str) -> Contestant:
    async def publish(topic: str, count: int) -> None:
        import nats

        client = await nats.connect(url)
        stream = client.jetstream()
        for _ in range(count):
            await stream.publish(f"llm-im.{topic}", json.dumps(WIRE).encode())
        await client.close()

    return lambda topic, count: asyncio.run(publish(topic, count))


def nats_py_consume(url: str) -> Contestant:
    async def consume(topic: str, count: int) -> None:
        import nats

        client = await nats.connect(url)
        place = await client.jetstream().pull_subscribe(f"llm-im.{topic}", durable=uuid.uuid4().hex)
        got = 0
        while got < count:
            for message in await place.fetch(500, timeout=5):
                json.loads(message.data)
                await message.ack()
                got += 1
        await client.close()

    return lambda topic, count: asyncio.run(consume(topic, count))


def confluent_publish(servers: str) -> Contestant:
    def run(topic: str, count: int) -> None:
        from confluent_kafka import Producer

        done = 0

        def report(error: object, _message: object) -> None:
            nonlocal done
            done += error is None

        producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "compression.type": "snappy"})
        for _ in range(count):
            producer.produce(f"llm-im.{topic}", json.dumps(WIRE).encode(), key="k", on_delivery=report)
            producer.poll(0)
        producer.flush(30)
        assert done == count

    return run


def confluent_consume(servers: str) -> Contestant:
    def run(topic: str, count: int) -> None:
        from confluent_kafka import Consumer

        consumer = Consumer(
            {"bootstrap.servers": servers, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest",
             "enable.auto.commit": False}
        )  # fmt: skip
        consumer.subscribe([f"llm-im.{topic}"])
        got = 0
        while got < count:
            for message in consumer.consume(500, 0.2):
                json.loads(message.value())
                got += 1
            if got:
                consumer.commit(asynchronous=True)
        consumer.close()

    return run


def duel(name: str, ours: Contestant, theirs: Contestant, topic: str, count: int, rounds: int) -> None:
    speeds: dict[str, list[float]] = {"sdk": [], "client": []}
    for _ in range(rounds):
        for who, contestant in (("sdk", ours), ("client", theirs)):
            begun = time.perf_counter()
            contestant(topic, count)
            speeds[who].append(count / (time.perf_counter() - begun))
    sdk, client = (statistics.median(speeds[who]) for who in ("sdk", "client"))
    spread = max(max(values) / min(values) for values in speeds.values())
    print(f"{name:42} {sdk:10,.0f} {client:10,.0f} {sdk / client:7.2f} x   spread {spread:.2f}")  # noqa: T201


def run_nats(count: int, rounds: int) -> None:
    with NatsServer() as server, MessagingService(MessagingConfig(nats={"servers": [server.url]})) as service:
        topic = "bench.nats"
        service.publish(topic, {"warm": "up"})
        duel("JetStream publish, batch", sdk_publish(service), nats_py_publish(server.url), topic, count, rounds)
        duel("JetStream publish, one by one", sdk_publish_each(service), nats_py_publish_each(server.url),
             topic, count // 10, rounds)  # fmt: skip
        full = "bench.full"
        sdk_publish(service)(full, count)
        duel("JetStream consume, an ack each", sdk_consume(service), nats_py_consume(server.url), full, count, rounds)


def run_kafka(count: int, rounds: int) -> None:
    with KafkaBroker() as broker:
        config = MessagingConfig(backend="kafka", kafka={"bootstrap_servers": broker.bootstrap_servers})
        with MessagingService(config) as service:
            topic, servers = "bench.kafka", broker.bootstrap_servers
            service.publish(topic, {"warm": "up"})
            duel("Kafka publish, batch", sdk_publish(service), confluent_publish(servers), topic, count, rounds)
            full = "bench.full"
            sdk_publish(service)(full, count)
            duel("Kafka consume, an ack each (with the join)", sdk_consume(service), confluent_consume(servers),
                 full, count, rounds)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["nats", "kafka"])
    options = parser.parse_args()
    print(f"{'messages a second':42} {'sdk':>10} {'client':>10}   ratio")  # noqa: T201
    if options.only != "kafka":
        run_nats(options.messages, options.rounds)
    if options.only != "nats":
        run_kafka(options.messages, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
