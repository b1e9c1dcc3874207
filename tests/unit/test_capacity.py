"""The numbers of threads and connections that docs/capacity.rst promises, counted on real brokers."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from typing import Any, NamedTuple

import psutil
import pytest
from waiting import until

from incident_messaging import MessagingConfig, MessagingService

OURS = "incident-messaging-"


class Taken(NamedTuple):
    threads: int
    connections: int


class Count:
    """What of a port's connections and of the threads came since; others may go meanwhile."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._threads, self._connections = self._all()

    def _all(self) -> tuple[set[int], set[Any]]:
        process = psutil.Process()
        found = [one for one in process.net_connections("tcp") if one.raddr and one.raddr.port == self._port]
        established = {(one.laddr, one.raddr) for one in found if one.status == psutil.CONN_ESTABLISHED}
        return {thread.id for thread in process.threads()}, established

    @property
    def taken(self) -> Taken:
        threads, connections = self._all()
        return Taken(len(threads - self._threads), len(connections - self._connections))


def kinds() -> Counter[str]:
    """The SDK's threads: the loop, the timer, and so on; ``kafka`` is a consumer's."""
    names = [thread.name.removeprefix(OURS) for thread in threading.enumerate() if thread.name.startswith(OURS)]
    whole = ("loop", "timer", "kafka-reports")
    kept = [name if name in whole else "watch" if name.endswith("-watch") else name.split("-")[0] for name in names]
    return Counter(kept)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def handle(_: object) -> None:
    pass


@pytest.mark.parametrize("delivery", ["jetstream", "core"])
def test_a_service_on_nats_has_two_threads_its_workers_and_one_connection(nats_server, delivery):
    prefix, port = f"capacity-{uuid.uuid4().hex[:8]}", port_of(nats_server.address)
    count = Count(port)
    config = MessagingConfig(topic_prefix=prefix, nats={"servers": [nats_server.url], "delivery": delivery})
    with MessagingService(config) as service:
        service.publish("one", {})
        assert kinds() == {"loop": 1, "timer": 1}
        service.subscribe("iterated")
        service.subscribe("seen", broadcast=True)
        service.subscribe("seen", broadcast=True)
        assert kinds() == {"loop": 1, "timer": 1}
        for number in range(3):
            service.subscribe(f"handled.{number}", callback=handle, concurrency=2)
        service.subscribe("watched", callback=handle, handler_timeout=5.0)
        assert kinds() == {"loop": 1, "timer": 1, "worker": 3 * 2 + 1, "watch": 1}
        assert until(lambda: count.taken == (10, 1)), count.taken


def test_a_service_on_kafka_has_threads_and_connections_for_each_consumer(kafka_broker):
    prefix, port, brokers = f"capacity-{uuid.uuid4().hex[:8]}", port_of(kafka_broker.address), 1
    count = Count(port)
    kafka = {"bootstrap_servers": kafka_broker.bootstrap_servers}
    with MessagingService(MessagingConfig(backend="kafka", topic_prefix=prefix, kafka=kafka)) as service:
        service.publish("one", {})
        threads, connections = 1 + (3 + brokers), brokers
        assert kinds() == {"timer": 1, "kafka-reports": 1}
        # An admin client that made the topic, and connections that were replaced, go by themselves.
        assert until(lambda: count.taken == (threads, connections), 30.0), count.taken
        service.subscribe("seen", broadcast=True)
        service.subscribe("seen", broadcast=True)
        threads, connections = threads + 4 + brokers, connections + brokers + 1
        assert kinds() == {"timer": 1, "kafka-reports": 1, "kafka": 1}
        assert until(lambda: count.taken == (threads, connections), 30.0), count.taken
        service.subscribe("handled", callback=handle, concurrency=2)
        threads, connections = threads + 4 + brokers + 2, connections + brokers + 1
        assert kinds() == {"timer": 1, "kafka-reports": 1, "kafka": 2, "worker": 2}
        assert until(lambda: count.taken == (threads, connections), 30.0), count.taken
