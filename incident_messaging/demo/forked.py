"""A process that has published forks a child that publishes too, as prefork servers do.

Run by `fork` as a process of its own: with a client library alone, and with this SDK.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from incident_messaging import MessagingConfig, MessagingService

__all__ = ["CHILD", "PARENT", "main"]

#: How many messages the child and the parent publish.
CHILD, PARENT = 10, 2

Client = tuple[Callable[[str], object], Callable[[], object]]


def main(client: str, server: str, topic: str) -> None:
    """Publish before a fork, in the child, and after it; the child says how many calls raised nothing."""
    publish, flush = CLIENTS[client](server, topic)
    publish("parent 0")
    flush()
    if os.fork() == 0:
        accepted = 0
        try:
            for number in range(CHILD):
                publish(f"child {number}")
                accepted += 1
            flush()
        finally:
            os.write(1, f"{accepted}\n".encode())
            os._exit(0)
    os.wait()
    publish("parent 1")
    flush()


def confluent_kafka(server: str, topic: str) -> Client:
    """A producer made before the fork."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": server})
    return partial(producer.produce, topic), partial(producer.flush, 3.0)


def incident_messaging(server: str, topic: str) -> Client:
    """A service made and used before the fork."""
    service = MessagingService(MessagingConfig.from_env())
    return partial(service.publish_nowait, topic), partial(service.flush, 30.0)


def nats_py(server: str, topic: str) -> Client:
    """A connection made before the fork, on a loop in a background thread, as synchronous applications have it."""
    import asyncio
    import threading

    import nats

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    connection = asyncio.run_coroutine_threadsafe(nats.connect(server), loop).result(10.0)
    handed_over: list[Future[Any]] = []

    def publish(text: str) -> None:
        stored = connection.jetstream().publish(topic, text.encode())
        handed_over.append(asyncio.run_coroutine_threadsafe(stored, loop))

    return publish, lambda: wait(handed_over, 3.0)


CLIENTS: dict[str, Callable[[str, str], Client]] = {
    "confluent-kafka": confluent_kafka,
    "nats-py": nats_py,
    "incident-messaging": incident_messaging,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
