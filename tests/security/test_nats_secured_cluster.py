"""Three NATS servers with TLS and a login: replicas as configured, and a rolling restart that changes certificates."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from certificates import Authority, Certificate, Kit
from files import write
from nats_secured import Make, tls, user
from traffic import TIMEOUT, Traffic
from waiting import until

from incident_messaging import PublishFailed
from incident_messaging.brokers import NatsCluster

#: Seconds that a cluster may take to be whole again, on a machine that has much to do.
WHOLE = 60.0

pytestmark = pytest.mark.slow


@pytest.fixture
def certificate(certificates: Kit) -> Certificate:
    """What the servers show, for the test to replace."""
    return certificates.authority.issue("cluster")


@pytest.fixture
def cluster(certificate: Certificate, nothing_left_behind: None) -> Iterator[NatsCluster]:
    with NatsCluster(3, config=tls(certificate) + user('user: "app", password: "right"')) as started:
        yield started


def replicas(cluster: NatsCluster, ca_file: Path, stream: str) -> int:
    async def ask() -> int:
        trusts = ssl.create_default_context(cafile=ca_file)
        client = await nats.connect(cluster.urls, user="app", password="right", tls=trusts)
        try:
            return (await client.jetstream().stream_info(stream)).config.num_replicas or 0
        finally:
            await client.close()

    return asyncio.run(ask())


def test_replicas_and_a_rolling_restart(
    cluster: NatsCluster, on_nats: Make, certificates: Kit, certificate: Certificate, tmp_path: Path
) -> None:
    trusted = Path(shutil.copy(certificates.ca_file, tmp_path / "ca.pem"))
    login: dict[str, Any] = {"user": "app", "password": "right", "enable_tls": True, "tls_ca_file": trusted}
    login |= {"servers": cluster.urls, "ping_interval_secs": 1}
    with pytest.raises(PublishFailed, match="five could not be made"):
        on_nats(cluster.nodes[0], **login, stream="five", stream_replicas=5).publish("orders", {}, timeout=WHOLE)
    with Traffic(on_nats(cluster.nodes[0], **login, stream="load", stream_replicas=3)) as traffic:
        assert replicas(cluster, trusted, "load") == 3
        new = Authority(tmp_path, "new")
        write(trusted, trusted.read_text() + new.ca_file.read_text())  # both, as long as the servers change
        certificate.replace_by(new.issue("server"))
        for node in cluster.nodes:
            node.stop()
            node.start()
            assert until(cluster.whole, WHOLE)
            traffic.flows()
        write(trusted, new.ca_file.read_text())
        traffic.flows()
    assert traffic.slowest < TIMEOUT
