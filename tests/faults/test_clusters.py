"""Three nodes that replicate: the leader of what is written to goes, and nothing that was acknowledged with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from history import History, judge
from load import Publishers, all_handled, flows, handlers, last
from rigs import CLUSTERS, KafkaClusterRig, NatsClusterRig
from waiting import until

from incident_messaging import MessagingConfig, MessagingService

#: Seconds that a publish may take; no election here takes as long.
TIMEOUT = 30.0
PATIENCE = 90.0
#: Seconds between two publishes of a thread: a node that starts needs a share of the machine's processors, too.
PAUSE = 0.01

Cluster = NatsClusterRig | KafkaClusterRig

pytestmark = pytest.mark.slow


@pytest.fixture(params=sorted(CLUSTERS))
def cluster(request: pytest.FixtureRequest, nothing_left_behind: None) -> Iterator[Cluster]:
    with CLUSTERS[request.param]() as rig:
        yield rig


@pytest.fixture
def service(cluster: Cluster) -> Iterator[MessagingService]:
    with ExitStack() as open_ones:
        settings = cluster.settings | {"publish_timeout_ms": int(TIMEOUT * 1_000)}
        service = MessagingService(MessagingConfig.from_mapping(settings))
        open_ones.callback(service.close)
        yield service


def kill_and_start(cluster: Cluster) -> None:
    leader = cluster.leader("load")
    leader.kill()
    last(2.0)
    leader.start()


def freeze(cluster: Cluster) -> None:
    leader = cluster.leader("load")
    leader.freeze()
    last(4.0)
    leader.thaw()


def restart_each(cluster: Cluster) -> None:
    for node in cluster.cluster.nodes:
        node.stop()
        node.start()
        assert until(cluster.cluster.whole, PATIENCE)


@pytest.mark.parametrize(
    ("fault", "times"),
    [(kill_and_start, 2), (freeze, 1), (restart_each, 1)],
    ids=["leader-killed", "leader-frozen", "rolling-restart"],
)
def test_a_cluster_keeps_its_word(
    cluster: Cluster, service: MessagingService, fault: Callable[[Any], None], times: int
) -> None:
    history = History()
    with handlers(service, history, concurrency=2), Publishers(service, history, timeout=TIMEOUT, pause=PAUSE):
        for _ in range(times):
            flows(history, 200, PATIENCE)
            fault(cluster)
        flows(history, 200, PATIENCE)
    assert until(cluster.cluster.whole, PATIENCE)
    with handlers(service, history):
        assert until(all_handled(history), PATIENCE)
    verdict = judge(history, cluster.stored("load"))
    verdict.require(again=3 * cluster.again_per_kill, order=cluster.order_survives_losses)
    assert not history.of("failed", "unknown"), "no publish takes longer than its time-out"
    assert verdict.stall < TIMEOUT
