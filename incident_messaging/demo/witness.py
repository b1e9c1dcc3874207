"""Who watches what arrives in the demo."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypeVar

from incident_messaging import Delivery, IncidentEvent, MessagingBackend, Subscription
from incident_messaging.demo.check import differences, in_order

__all__ = ["Witness"]

E = TypeVar("E", bound=IncidentEvent)


class Witness:
    """One consumer, and the events that it saw in their order.

    Attributes:
        backend: The broker that it reads from.
        name: The way in which it consumes.
        expected: What it should see.
        seen: What it has seen.
    """

    def __init__(
        self,
        backend: MessagingBackend,
        name: str,
        expected: Sequence[IncidentEvent],
        arrived: threading.Condition,
    ) -> None:
        self.backend = backend
        self.name = name
        self.expected = expected
        self.seen: list[IncidentEvent] = []
        self._arrived = arrived

    def note(self, delivery: Delivery[E]) -> None:
        """Handle a delivery; four workers call it side by side, yet never two for one incident."""
        with self._arrived:
            self.seen.append(delivery.payload)
            self._arrived.notify_all()

    def read(self, subscription: Subscription[E]) -> None:
        """Iterate until the subscription is closed; asking for the next delivery acknowledges the last."""
        for delivery in subscription:
            self.note(delivery)

    def differences(self) -> list[str]:
        """How what was seen differs from what was expected, in words."""
        lane, _ = in_order(self.backend)
        return [f"{self.backend.value}, {self.name}: {words}" for words in differences(self.expected, self.seen, lane)]
