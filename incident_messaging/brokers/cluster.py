"""Several brokers on this machine that replicate: R3 streams, replication factor 3."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from incident_messaging.brokers.errors import BrokerError
from incident_messaging.brokers.kafka import KafkaBroker
from incident_messaging.brokers.kafka_files import random_uuid
from incident_messaging.brokers.nats import NatsServer
from incident_messaging.brokers.ports import HOST, free_port
from incident_messaging.brokers.process import BrokerProcess, Startable

__all__ = ["KafkaCluster", "NatsCluster"]

_Node = TypeVar("_Node", bound=BrokerProcess)


class _Cluster(Startable, Generic[_Node]):
    """Nodes that start together; each can be stopped, killed, frozen and restarted on its own."""

    def __init__(self, nodes: Sequence[_Node]) -> None:
        self.nodes = tuple(nodes)

    def start(self, timeout: float = 120.0) -> None:
        """Start every node and return when all know of each other.

        Raises:
            BrokerError: a node ended, or the cluster was not whole within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_ready(max(0.0, deadline - time.monotonic()))
        while not self.whole():
            if time.monotonic() > deadline:
                raise BrokerError(f"the {self.nodes[0].kind} cluster was not whole after {timeout:g} s")
            time.sleep(0.1)

    def stop(self, timeout: float = 10.0) -> None:
        """Stop the nodes together (the last of a quorum could not end tidily alone); they keep their data."""
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.wait_end(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Close every node; their data is deleted."""
        for node in self.nodes:
            node.close()

    def whole(self) -> bool:
        """Whether all nodes run and know of each other."""
        raise NotImplementedError


class NatsCluster(_Cluster[NatsServer]):
    """NATS servers in one cluster with JetStream. ``config`` goes to each of them, as in ``NatsServer``."""

    def __init__(self, size: int = 3, *, config: str = "") -> None:
        routes = [free_port() for _ in range(size)]
        peers = ", ".join(f'"nats://{HOST}:{port}"' for port in routes)
        super().__init__([NatsServer(config=f"{self._section(port, peers)}\n{config}") for port in routes])

    @staticmethod
    def _section(port: int, peers: str) -> str:
        return f'cluster {{ name: "local", listen: "{HOST}:{port}", routes: [{peers}] }}'

    @property
    def urls(self) -> list[str]:
        """Where clients connect: one address per node."""
        return [node.url for node in self.nodes]

    def whole(self) -> bool:
        """Whether JetStream has a leader that sees every other node: an R3 stream then finds its places."""
        return any(self._leads_all(node) for node in self.nodes)

    def _leads_all(self, node: NatsServer) -> bool:
        followers = node.monitor("/jsz").get("meta_cluster", {}).get("replicas", [])
        there = [peer for peer in followers if peer.get("current") and not peer.get("offline")]
        return len(there) == len(self.nodes) - 1


class KafkaCluster(_Cluster[KafkaBroker]):
    """Kafka nodes, each broker and controller; topics are replicated to three unless they say otherwise.

    ``config`` goes to each of them, as in ``KafkaBroker``.
    """

    def __init__(self, size: int = 3, *, config: Mapping[str, str] | None = None) -> None:
        copies, quorum = str(min(size, 3)), str(min(size, 2))
        ports = {node_id: free_port() for node_id in range(1, size + 1)}
        voters = [f"{node_id}@{HOST}:{port}" for node_id, port in ports.items()]
        shared = {
            "controller.quorum.voters": ",".join(voters),
            "default.replication.factor": copies,
            "min.insync.replicas": quorum,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": quorum,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": quorum,
            **(config or {}),
        }
        cluster_id = random_uuid()
        super().__init__(
            [
                KafkaBroker(config=shared, controller_port=port, node_id=node_id, cluster_id=cluster_id)
                for node_id, port in ports.items()
            ]
        )

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect: every node, separated by commas."""
        return ",".join(node.bootstrap_servers for node in self.nodes)

    def whole(self) -> bool:
        """Whether every node sees every node alive."""
        everyone = {node.node_id for node in self.nodes}
        return all(node.live_brokers() == everyone for node in self.nodes)
