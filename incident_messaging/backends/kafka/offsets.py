"""Which offset of a partition may be committed: the one below which all is settled. Pure.

A commit says "everything before this is done", so it may never jump over a message that is still
being handled (docs/design). A partition that is taken away is marked ``gone``; what was delivered
from it carries it in its token, and settling that later commits nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

#: A partition's name: topic and number.
Place = tuple[str, int]


class Partition:
    """A partition for as long as it stays assigned.

    Attributes:
        place: Its topic and number.
        position: The offset that is delivered next, or a later one.
        committable: Everything below this offset is settled.
        sent: The offset of the last commit handed to the broker; -1 for none.
        confirmed: The offset of the last commit that the broker confirmed; -1 for none.
        gone: Whether it was taken away.
        size: Bytes delivered and not settled.
    """

    __slots__ = ("_order", "_unsettled", "committable", "confirmed", "gone", "place", "position", "sent", "size")

    def __init__(self, place: Place, position: int, *, stored: bool) -> None:
        self.place = place
        self.position = self.committable = position
        self.sent = self.confirmed = position if stored else -1
        self.gone = False
        self.size = 0
        self._order: deque[int] = deque()
        self._unsettled: set[int] = set()

    @property
    def count(self) -> int:
        """Messages delivered and not settled."""
        return len(self._unsettled)

    def deliver(self, offset: int) -> None:
        """Note an offset as delivered; they come in rising order, with gaps."""
        self._order.append(offset)
        self._unsettled.add(offset)
        self.position = offset + 1

    def settle(self, offset: int) -> bool:
        """Note an offset as settled; false if it was already, or never delivered."""
        if offset not in self._unsettled:
            return False
        self._unsettled.remove(offset)
        while self._order and self._order[0] not in self._unsettled:
            self.committable = self._order.popleft() + 1
        return True


class Token(NamedTuple):
    """What a delivered message is settled by."""

    partition: Partition
    offset: int
    size: int


class Ledger:
    """The partitions of a consumer, and what is out of them; not thread-safe.

    Attributes:
        count: Messages delivered and not settled, of all partitions.
        size: The same in bytes.
        settled: Messages settled since `take_due` last returned something.
    """

    def __init__(self) -> None:
        self._partitions: dict[Place, Partition] = {}
        self.count = 0
        self.size = 0
        self.settled = 0

    def assign(self, place: Place, position: int, *, stored: bool) -> Partition:
        """Begin a partition at a position; ``stored`` says that the broker has that place already."""
        self.revoke(place)
        partition = self._partitions[place] = Partition(place, position, stored=stored)
        return partition

    def revoke(self, place: Place) -> Partition | None:
        """End a partition and give back its credit; ``None`` if it was not ours."""
        partition = self._partitions.pop(place, None)
        if partition is not None:
            partition.gone = True
            self.count -= partition.count
            self.size -= partition.size
        return partition

    def get(self, place: Place) -> Partition | None:
        """The partition of that name, if it is ours."""
        return self._partitions.get(place)

    def partitions(self) -> Iterable[Partition]:
        """All partitions that are ours."""
        return self._partitions.values()

    def deliver(self, token: Token) -> None:
        """Note a message as delivered."""
        token.partition.deliver(token.offset)
        token.partition.size += token.size
        self.count += 1
        self.size += token.size

    def settle(self, token: Token) -> bool:
        """Note a message as settled; false if it was already, or its partition is gone."""
        partition = token.partition
        if partition.gone or not partition.settle(token.offset):
            return False
        partition.size -= token.size
        self.count -= 1
        self.size -= token.size
        self.settled += 1
        return True

    def take_due(self) -> list[Partition]:
        """The partitions with more to commit than was sent, marked as sent."""
        due = [partition for partition in self._partitions.values() if partition.committable > partition.sent]
        for partition in due:
            partition.sent = partition.committable
        if due:
            self.settled = 0
        return due

    @property
    def has_due(self) -> bool:
        """Whether some partition has more to commit than was sent."""
        return any(partition.committable > partition.sent for partition in self._partitions.values())

    @property
    def stored(self) -> bool:
        """Whether the broker has confirmed a place for every partition."""
        return all(partition.confirmed >= 0 for partition in self._partitions.values())
