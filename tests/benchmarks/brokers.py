"""What the measurements of capacity and of settings stand on: brokers, settings for them, and events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from incident_messaging import IncidentCreated
from incident_messaging.brokers import KafkaBroker, NatsServer

Settings = Mapping[str, Any]


def say(text: str = "") -> None:
    print(text, flush=True)  # noqa: T201


def event(number: int) -> IncidentCreated:
    kinds = ("database", "network", "storage", "deployment", "security")
    title = f"{kinds[number % 5]} on host-{number * 7919 % 997} in region {number % 7} is degraded"
    severity = ("low", "medium", "high", "critical")[number % 4]
    return IncidentCreated(f"INC-{number % 997}", severity, kinds[number % 5], title)


def incident(one: IncidentCreated) -> str:
    return one.incident_id


class Brokers:
    """The brokers that are asked for, started by the first use."""

    def __init__(self, ends: ExitStack) -> None:
        self.ends = ends

    @cached_property
    def nats(self) -> NatsServer:
        return self.ends.enter_context(NatsServer())

    @cached_property
    def kafka(self) -> KafkaBroker:
        return self.ends.enter_context(KafkaBroker())

    def settings(self, backend: str, **more: Any) -> dict[str, Any]:
        """``nats``, ``core``, ``kafka`` or ``both``, with a prefix of its own."""
        nats = {"servers": [self.nats.url]} if backend != "kafka" else {}
        kafka = {"bootstrap_servers": self.kafka.bootstrap_servers} if backend in ("kafka", "both") else {}
        delivery = {"delivery": "core"} if backend == "core" else {}
        return {
            "backend": "nats" if backend == "core" else backend,
            "topic_prefix": f"{backend}-{uuid.uuid4().hex[:8]}",
            "nats": nats | delivery | more.pop("nats", {}),
            "kafka": kafka | more.pop("kafka", {}),
        } | more
