"""How much of a subscription may be delivered and unsettled. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeVar

import attrs

from incident_messaging.backends.nats.wire import Message
from incident_messaging.record import Received

M = TypeVar("M", bound=Message)


@attrs.define
class Credit:
    """How much may be delivered and unsettled, and how much is."""

    messages: int
    bytes: int
    used: int = 0
    used_bytes: int = 0

    def has_room(self, size: int) -> bool:
        """Whether a message of so many bytes may be delivered; one always may."""
        return not self.used or (self.used < self.messages and self.used_bytes + size <= self.bytes)

    def take(self, arrivals: deque[M]) -> list[M]:
        """The first of what has arrived, as far as it may be delivered; it counts as delivered."""
        taken = []
        while arrivals and self.has_room(arrivals[0].size) and arrivals[0].known:
            message = arrivals.popleft()
            self.used += 1
            self.used_bytes += message.size
            taken.append(message)
        return taken

    def give_back(self, settled: Iterable[Received]) -> None:
        """Messages are settled."""
        for message in settled:
            self.used -= 1
            self.used_bytes -= message.size
