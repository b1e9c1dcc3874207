"""The configuration for two brokers."""

from __future__ import annotations

import uuid
from typing import Any


def settings(nats_server: Any, kafka_broker: Any) -> dict[str, Any]:
    return {
        "backend": "both",
        "topic_prefix": f"b-{uuid.uuid4().hex[:10]}",
        "nats": {"servers": [nats_server.url], "reconnect_delay_ms": 50},
        "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers},
    }
