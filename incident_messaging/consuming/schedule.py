"""Which message may be handed out next: keys in order, delays, hands. Pure; the caller locks.

A key is *held* while one of its messages is in somebody's hand or waits for its next attempt. What
arrives for a held key steps aside and comes back when the key is free; everything else goes on.
Several messages of one key may be in one hand (a batch), since they were handed out in order.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Set
from typing import Any

from incident_messaging.record import Received

#: Where an entry is. An entry that is settled is in no schedule any more.
READY, HANDED, WAITING, BURIED, SETTLED = "ready", "handed", "waiting", "buried", "settled"


class Hand:
    """Who has been handed something: one worker thread, or one thread that iterates.

    Attributes:
        entries: What it was handed last.
        thread: The thread's number, once it has taken something.
    """

    __slots__ = ("entries", "thread")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.thread = 0


class Entry:
    """A message that is not settled yet.

    Attributes:
        received: What the broker handed over.
        order: Its place in the broker's order.
        key: What holds it back, or ``None``.
        arrived: When it came, on the monotonic clock.
        attempt: How often it was handed to a handler, by processes that died too as far as that is known.
        state: ``READY``, ``HANDED``, ``WAITING``, ``BURIED`` (its dead letter is on its way) or ``SETTLED``.
        hand: Who has it, while it holds its key for that.
        since: When it was handed out, on the monotonic clock.
        due: When its delay ends, while it waits.
        grave: What its dead letter needs, once it was given up.
        lost: Whether it is no longer ours (Kafka: revoked) while a hand still has it.
    """

    __slots__ = (
        "arrived", "attempt", "due", "grave", "hand", "key", "lost", "order", "received", "since", "state",
    )  # fmt: skip

    def __init__(self, received: Received, order: int, arrived: float) -> None:
        self.received = received
        self.order = order
        self.key = received.key
        self.arrived = arrived
        self.attempt = received.starts
        self.state = READY
        self.hand: Hand | None = None
        self.since = 0.0
        self.due = 0.0
        self.grave: Any = None
        self.lost = False


class _Lane:
    """A key that is held: by a hand, by waiting messages, or by those that stepped aside."""

    __slots__ = ("aside", "hand", "in_hand", "next", "waiting")

    def __init__(self) -> None:
        self.hand: Hand | None = None
        self.in_hand = 0
        self.waiting: list[Entry] = []
        self.aside: deque[Entry] = deque()
        self.next: Entry | None = None  # came back from aside, and stands in front of all others

    def lets(self, entry: Entry, hand: Hand) -> bool:
        first = entry is self.next or (self.next is None and not self.aside)
        return first and not self.behind(entry) and self.hand in (None, hand)

    def behind(self, entry: Entry) -> bool:
        """Whether an earlier message of the key waits for its next attempt."""
        return any(waiting.order < entry.order for waiting in self.waiting)

    def overtakes(self, entry: Entry) -> bool:
        """Whether an earlier message of the key has stepped aside."""
        aside = self.next or (self.aside[0] if self.aside else None)
        return aside is not None and aside.order < entry.order

    def drop(self, entries: Set[Entry]) -> None:
        """Forget entries that are no longer ours."""
        self.waiting = [entry for entry in self.waiting if entry not in entries]
        self.aside = deque(entry for entry in self.aside if entry not in entries)
        if self.next in entries:
            self.next = None


class Schedule:
    """The unsettled messages of one subscription, in the order in which they may be handed out."""

    def __init__(self) -> None:
        self._ready: deque[Entry] = deque()
        self._delayed: list[tuple[float, int, Entry]] = []
        self._lanes: dict[str, _Lane] = {}
        self._spare: list[_Lane] = []  # most keys are held for one message: a lane for each would be much to make
        self._all: dict[int, Entry] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many messages are not settled."""
        return len(self._all)

    @property
    def waiting(self) -> int:
        """How many wait for their next attempt."""
        return len(self._delayed)

    @property
    def runnable(self) -> bool:
        """Whether anything stands ready; it may still step aside when taken."""
        return bool(self._ready)

    def oldest(self) -> Entry | None:
        """The unsettled message that came first."""
        return next(iter(self._all.values()), None)

    def handed(self) -> list[Entry]:
        """What is in hands now."""
        return [entry for entry in self._all.values() if entry.state == HANDED]

    def next_due(self) -> float | None:
        """When the first delay ends, on the monotonic clock."""
        return self._delayed[0][0] if self._delayed else None

    def add(self, batch: Iterable[Received], now: float) -> None:
        """Take what arrived, in the broker's order."""
        for received in batch:
            self._count += 1
            entry = Entry(received, self._count, now)
            self._all[entry.order] = entry
            self._ready.append(entry)

    def take(self, now: float, hand: Hand, most: int) -> list[Entry]:
        """Hand out at most so many: first those whose delay is over, then in the broker's order.

        A suspect is handed out by itself.
        """
        taken: list[Entry] = []
        while self._delayed and self._delayed[0][0] <= now and len(taken) < most:
            if taken and not _joins(self._delayed[0][2], taken):
                break
            entry = heapq.heappop(self._delayed)[2]
            if self._end_delay(entry, hand, more=len(taken) + 1 < most):
                taken.append(entry)
        ready = self._ready
        while ready and len(taken) < most and (not taken or _joins(ready[0], taken)):
            entry = ready.popleft()
            if entry.key is None or self._may_go(entry, hand, more=len(taken) + 1 < most):
                taken.append(entry)
        for entry in taken:
            entry.state = HANDED
            entry.hand = hand
            entry.since = now
        return taken

    def delay(self, entry: Entry, due: float, *, hold: bool = True) -> None:
        """Put a handed-out entry back until ``due``; with ``hold`` it goes on holding its key."""
        if entry.key is not None and hold:
            self._lanes.setdefault(entry.key, _Lane()).waiting.append(entry)
        self.let_go(entry)
        if not hold:
            entry.key = None
        entry.state = WAITING
        entry.due = due
        heapq.heappush(self._delayed, (due, entry.order, entry))

    def let_go(self, entry: Entry) -> None:
        """The hand has moved on: the key is free for others, the entry may still be unsettled."""
        hand, entry.hand = entry.hand, None
        if hand is None or entry.key is None or (lane := self._lanes.get(entry.key)) is None:
            return
        lane.in_hand -= 1
        if not lane.in_hand:
            lane.hand = None
            self._wake(entry.key, lane)

    def settle(self, entry: Entry) -> None:
        """The entry is done with."""
        self.let_go(entry)
        entry.state = SETTLED
        self._all.pop(entry.order, None)

    def forget(self, gone: Callable[[Received], bool]) -> int:
        """Drop what is no longer ours; what a hand has is only marked as lost. How many were dropped."""
        theirs = [entry for entry in self._all.values() if gone(entry.received)]
        for entry in theirs:
            entry.lost = True
        dropped = {entry for entry in theirs if entry.state in (READY, WAITING)}
        for entry in dropped:
            entry.state = SETTLED
            del self._all[entry.order]
        self._ready = deque(entry for entry in self._ready if entry not in dropped)
        self._delayed = [item for item in self._delayed if item[2] not in dropped]
        heapq.heapify(self._delayed)
        for key, lane in list(self._lanes.items()):
            lane.drop(dropped)
            self._wake(key, lane)
        return len(dropped)

    def _may_go(self, entry: Entry, hand: Hand, *, more: bool) -> bool:
        """Whether the entry's key lets it go; if not, it has stepped aside."""
        assert entry.key is not None
        lane = self._lanes.get(entry.key)
        if lane is None:
            lane = self._lanes[entry.key] = self._spare.pop() if self._spare else _Lane()
            lane.hand, lane.in_hand = hand, 1
            return True
        if not lane.lets(entry, hand):
            if entry is lane.next:
                lane.next = None
                lane.aside.appendleft(entry)
            else:
                lane.aside.append(entry)
            return False
        if entry is lane.next:
            lane.next = None
        self._give(lane, hand)
        if more:
            self._bring_back(lane)
        return True

    def _end_delay(self, entry: Entry, hand: Hand, *, more: bool) -> bool:
        """Whether an entry whose delay is over may go; if not, it waits for another of its key."""
        if entry.key is None:
            return True
        lane = self._lanes[entry.key]
        first = min(lane.waiting, key=lambda waiting: waiting.order)
        if first is not entry:
            entry.due = first.due
            heapq.heappush(self._delayed, (entry.due, entry.order, entry))
            return False
        lane.waiting.remove(entry)
        if lane.hand not in (None, hand) or lane.overtakes(entry):  # of a batch that was in one hand
            self._stand_aside(entry, lane)
            self._wake(entry.key, lane)
            return False
        self._give(lane, hand)
        if more:
            self._bring_back(lane)
        return True

    def _stand_aside(self, entry: Entry, lane: _Lane) -> None:
        """Its delay is over, but its key is not free for it: it takes its place in the key's own order."""
        entry.state = READY
        if lane.next is not None:
            self._ready.remove(lane.next)
            lane.aside.appendleft(lane.next)
            lane.next = None
        lane.aside = deque(sorted([*lane.aside, entry], key=lambda one: one.order))

    @staticmethod
    def _give(lane: _Lane, hand: Hand) -> None:
        lane.hand = hand
        lane.in_hand += 1

    def _wake(self, key: str, lane: _Lane) -> None:
        if lane.hand is not None:
            return
        if lane.aside:
            self._bring_back(lane)
        if lane.next is None and not lane.aside and not lane.waiting and self._lanes.pop(key, None) is lane:
            self._spare.append(lane)

    def _bring_back(self, lane: _Lane) -> None:
        """The first that stepped aside stands in front again; the rest stay, or it would be O(n) each."""
        if lane.next is None and lane.aside and not lane.behind(lane.aside[0]):
            lane.next = lane.aside.popleft()
            self._ready.appendleft(lane.next)


def _joins(entry: Entry, taken: list[Entry]) -> bool:
    """Whether an entry may be handed out with those: a suspect is handed out by itself."""
    return not (entry.received.suspect or taken[0].received.suspect)
