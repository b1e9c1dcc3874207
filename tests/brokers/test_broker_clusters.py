"""Three brokers of a kind: what three hold survives the loss of one, and one that comes back is whole again."""

from __future__ import annotations

import pytest
from broker_clients import RawKafka, RawNats
from broker_waits import eventually, gone

from incident_messaging.brokers import KafkaCluster, NatsCluster


@pytest.mark.slow
def test_a_nats_cluster_keeps_an_r3_stream_without_one_of_its_servers() -> None:
    with NatsCluster(3) as cluster:
        assert len(cluster.urls) == 3
        pids = [node.pid or 0 for node in cluster.nodes]
        client = RawNats(*cluster.urls, replicas=3)
        client.write("one", "two")

        cluster.nodes[0].kill()

        left = RawNats(*cluster.urls[1:], replicas=3)
        assert eventually(lambda: left.writes("three"), within=60), "two of three elect a leader"
        cluster.nodes[0].start()
        assert eventually(cluster.whole, within=60)
        assert client.read() == ["one", "two", "three"]
    assert all(gone(pid) for pid in pids)


@pytest.mark.slow
def test_a_kafka_cluster_keeps_a_topic_of_three_replicas_without_one_of_its_brokers() -> None:
    with KafkaCluster(3) as cluster:
        assert cluster.bootstrap_servers.count(",") == 2
        pids = [node.pid or 0 for node in cluster.nodes]
        client = RawKafka(cluster.bootstrap_servers, replicas=3)
        client.write("one", "two")

        cluster.nodes[0].kill()

        client.write("three")
        cluster.nodes[0].start()
        assert eventually(cluster.whole, within=60)
        assert client.read() == ["one", "two", "three"]
        cluster.stop(timeout=5)
        assert not any(node.running for node in cluster.nodes)
    assert all(gone(pid) for pid in pids)
