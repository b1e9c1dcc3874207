"""What each thread was handed of a subscription that is iterated: asking for the next settles the last."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

from incident_messaging.consuming.delivery import Delivery
from incident_messaging.consuming.intake import Intake
from incident_messaging.consuming.schedule import Hand
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable

T = TypeVar("T")


class Hands(Generic[T]):
    """The hands that reach into an intake, one for each thread."""

    def __init__(self, intake: Intake[T]) -> None:
        self._intake = intake
        self._own = threading.local()

    def take(self, most: int, deadline: Deadline) -> list[Delivery[T]]:
        """Hand this thread at most so many; with ``auto_ack`` what it had is acknowledged first.

        Raises:
            MessagingError: As `Intake.hand_out`.
        """
        return self._intake.hand_out(self._hand(), most, deadline)

    def deliveries(self, timeout: float | None, limit: int | None) -> Iterator[Delivery[T]]:
        """Messages until none came for ``timeout`` seconds, or ``limit`` were handed out.

        Asking for the next acknowledges the last one (with ``auto_ack``); leaving the loop in any
        other way acknowledges nothing more and gives the last one back.
        """
        self._intake.check_open()
        handed, deadline = 0, Deadline.after(timeout)
        try:
            while limit is None or handed < limit:
                try:
                    if timeout is not None:
                        deadline = deadline.renewed(timeout)
                    batch = self._intake.hand_out(self._hand(), 1, deadline)
                except BackendUnavailable as error:
                    if error.code == "closed":
                        break  # by another thread, meanwhile
                    raise
                if not batch:
                    break
                handed += 1
                yield batch[0]
            self._intake.move_on(self._hand())
        finally:
            self._intake.give_back(self._hand())

    def ack(self) -> None:
        """Acknowledge what this thread was handed last."""
        self._intake.check_usable()
        self._intake.acknowledge(list(self._hand().entries))

    def nack(self, delay: float | None) -> None:
        """What this thread was handed last has failed."""
        self._intake.check_usable()
        self._intake.refuse(list(self._hand().entries), delay)

    def _hand(self) -> Hand:
        hand = getattr(self._own, "hand", None)
        if hand is None:
            hand = self._own.hand = Hand()
        return hand
