"""Which offset of a partition may be committed: the one below which all is settled. Pure.

A commit says "everything before this is done", so it may never jump over a message that is still
being handled (docs/design). It also says up to where its owner may deliver, before it does: who comes
after one that died knows by that which messages it may have died of (`notes`). A partition that is taken
away is marked ``gone``; what was delivered from it carries it along, and settling that later
commits nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from incident_messaging.backends.kafka.notes import CLEAN, Note

#: A partition's name: topic and number.
Place = tuple[str, int]


class Partition:
    """A partition for as long as it stays assigned.

    Attributes:
        place: Its topic and number.
        position: The offset that is accepted next, or a later one.
        committable: Everything below this offset is settled.
        sent: The offset of the last commit handed to the broker; -1 for none.
        confirmed: The offset of the last commit that the broker confirmed; -1 for none.
        leased: Nothing from this offset on may be delivered before another commit is confirmed.
        suspects: What is delivered below this offset was in the hands of an owner that died.
        starts: How often handlers were started on suspects that are not settled.
        gone: Whether it was taken away.
        size: Bytes delivered and not settled.
    """

    __slots__ = (
        "_head", "_leaving", "_marked", "_marks_confirmed", "_marks_sent", "_order", "_owner", "_sent_until",
        "_unsettled", "_window", "committable", "confirmed", "gone", "leased", "place", "position", "sent", "size",
        "starts", "suspects",
    )  # fmt: skip

    def __init__(
        self, place: Place, position: int, *, window: int | None = None, note: Note = CLEAN, owner: str = ""
    ) -> None:
        self.place = place
        self.position = self.committable = self._head = position
        self.gone = False
        self.size = 0
        self._order: deque[int] = deque()
        self._unsettled: set[int] = set()
        # Where nobody keeps a place there is nothing to commit, and all may be delivered.
        self._window = window
        self.sent = self.confirmed = position if window is None else -1
        self.leased: float = float("inf") if window is None else -1
        self.suspects = note.doubtful(owner)
        self.starts = dict(note.starts)
        self._owner = owner
        self._sent_until = -1
        self._leaving = False
        self._marked = self._marks_sent = self._marks_confirmed = 0

    @property
    def count(self) -> int:
        """Messages delivered and not settled."""
        return len(self._unsettled)

    def may_deliver(self, offset: int) -> bool:
        """Whether the broker has it in writing that an offset may be delivered; if not, that will be due."""
        if offset < self.leased:
            return True
        self._head = max(self._head, offset)  # holes in the offsets may be wider than the window
        return False

    def deliver(self, offset: int) -> None:
        """Note an offset as delivered; they come in rising order, with gaps."""
        self._order.append(offset)
        self._unsettled.add(offset)
        self._head = offset + 1
        self.position = max(self.position, offset + 1)  # more may have been accepted, and wait

    def settle(self, offset: int) -> bool:
        """Note an offset as settled; false if it was already, or never delivered."""
        if offset not in self._unsettled:
            return False
        self._unsettled.remove(offset)
        if self.starts and self.starts.pop(offset, None) is not None:
            self._marked += 1  # at once: whoever ends the process now, it is not this one
        while self._order and self._order[0] not in self._unsettled:
            self.committable = self._order.popleft() + 1
        return True

    def mark(self, offset: int, starts: int) -> int:
        """Note how often a handler was started on a suspect; `is_marked` says when that is stored."""
        if starts:
            self.starts[offset] = starts
        else:
            self.starts.pop(offset, None)
        self._marked += 1
        return self._marked

    def is_marked(self, mark: int) -> bool:
        """Whether the broker has confirmed a mark."""
        return self._marks_confirmed >= mark

    def jump(self, offset: int) -> None:
        """What lies before an offset is lost, and that is told: the group goes on from there."""
        self._order.clear()
        self._unsettled.clear()
        self.position = self._head = self.committable = offset
        self.sent = -1

    def leave(self) -> None:
        """Deliver nothing more: the next commit says that everything was given back."""
        self._leaving = True

    @property
    def due(self) -> bool:
        """Whether there is more to tell the broker than was sent."""
        return self._window is not None and (self.committable > self.sent or self.urgent)

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for the broker to be told: a delivery, a start, or the end."""
        if self._window is None:
            return False
        if self._leaving:
            return self._sent_until != 0
        # Two thirds of the window are left when it is moved on: time for the commit to come back.
        return self._marked > self._marks_sent or self._head + self._window * 2 // 3 > self._sent_until

    def commit(self) -> tuple[int, str]:
        """Offset and text of a commit, noted as sent."""
        assert self._window is not None
        self.sent = self.committable
        self._sent_until = 0 if self._leaving else max(self._head, self.committable) + self._window
        self._marks_sent = self._marked
        suspects = self.suspects if self.suspects > self.committable else 0
        return self.sent, Note(self._owner, self._sent_until, suspects, self.starts).text()

    def committed(self, offset: int) -> None:
        """The broker has confirmed the last commit that was sent."""
        self.confirmed = max(self.confirmed, offset)
        self.leased = self._sent_until
        self._marks_confirmed = self._marks_sent

    def not_committed(self) -> None:
        """The broker has not: it is due again."""
        self.sent = self.confirmed
        self._sent_until = -1
        self._marks_sent = self._marks_confirmed


class Delivered(Protocol):
    """What a delivered message is settled by."""

    @property
    def partition(self) -> Partition:
        """Its partition, as it was assigned then."""

    @property
    def offset(self) -> int:
        """Its place there."""

    @property
    def size(self) -> int:
        """Its bytes, as the credit counts them."""


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

    def assign(
        self, place: Place, position: int, *, window: int | None = None, note: Note = CLEAN, owner: str = ""
    ) -> Partition:
        """Begin a partition at a position; without a ``window`` nothing is ever committed of it."""
        self.revoke(place)
        partition = self._partitions[place] = Partition(place, position, window=window, note=note, owner=owner)
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

    def deliver(self, message: Delivered) -> None:
        """Note a message as delivered."""
        partition, size = message.partition, message.size
        partition.deliver(message.offset)
        partition.size += size
        self.count += 1
        self.size += size

    def settle(self, message: Delivered) -> bool:
        """Note a message as settled; false if it was already, or its partition is gone."""
        partition, size = message.partition, message.size
        if partition.gone or not partition.settle(message.offset):
            return False
        partition.size -= size
        self.count -= 1
        self.size -= size
        self.settled += 1
        return True

    def take_due(self) -> list[Partition]:
        """The partitions with more to tell the broker than was sent; each is to be committed now."""
        due = [partition for partition in self._partitions.values() if partition.due]
        if due:
            self.settled = 0
        return due

    def leave(self) -> None:
        """Deliver nothing more of any partition."""
        for partition in self._partitions.values():
            partition.leave()

    @property
    def has_due(self) -> bool:
        """Whether some partition has more to tell the broker than was sent."""
        return any(partition.due for partition in self._partitions.values())

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for the broker to be told."""
        return any(partition.urgent for partition in self._partitions.values())

    @property
    def stored(self) -> bool:
        """Whether the broker has confirmed a place for every partition."""
        return all(partition.confirmed >= 0 for partition in self._partitions.values())
