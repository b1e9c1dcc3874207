"""What is measured: the rows of the table, who takes part, and how much is asked of the SDK."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: The contestant that all goals are about.
SDK = "sdk"


@dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Attributes:
        module: Its program among ``contestants``.
        settings: What its program is made with, beside the broker's address.
        peer: Whether it runs in the environment of the peers.
    """

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    peer: bool = False


CONTESTANTS = {
    SDK: Contestant("sdk"),
    "nats-py": Contestant("nats_py"),
    "nats-py+uvloop": Contestant("nats_py", {"uvloop": True}),
    "confluent-kafka": Contestant("confluent"),
    "faststream": Contestant("faststream_", peer=True),
    "faststream, pull": Contestant("faststream_", {"pull": True}, peer=True),
    "faststream, auto-commit": Contestant("faststream_", {"auto": True}, peer=True),
    "mq-bridge": Contestant("mq_bridge", peer=True),
    "nats-py-sync": Contestant("nats_py_sync", peer=True),
    # Not of the table: the SDK alone under other loads.
    "load": Contestant("load"),
}


@dataclass(frozen=True)
class Row:
    """One task for several contestants.

    Attributes:
        title: For people.
        way: ``jetstream``, ``core`` (NATS without it) or ``kafka``.
        call: The method of each contestant.
        share: Part of ``--messages`` that is asked of each contestant in each round.
        contestants: Who takes part besides the SDK, and which part of the row's messages it is asked for: a slow
            one would hold up the others.
        goals: How many times as fast as another the SDK has to be, at least.
        options: Further arguments of the call.
        source: Where messages come from that are consumed: ``stored`` before, ``fed`` meanwhile.
    """

    title: str
    way: str
    call: str
    share: float
    contestants: dict[str, float]
    goals: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)
    source: str = ""


ROWS = {
    "jetstream-batch": Row(
        "JetStream publish_batch, acknowledged", "jetstream", "publish_batch", 1.0,
        {"nats-py": 1.0, "nats-py+uvloop": 1.0, "mq-bridge": 1.0, "faststream": 0.3},
        {"nats-py": 1.5, "mq-bridge": 1.0},
    ),
    "jetstream-iterate": Row(
        "JetStream consume, an ack each, iterator", "jetstream", "consume", 1.0,
        {"nats-py": 1.0, "nats-py+uvloop": 1.0, "mq-bridge": 1.0},
        {"nats-py": 1.8},
        source="stored",
    ),
    "jetstream-callback": Row(
        "JetStream consume, an ack each, callback", "jetstream", "handle", 1.0,
        {"faststream": 0.3, "faststream, pull": 0.1},
        {"faststream": 5.0},
        source="stored",
    ),
    "core-publish": Row(
        "core NATS publish_nowait and flush", "core", "publish_nowait", 1.0,
        {"nats-py": 1.0, "nats-py+uvloop": 1.0, "mq-bridge": 1.0, "faststream": 1.0, "nats-py-sync": 0.5},
        {"faststream": 1.2},
    ),
    "core-callback": Row(
        "core NATS subscribe, callback", "core", "handle", 1.0,
        {"nats-py": 1.0, "nats-py+uvloop": 1.0, "faststream": 0.5},
        {"faststream": 2.0},
        {"fed": True}, "fed",
    ),
    "jetstream-blocking-1": Row(
        "blocking JetStream publish, 1 thread", "jetstream", "publish_each", 0.06,
        {"nats-py": 1.0, "nats-py+uvloop": 1.0, "mq-bridge": 1.0, "faststream": 1.0},
        {"nats-py": 0.7},
        {"workers": 1},
    ),
    "jetstream-blocking-16": Row(
        "blocking JetStream publish, 16 threads or tasks", "jetstream", "publish_each", 0.3,
        {"nats-py": 1.0, "nats-py+uvloop": 1.0, "mq-bridge": 1.0, "faststream": 1.0},
        {"nats-py": 0.8},
        {"workers": 16},
    ),
    "kafka-batch": Row(
        "Kafka publish_batch, acknowledged", "kafka", "publish_batch", 1.0,
        {"confluent-kafka": 1.0, "mq-bridge": 1.0, "faststream": 0.3},
        {"confluent-kafka": 0.4},
    ),
    "kafka-blocking-1": Row(
        "blocking Kafka publish, 1 thread", "kafka", "publish_each", 0.03,
        {"confluent-kafka": 1.0, "mq-bridge": 1.0, "faststream": 1.0},
        {"confluent-kafka": 0.9},
        {"workers": 1},
    ),
    "kafka-blocking-16": Row(
        "blocking Kafka publish, 16 threads or tasks", "kafka", "publish_each", 0.15,
        {"confluent-kafka": 1.0, "mq-bridge": 1.0, "faststream": 1.0},
        {"confluent-kafka": 0.9},
        {"workers": 16},
    ),
    "kafka-iterate": Row(
        "Kafka consume, an ack each, iterator", "kafka", "consume", 1.0,
        {"confluent-kafka": 1.0, "mq-bridge": 1.0, "faststream": 0.05, "faststream, auto-commit": 0.2},
        {"confluent-kafka": 0.25, "faststream": 20.0},
        source="stored",
    ),
}  # fmt: skip
