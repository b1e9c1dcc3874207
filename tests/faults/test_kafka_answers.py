"""Answers of a Kafka broker that cannot be had on demand from a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mock_cluster import PRODUCE, MockCluster, mock_cluster

from incident_messaging import MessagingConfig, MessagingService, PublishFailed, Timeout

NOT_LEADER, NOT_ENOUGH_REPLICAS, DUPLICATE_SEQUENCE, KAFKA_STORAGE, INVALID_RECORD = 6, 19, 46, 56, 87


@pytest.fixture
def cluster(nothing_left_behind: None) -> Iterator[MockCluster]:
    with mock_cluster() as cluster:
        cluster.make_topic("t.orders")
        yield cluster


@pytest.fixture
def service(cluster: MockCluster) -> Iterator[MessagingService]:
    kafka = {"bootstrap_servers": cluster.bootstrap_servers, "create_topics": False}
    with MessagingService(MessagingConfig(backend="kafka", kafka=kafka, topic_prefix="t")) as service:
        service.publish("orders", {"n": 0})
        yield service


@pytest.mark.parametrize("error", [NOT_LEADER, NOT_ENOUGH_REPLICAS, KAFKA_STORAGE])
def test_what_passes_is_waited_out(cluster: MockCluster, service: MessagingService, error: int) -> None:
    cluster.answer(PRODUCE, error, error)
    receipt = service.publish("orders", {"n": 1})
    (result,) = receipt.results.values()
    assert result.position is not None
    assert result.position.offset == 1


def test_a_success_without_an_offset_is_an_unknown_outcome(cluster: MockCluster, service: MessagingService) -> None:
    """See docs/decisions/0009: the record may not be stored, and librdkafka calls it delivered."""
    cluster.answer(PRODUCE, DUPLICATE_SEQUENCE)
    with pytest.raises(Timeout, match="did not say where") as caught:
        service.publish("orders", {"n": 1})
    assert caught.value.maybe_delivered
    assert caught.value.envelope is not None
    service.publish("orders", caught.value.envelope)


def test_a_record_that_is_refused_says_so(cluster: MockCluster, service: MessagingService) -> None:
    cluster.answer(PRODUCE, INVALID_RECORD)
    with pytest.raises(PublishFailed) as caught:
        service.publish("orders", {"n": 1})
    assert caught.value.code == "rejected"
    service.publish("orders", {"n": 2})
