"""Where the applications of these tests find their brokers."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from incident_messaging.brokers import KafkaBroker, NatsServer


@pytest.fixture(params=["nats", "kafka"])
def settings(request: pytest.FixtureRequest, nats_server: NatsServer, kafka_broker: KafkaBroker) -> dict[str, Any]:
    """An application's setting for a real broker, with topics of its own."""
    where = {
        "nats": {"servers": [nats_server.url]},
        "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers, "partitions": 1},
    }
    return {"backend": request.param, "topic_prefix": f"t-{uuid4().hex[:10]}", request.param: where[request.param]}
