"""One publish over one broker or two: a place in the window, the outcome, the receipt."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import attrs

from incident_messaging.backends.base import MessageProducer
from incident_messaging.config import MessagingBackend
from incident_messaging.deadline import Deadline, now
from incident_messaging.envelope import MessageEnvelope
from incident_messaging.errors import BackendUnavailable, MessagingError, Timeout
from incident_messaging.metrics import Meter
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


class Window:
    """How much may be on its way to one broker, by messages and bytes. One message is always let in."""

    def __init__(self, messages: int, size: int) -> None:
        self._messages = messages
        self._size = size
        self._in_flight = 0
        self._bytes = 0
        self._waiting = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """How many are on their way."""
        return self._in_flight

    def acquire(self, size: int, deadline: Deadline) -> bool:
        """Take a place for so many bytes; false if there was none by the deadline."""
        with self._changed:
            while not self._room(size):
                left = deadline.left()
                if left is not None and left <= 0:
                    return False
                self._waiting += 1
                try:
                    self._changed.wait(left)
                finally:
                    self._waiting -= 1
            self._in_flight += 1
            self._bytes += size
            return True

    def release(self, size: int) -> None:
        """Give a place back."""
        with self._changed:
            self._in_flight -= 1
            self._bytes -= size
            if self._waiting:
                self._changed.notify_all()

    def wait_empty(self, deadline: Deadline) -> bool:
        """Whether nothing is on its way, by the deadline at the latest."""
        with self._changed:
            self._waiting += 1
            try:
                return self._changed.wait_for(lambda: not self._in_flight, deadline.left())
            finally:
                self._waiting -= 1

    def _room(self, size: int) -> bool:
        if not self._in_flight:
            return True
        return self._in_flight < self._messages and self._bytes + size <= self._size


@attrs.frozen(eq=False)
class Outlet:
    """A broker as publishing sees it."""

    backend: MessagingBackend
    broker: MessageProducer
    window: Window


class Publication:
    """One message on its way to its brokers.

    Guarantees: ``finished`` is called exactly once, without a lock held, by the deadline plus 0.1 s.
    """

    def __init__(
        self,
        envelope: MessageEnvelope[Any],
        topic: str,
        outlets: Sequence[Outlet],
        *,
        require: Literal["all", "any"],
        meter: Meter,
        later: Callable[[Callable[[], Any], float], None],
        finished: Callable[[Publication], None],
    ) -> None:
        self._envelope = envelope
        self._topic = topic
        self._outlets = outlets
        self._any = require == "any" and len(outlets) > 1
        self._meter = meter
        self._later = later
        self._finished = finished
        self._lock = threading.Lock()
        self._open = len(outlets)
        self._over = False
        self._results: dict[MessagingBackend, BrokerResult] = {}

    def start(self, record: Record, size: int, block: Deadline, deadline: Deadline) -> None:
        """Take places for ``size`` bytes in the windows by ``block``, and hand over.

        Raises:
            BackendUnavailable: A window stayed full (with ``any``: both did); nothing was handed over.
        """
        admitted = self._admitted(size, block)
        full = [outlet for outlet in self._outlets if outlet not in admitted]
        if full and not (self._any and admitted):
            _let_go(admitted, size)
            raise self._refusal(full[0])
        for outlet in full:
            self._settle(outlet, BrokerResult(state="failed", error=self._refusal(outlet)))
        begun = now()
        for outlet in admitted:
            outlet.broker.send(record, deadline, partial(self._done, outlet, size, begun))

    def _admitted(self, size: int, block: Deadline) -> Sequence[Outlet]:
        """Those whose window had a place in time, which is taken."""
        admitted: list[Outlet] = []
        try:
            for outlet in self._outlets:
                if outlet.window.acquire(size, block):
                    admitted.append(outlet)
        except BaseException:  # Ctrl-C while waiting
            _let_go(admitted, size)
            raise
        return admitted

    def receipt(self) -> PublishReceipt:
        """The receipt of what is finished.

        Raises:
            MessagingError: It was not acknowledged as ``publish_require`` asks.
        """
        results = self.outcomes()
        if (error := self.failure()) is not None:
            raise error
        good = [result for result in results.values() if result.state == "ok"]
        return PublishReceipt(
            message_id=self._envelope.metadata.message_id,
            topic=self._topic,
            results=results,
            duplicate=any(result.duplicate for result in good),
        )

    def failure(self) -> MessagingError | None:
        """Why it was not acknowledged as ``publish_require`` asks; ``None`` if it was."""
        with self._lock:
            good = sum(result.state == "ok" for result in self._results.values())
        if good >= (1 if self._any else len(self._outlets)):
            return None
        return self._error(self.outcomes())

    def outcomes(self) -> dict[MessagingBackend, BrokerResult]:
        """What became of it on each broker so far."""
        with self._lock:
            return {
                outlet.backend: self._results.get(outlet.backend) or BrokerResult(state="pending")
                for outlet in self._outlets
            }

    def _refusal(self, outlet: Outlet) -> BackendUnavailable:
        error = BackendUnavailable(
            f"{outlet.broker.name}: the window of publishes in flight is full ({len(outlet.window):,} messages);"
            " wait longer (block), raise max_in_flight, or publish less",
            code="window_full",
            backend=outlet.broker.name,
            topic=self._topic,
            envelope=self._envelope,
        )
        self._meter.publish_failed(self._topic, outlet.broker.name, error)
        return error

    def _done(
        self,
        outlet: Outlet,
        size: int,
        begun: float,
        position: Position | None,
        duplicate: bool,
        error: MessagingError | None,
    ) -> None:
        if error is None:
            self._meter.published(self._topic, outlet.broker.name, size, now() - begun)
            result = BrokerResult(state="ok", position=position, duplicate=duplicate)
        else:
            self._meter.publish_failed(self._topic, outlet.broker.name, error)
            unknown = isinstance(error, Timeout) and error.maybe_delivered
            # One refusal of a connection may end many publishes: each tells of its own message.
            error = _own(error).about(topic=self._topic, envelope=self._envelope)
            result = BrokerResult(state="unknown" if unknown else "failed", error=error)
        outlet.window.release(size)
        self._settle(outlet, result)

    def _settle(self, outlet: Outlet, result: BrokerResult) -> None:
        with self._lock:
            self._results[outlet.backend] = result
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
            self._finished(self)

    def _error(self, results: Mapping[MessagingBackend, BrokerResult]) -> MessagingError:
        errors = [result.error for result in results.values() if result.error is not None]
        if len(results) == 1:
            errors[0].results = results
            return errors[0]
        error = copy.copy(errors[0])
        error.args = ("; ".join(f"{backend.value}: {_words(result)}" for backend, result in results.items()),)
        error.results = results
        error.__cause__ = errors[0]
        if isinstance(error, Timeout):
            error.maybe_delivered = any(result.state in ("ok", "unknown") for result in results.values())
        return error


def _let_go(admitted: Sequence[Outlet], size: int) -> None:
    for outlet in admitted:
        outlet.window.release(size)


def _own(error: MessagingError) -> MessagingError:
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


def _words(result: BrokerResult) -> str:
    return str(result.error) if result.error is not None else "acknowledged"
