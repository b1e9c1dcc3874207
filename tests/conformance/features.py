"""What each backend can do. A new backend is one entry here; the cases ask for features, never for names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from foreign import Write, to_kafka, to_memory, to_nats


@attrs.frozen
class No:
    """A feature that a backend does not have, and why; false."""

    reason: str

    def __bool__(self) -> bool:
        return False


Feature = bool | No


@attrs.frozen(kw_only=True)
class Features:
    """One backend under test.

    Attributes:
        name: What the cases are called by.
        label: The backend's name in metrics, errors and receipts.
        settings: The configuration, made with a function that fetches a pytest fixture by its name.
        foreign: Makes, with the same function, what writes as another client would.
        keeps: What was published stays: places outlive their members, late groups see the history, what
            is not acknowledged goes to another member, dead letters can be read afterwards.
        positions: Receipts and deliveries say where the broker keeps the message.
        stores_an_id_once: The same envelope published twice is kept once, and the receipt says so.
        order_across_members: One key keeps its order also when its messages go to several members of a group.
        gives_back_in_order: What a member did not acknowledge comes to the next one in its old order.
        crosses_processes: Other processes see the messages.
        tombstones: A message may have no body at all.
        close_secs: Seconds that closing an idle service may take.
    """

    name: str
    label: str
    settings: Callable[[Callable[[str], Any]], Mapping[str, Any]]
    foreign: Callable[[Callable[[str], Any]], Write]
    keeps: Feature = True
    positions: Feature = True
    stores_an_id_once: Feature = True
    order_across_members: Feature = True
    gives_back_in_order: Feature = True
    crosses_processes: Feature = True
    tombstones: Feature = True
    close_secs: float = 2.0

    def lacks(self, *names: str) -> list[str]:
        """The reasons why cases that need these features cannot be asked of this backend."""
        return [f"{name}: {value.reason}" for name in names if isinstance(value := getattr(self, name), No)]


_NO_NULL = No("a body of no bytes is a body; only Kafka tells it from none")
_AT_MOST_ONCE = No("core NATS delivers at most once, to whoever is there")

BACKENDS = (
    Features(
        name="memory",
        label="memory",
        settings=lambda fixture: {"backend": "memory"},
        foreign=to_memory,
        stores_an_id_once=No("keeps what it is given; only JetStream compares ids"),
        crosses_processes=No("lives in one process"),
        tombstones=_NO_NULL,
    ),
    Features(
        name="nats",
        label="nats",
        settings=lambda fixture: {"backend": "nats", "nats": {"servers": [fixture("nats_server").url]}},
        foreign=to_nats,
        order_across_members=No("JetStream gives each message to the next member that asks"),
        gives_back_in_order=No("JetStream queues what comes back anew, the first sometimes behind the others"),
        tombstones=_NO_NULL,
    ),
    Features(
        name="kafka",
        label="kafka",
        settings=lambda fixture: {
            "backend": "kafka",
            "kafka": {"bootstrap_servers": fixture("kafka_broker").bootstrap_servers, "partitions": 3},
        },
        foreign=to_kafka,
        stores_an_id_once=No("an idempotent producer drops its own repeats, not the caller's"),
        close_secs=5.0,
    ),
    Features(
        name="nats-core",
        label="nats",
        settings=lambda fixture: {
            "backend": "nats",
            "nats": {"servers": [fixture("nats_server").url], "delivery": "core"},
        },
        foreign=to_nats,
        keeps=_AT_MOST_ONCE,
        positions=_AT_MOST_ONCE,
        stores_an_id_once=_AT_MOST_ONCE,
        order_across_members=No("a queue group gives each message to any member"),
        gives_back_in_order=_AT_MOST_ONCE,
        tombstones=_NO_NULL,
    ),
)
