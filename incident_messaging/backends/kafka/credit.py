"""How much of what came may be out, and what waits until it may.

At most ``prefetch`` messages are delivered and unsettled. What polls bring beyond it, ten messages a second, waits in
an overflow, and when that is full too the partitions are paused. Pausing late is on purpose: it throws away what
librdkafka has fetched already, and after it nothing comes for up to a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Message

from incident_messaging.backends.base import ConsumerSpec
from incident_messaging.backends.kafka.offsets import Ledger, Partition
from incident_messaging.backends.kafka.records import Arrival

#: Messages that wait beyond the credit before partitions are paused: those of most of a minute.
OVERFLOW = 500


class Credit:
    """`acknowledge` is for any thread, without a lock; all else is the consumer's, which guards the ledger by its lock.

    Attributes:
        held: Whether what came waits for a commit that allows to deliver it.
        hungry: How many acknowledgements the thread waits for, to have room; 0 where it does not.
    """

    def __init__(self, ledger: Ledger, spec: ConsumerSpec) -> None:
        self.held = False
        self.hungry = 0
        self._ledger = ledger
        self._messages = spec.prefetch
        self._bytes = spec.prefetch_bytes
        self._wanted = 1  # bytes of the next message that waits for room
        self._acknowledged: deque[Arrival] = deque()  # not noted in the ledger yet
        self._overflow: deque[Arrival] = deque()
        self._overflow_size = 0

    def acknowledge(self, batch: Iterable[Arrival]) -> bool:
        """Note messages as settled, without a lock; whether the thread waits for that and is to be woken."""
        self._acknowledged.extend(batch)
        return 0 < self.hungry <= len(self._acknowledged)

    def settle(self) -> None:
        """Bring into the ledger what was acknowledged meanwhile. Under the lock."""
        for _ in range(len(self._acknowledged)):
            self._ledger.settle(self._acknowledged.popleft())

    def room(self) -> int:
        """How many messages may be delivered now, going by their number; none if the next is too large for now."""
        self.settle()
        ledger = self._ledger
        if ledger.count and ledger.size + self._wanted > self._bytes:
            return 0
        return max(0, self._messages - ledger.count)

    def accept(self, message: Message[Any, Any], partition: Partition) -> None:
        """Take in what came of a partition, unless it came before."""
        offset = message.offset()
        if offset is None or offset < partition.position:
            return
        arrival = Arrival(message, partition.place[0], offset, partition)
        partition.position = offset + 1
        self._overflow.append(arrival)
        self._overflow_size += arrival.size

    def take(self) -> list[Arrival]:
        """What may be delivered, noted as delivered."""
        taken = []
        self.held = False
        ledger, self._wanted = self._ledger, 1
        while self._overflow and ledger.count < self._messages:
            arrival = self._overflow[0]
            partition, offset = arrival.partition, arrival.offset
            if ledger.count and ledger.size + arrival.size > self._bytes:
                self._wanted = arrival.size
                break
            if not partition.may_deliver(offset):
                self.held = True
                break
            if offset < partition.suspects:
                arrival.suspect, arrival.starts = True, partition.starts.get(offset, 0)
            self._overflow.popleft()
            self._overflow_size -= arrival.size
            ledger.deliver(arrival)
            taken.append(arrival)
        return taken

    def drop_gone(self) -> None:
        """Forget what came from partitions that were taken away."""
        self._overflow = deque(arrival for arrival in self._overflow if not arrival.partition.gone)
        self._overflow_size = sum(arrival.size for arrival in self._overflow)

    @property
    def waiting(self) -> int:
        """How many messages have come and may not be delivered yet."""
        return len(self._overflow)

    @property
    def is_full(self) -> bool:
        """Whether so much waits that no more is to come."""
        beyond = len(self._overflow) - max(0, self._messages - self._ledger.count)
        return beyond >= OVERFLOW or self._overflow_size >= self._bytes

    @property
    def is_low(self) -> bool:
        """Whether so little waits that more may come again."""
        return len(self._overflow) <= OVERFLOW // 2
