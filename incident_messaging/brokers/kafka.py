"""A real Apache Kafka on this machine."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence

from incident_messaging.brokers.kafka_files import KafkaFiles, find_java, kafka_files, random_uuid
from incident_messaging.brokers.ports import HOST, free_port
from incident_messaging.brokers.process import BrokerProcess

__all__ = ["KafkaBroker"]


class KafkaBroker(BrokerProcess):
    """One Apache Kafka node in KRaft mode: broker and controller in one process, in plain text on loopback.

    Topics are not made by writing to them. ``config`` holds properties of the server that win over ours.
    Without ``store_dir`` the data lives in a temporary folder until ``close``. The other arguments are for
    the nodes of a ``KafkaCluster``.
    """

    kind = "Kafka"
    poll_secs = 0.1

    def __init__(
        self,
        *,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
        store_dir: str | os.PathLike[str] | None = None,
        controller_port: int | None = None,
        node_id: int = 1,
        cluster_id: str | None = None,
    ) -> None:
        super().__init__(port, store_dir)
        self.node_id = node_id
        self.controller_port = controller_port or free_port()
        self._cluster_id = cluster_id or random_uuid()
        self._config = dict(config or {})

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect, as ``127.0.0.1:PORT``."""
        return self.address

    def live_brokers(self) -> set[int]:
        """The ids of the brokers that this node knows to be alive; none if it does not answer within 2 s."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({**self._way_in(), "log_level": 0})
        try:
            answer = admin.list_topics(timeout=2.0)
        except KafkaException:
            return set()
        # Another Kafka on a port of the caller's choice would answer just as well.
        return set(answer.brokers) if answer.cluster_id == self._cluster_id else set()

    def _way_in(self) -> dict[str, str]:
        """How a client gets to this node, in librdkafka's properties; where ``config`` secures it, with a login."""
        return {"bootstrap.servers": self.address}

    def _prepare(self) -> Sequence[str]:
        files = kafka_files()
        settings = self.folder / "server.properties"
        settings.write_text("".join(f"{key}={value}\n" for key, value in self._properties().items()), "utf-8")
        self._format(files)
        # A killed server leaves what it unpacked into its folder for temporary files: let that be its own.
        options = ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Dlog4j2.level=WARN"]
        options.append(f"-Djava.io.tmpdir={self.folder}")
        return [find_java(), *options, "-cp", files.classpath, "kafka.Kafka", str(settings)]

    def _format(self, files: KafkaFiles) -> None:
        """Format an empty storage by hand: ``StorageTool`` writes the same two files, but takes a second."""
        meta = self.data_dir / "meta.properties"
        if meta.exists():
            found = re.search(r"^cluster\.id=(.+)$", meta.read_text("utf-8"), re.MULTILINE)
            self._cluster_id = found[1] if found else self._cluster_id
            return
        shutil.copyfile(files.checkpoint, self.data_dir / "bootstrap.checkpoint")
        meta.write_text(
            f"version=1\ncluster.id={self._cluster_id}\nnode.id={self.node_id}\ndirectory.id={random_uuid()}\n",
            "utf-8",
        )

    def _properties(self) -> dict[str, str]:
        own = {
            "process.roles": "broker,controller",
            "node.id": str(self.node_id),
            "controller.quorum.voters": f"{self.node_id}@{HOST}:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.data_dir),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # The controller must give up a killed broker first: back after 3.5 s instead of 11.6 s.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
        }
        return own | self._config

    def _is_ready(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1.0).close()
        except OSError:
            return False
        return self.node_id in self.live_brokers()
