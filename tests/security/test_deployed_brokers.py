"""What docs/deployment configures, as real clusters of three: who is let in, copies, and restarts under load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from certificates import Kit
from deployed import PASSWORD, PATIENCE, DeployedKafka, DeployedNats, config_of
from traffic import TIMEOUT, Traffic
from waiting import until

from incident_messaging import ConnectionFailed, MessagingConfig, MessagingService, PublishFailed, SubscribeFailed

pytestmark = pytest.mark.slow


def test_three_servers_of_nats_conf_keep_three_copies_for_who_may(certificates: Kit, tmp_path: Path) -> None:
    (tmp_path / "seed").write_bytes(b"")
    with DeployedNats(certificates, tmp_path) as cluster:
        servers = [f"nats://{node.address}" for node in cluster.nodes]
        config = config_of("nats.toml", "nats", servers=servers, tls_ca_file=str(certificates.ca_file),
                           nkey_seed_file=str(tmp_path / "seed"))  # fmt: skip
        (tmp_path / "seed").write_bytes(cluster.seeds["CONSUMER"])
        with MessagingService(config) as service:
            receipt = service.publish("deployed", {"n": 1})
            assert next(service.consume("deployed", timeout=PATIENCE)).payload == {"n": 1}
            assert receipt.results
        assert until(lambda: cluster.copies == [3, 3, 3], PATIENCE), cluster.copies
        (tmp_path / "seed").write_bytes(cluster.seeds["PUBLISHER"])
        with MessagingService(config) as service:
            service.publish("deployed", {"n": 2})
            with pytest.raises(SubscribeFailed, match="permission"):
                service.subscribe("deployed")
        anonymous = MessagingConfig(nats={"servers": servers, "enable_tls": True, "tls_ca_file": certificates.ca_file})
        with pytest.raises(ConnectionFailed), MessagingService(anonymous):
            pass


@pytest.fixture
def kafka(certificates: Kit, tmp_path: Path, nothing_left_behind: None) -> Iterator[DeployedKafka]:
    """Three nodes, and whom the page lets in."""
    with DeployedKafka(certificates, tmp_path) as cluster:
        cluster.let_in()
        yield cluster


@pytest.fixture
def config(kafka: DeployedKafka, certificates: Kit, tmp_path: Path) -> MessagingConfig:
    """The application's configuration of the page."""
    (tmp_path / "password").write_text(PASSWORD)
    return config_of("kafka.toml", "kafka", bootstrap_servers=kafka.bootstrap_servers,
                     ssl_ca_file=str(certificates.ca_file), sasl_password_file=str(tmp_path / "password"))  # fmt: skip


def with_kafka(config: MessagingConfig, **fields: Any) -> MessagingConfig:
    return attrs.evolve(config, kafka=attrs.evolve(config.kafka, **fields))


@pytest.mark.timeout(400)
def test_three_nodes_of_kafka_properties_over_a_rolling_restart(kafka: DeployedKafka, config: MessagingConfig) -> None:
    only_who_may(kafka, config)
    as_many_copies_as_asked_for(kafka, config)
    nothing_is_lost_over_restarts(kafka, config)


def only_who_may(kafka: DeployedKafka, config: MessagingConfig) -> None:
    with MessagingService(config) as service:
        service.publish("deployed", {"n": 1})
        assert next(service.consume("deployed", timeout=PATIENCE)).payload == {"n": 1}
    assert kafka.replicas("llm-im.deployed") == {3}, "the cluster's default"
    with (
        MessagingService(attrs.evolve(config, topic_prefix="other")) as service,
        pytest.raises(PublishFailed) as denied,
    ):
        service.publish("deployed", {"n": 1})
    assert denied.value.code == "denied"
    without = {"enable_sasl": False, "sasl_mechanism": "PLAIN", "sasl_username": None, "sasl_password_file": None}
    with pytest.raises(ConnectionFailed, match="enable_sasl"), MessagingService(with_kafka(config, **without)):
        pass


def as_many_copies_as_asked_for(kafka: DeployedKafka, config: MessagingConfig) -> None:
    with MessagingService(with_kafka(config, replication_factor=2)) as service:
        service.publish("two", {"n": 1})
    assert kafka.replicas("llm-im.two") == {2}
    with (
        MessagingService(with_kafka(config, replication_factor=4)) as service,
        pytest.raises(PublishFailed, match="replication factor"),
    ):
        service.publish("four", {"n": 1})


def nothing_is_lost_over_restarts(kafka: DeployedKafka, config: MessagingConfig) -> None:
    """No publish takes longer than its time-out either, and who starts meanwhile finds the nodes that are there."""
    config = with_kafka(config, replication_factor=3, partitions=3, session_timeout_ms=6_000)
    with MessagingService(config) as service, Traffic(service) as traffic:
        assert kafka.replicas("llm-im.load") == {3}
        for node in kafka.nodes:
            node.stop()
            with MessagingService(config) as newcomer:
                newcomer.publish("newcomer", {"n": node.node_id}, timeout=TIMEOUT)
            node.start()
            assert until(kafka.whole, 3 * PATIENCE)
            traffic.flows()
    assert traffic.slowest < TIMEOUT
