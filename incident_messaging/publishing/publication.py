"""One publish over one broker or two: a place in the window, the outcome, the receipt."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import attrs

from incident_messaging.backends.base import Where, position
from incident_messaging.codec import MESSAGE_ID
from incident_messaging.config import MessagingBackend
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, MessagingError, Timeout
from incident_messaging.publishing.outlet import Leg, Outlet, Waiter
from incident_messaging.record import Position, Record

#: Seconds that ``publish_require="any"`` gives the second broker after the first said yes.
GRACE = 0.05


@attrs.frozen(kw_only=True)
class BrokerResult:
    """What became of a publish on one broker.

    Attributes:
        state: ``ok`` (acknowledged), ``failed`` (not stored), ``unknown`` (may be stored) or
            ``pending`` (not known when the call returned).
        position: Where the broker keeps it, if acknowledged.
        error: Why not, else ``None``.
        duplicate: Whether the broker had a message of this id already (JetStream).
    """

    state: Literal["ok", "failed", "unknown", "pending"]
    position: Position | None = None
    error: MessagingError | None = None
    duplicate: bool = False


@attrs.frozen(kw_only=True)
class PublishReceipt:
    """Says that a message is stored.

    Attributes:
        message_id: The id in the envelope.
        topic: The topic without the prefix.
        results: The outcome per broker; empty when messaging is disabled.
        duplicate: Whether a broker had it already and kept only the first.
    """

    message_id: str
    topic: str
    results: Mapping[MessagingBackend, BrokerResult]
    duplicate: bool = False


class Single(Leg):
    """One message to one broker: nearly every publish, so it is one object.

    Guarantees: as `Pair`.
    """

    __slots__ = ()

    def start(self, block: Deadline, deadline: Deadline) -> None:
        """Take a place in the window by ``block``, and hand over.

        Raises:
            BackendUnavailable: The window stayed full; nothing was handed over.
        """
        if not self.outlet.window.acquire(self.taken, block, deadline):
            raise _full(self)
        self.outlet.hand_over([self], deadline)

    def receipt(self) -> PublishReceipt:
        """The receipt, once it is finished.

        Raises:
            MessagingError: It was not acknowledged.
        """
        if (error := self.failure()) is not None:
            raise error
        message_id = self.headers[MESSAGE_ID]
        return _single_receipt(message_id, self.label, self.outlet.backend, self.where, self.duplicate)

    def failure(self) -> MessagingError | None:
        """Why it was not acknowledged; ``None`` if it was."""
        if self.error is None:
            return None
        self.error.results = self.outcomes()
        return self.error

    def outcome(self) -> MessagingError | Callable[[], PublishReceipt]:
        """The failure, or what makes the receipt and keeps no message alive."""
        if self.error is not None:
            return self.failure() or self.error
        message_id = self.headers[MESSAGE_ID]
        return partial(_single_receipt, message_id, self.label, self.outlet.backend, self.where, self.duplicate)

    def outcomes(self) -> dict[MessagingBackend, BrokerResult]:
        """What became of it."""
        return {self.outlet.backend: _result(self)}


def start_all(legs: Sequence[Single], deadline: Deadline, limit: float) -> Sequence[tuple[Single, BackendUnavailable]]:
    """Take places in the window of the broker that they all go to, and hand over in their order.

    Args:
        legs: All to one broker.
        deadline: For those that go first.
        limit: Seconds for each of those that had to wait for them.

    Returns:
        Those for which there was no place in time, with the error of each.
    """
    outlet, begun = legs[0].outlet, 0
    while begun < len(legs):
        admitted = outlet.window.acquire_some([leg.taken for leg in legs[begun:]], deadline)
        if not admitted:
            break
        outlet.hand_over(legs[begun : begun + admitted], deadline)
        begun += admitted
        deadline = deadline.renewed(limit)
    return [(leg, _full(leg)) for leg in legs[begun:]]


class Pair:
    """One message on its way to two brokers.

    Guarantees: its waiter is told exactly once, without a lock held, by the deadline plus 0.1 s.
    """

    def __init__(
        self,
        outlets: Sequence[Outlet],
        message: Any,
        record: Record,
        label: str,
        size: int,
        waiter: Waiter,
        index: int,
        *,
        require: Literal["all", "any"],
        later: Callable[[Callable[[], Any], float], None],
    ) -> None:
        self.index = index
        self._record = record
        self._label = label
        self._waiter = waiter
        self._any = require == "any"
        self._later = later
        self._legs = [_leg(outlet, message, record, label, size, self) for outlet in outlets]
        self._lock = threading.Lock()
        self._open = len(outlets)
        self._over = False
        self._results: dict[MessagingBackend, BrokerResult] = {}

    def start(self, block: Deadline, deadline: Deadline) -> None:
        """Take places in the windows by ``block``, and hand over.

        Raises:
            BackendUnavailable: A window stayed full (with ``any``: both did); nothing was handed over.
        """
        admitted = self._admitted(block, deadline)
        full = [leg for leg in self._legs if leg not in admitted]
        if full and not (self._any and admitted):
            _let_go(admitted)
            raise _full(full[0])
        for leg in full:
            self._settle(leg, BrokerResult(state="failed", error=_full(leg)))
        for leg in admitted:
            leg.outlet.hand_over([leg], deadline)

    def _admitted(self, block: Deadline, deadline: Deadline) -> Sequence[Leg]:
        """Those whose window had a place in time, which is taken; the first keeps its place while the second waits."""
        until = block if block.at is None or block.at > (deadline.at or 0.0) else deadline
        admitted: list[Leg] = []
        try:
            for leg in self._legs:
                if leg.outlet.window.acquire(leg.taken, block, until):
                    admitted.append(leg)
        except BaseException:  # Ctrl-C while waiting
            _let_go(admitted)
            raise
        return admitted

    def receipt(self) -> PublishReceipt:
        """The receipt of what is finished.

        Raises:
            MessagingError: It was not acknowledged as ``publish_require`` asks.
        """
        if (error := self.failure()) is not None:
            raise error
        return _receipt(self._record, self._label, self.outcomes())

    def failure(self) -> MessagingError | None:
        """Why it was not acknowledged as ``publish_require`` asks; ``None`` if it was."""
        results = self.outcomes()
        good = sum(result.state == "ok" for result in results.values())
        return None if good >= (1 if self._any else len(self._legs)) else _of_both(results)

    def outcome(self) -> MessagingError | Callable[[], PublishReceipt]:
        """The failure, or what makes the receipt."""
        return self.failure() or self.receipt

    def outcomes(self) -> dict[MessagingBackend, BrokerResult]:
        """What became of it on each broker so far."""
        with self._lock:
            known = dict(self._results)
        backends = [leg.outlet.backend for leg in self._legs]
        return {backend: known.get(backend) or BrokerResult(state="pending") for backend in backends}

    def finished(self, legs: Sequence[Leg]) -> None:
        """A leg has ended."""
        for leg in legs:
            self._settle(leg, _result(leg))

    def _settle(self, leg: Leg, result: BrokerResult) -> None:
        with self._lock:
            self._results[leg.outlet.backend] = result
            self._open -= 1
            last = not self._open
        if last:
            self._finish()
        elif self._any and result.state == "ok":
            self._later(self._finish, GRACE)

    def _finish(self) -> None:
        with self._lock:
            first, self._over = not self._over, True
        if first:
            self._waiter.finished([self])


Publication = Single | Pair


def _leg(outlet: Outlet, message: Any, record: Record, label: str, size: int, pair: Pair) -> Leg:
    """One of two, which carry the same."""
    leg = Leg(outlet, message, label, pair)
    leg.take(record)
    leg.taken = size
    return leg


def _single_receipt(
    message_id: str, topic: str, backend: MessagingBackend, where: Where | None, duplicate: bool
) -> PublishReceipt:
    result = BrokerResult(state="ok", position=position(where), duplicate=duplicate)
    return PublishReceipt(message_id=message_id, topic=topic, results={backend: result}, duplicate=duplicate)


def _receipt(record: Record, topic: str, results: Mapping[MessagingBackend, BrokerResult]) -> PublishReceipt:
    duplicate = any(result.duplicate for result in results.values() if result.state == "ok")
    message_id = record.headers[MESSAGE_ID]
    return PublishReceipt(message_id=message_id, topic=topic, results=results, duplicate=duplicate)


def _result(leg: Leg) -> BrokerResult:
    if leg.error is None:
        return BrokerResult(state="ok", position=leg.position, duplicate=leg.duplicate)
    unknown = isinstance(leg.error, Timeout) and leg.error.maybe_delivered
    return BrokerResult(state="unknown" if unknown else "failed", error=leg.error)


def _full(leg: Leg) -> BackendUnavailable:
    name = leg.outlet.broker.name
    error = BackendUnavailable(
        f"{name}: the window of publishes in flight is full ({len(leg.outlet.window):,} messages);"
        " wait longer (block), raise max_in_flight, or publish less",
        code="window_full",
        backend=name,
        topic=leg.label,
        envelope=leg.envelope,
    )
    leg.outlet.ledger.refused(leg.label, error)
    return error


def _of_both(results: Mapping[MessagingBackend, BrokerResult]) -> MessagingError:
    errors = [result.error for result in results.values() if result.error is not None]
    error = copy.copy(errors[0])
    error.args = ("; ".join(f"{backend.value}: {_words(result)}" for backend, result in results.items()),)
    error.results = results
    error.__cause__ = errors[0]
    if isinstance(error, Timeout):
        error.maybe_delivered = any(result.state in ("ok", "unknown") for result in results.values())
    return error


def _let_go(admitted: Sequence[Leg]) -> None:
    for leg in admitted:
        leg.outlet.window.release(1, leg.taken)


def _words(result: BrokerResult) -> str:
    return str(result.error) if result.error is not None else "acknowledged"
