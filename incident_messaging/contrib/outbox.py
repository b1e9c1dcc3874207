"""The relay of a transactional outbox, whatever stands behind it (see ``docs/decisions/0012-outbox.rst``).

Messages are rows that the application has written in its own transactions. A `Relay` publishes them and deletes
what a broker has acknowledged. ``contrib.sqlalchemy`` and ``contrib.django.outbox`` bring tables and stores.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol, Self

import attrs
import prometheus_client

from incident_messaging import metrics
from incident_messaging.contrib.outbox_rows import read
from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import BackendUnavailable, ConfigurationError, MessagingError
from incident_messaging.handlers import signalled
from incident_messaging.publishing.publication import PublishReceipt
from incident_messaging.publishing.publisher import Message
from incident_messaging.service import MessagingService

__all__ = ["Entry", "Relay", "Store"]

log = logging.getLogger("incident_messaging.outbox")

#: The longest pause in seconds while nothing can be published.
LONGEST_PAUSE = 5.0

#: Seconds at the beginning in which a configuration that no broker can be had with shows itself.
_CHECK_SECS = 2.0

#: Codes after which no round of this relay can succeed.
_FINAL = frozenset({"closed", "disabled", "forked", "loop_thread"})

RELAYED = prometheus_client.Counter("messaging_outbox_relayed_total", "Messages of the outbox that were acknowledged")
PARKED = prometheus_client.Counter("messaging_outbox_parked_total", "Messages of the outbox that were put aside")
AGE = prometheus_client.Gauge(
    "messaging_outbox_age_seconds",
    "Age of the oldest message that waits in the outbox, where this relay is active",
    multiprocess_mode="livemax",
)


@attrs.frozen(kw_only=True)
class Entry:
    """A message that waits in an outbox.

    Attributes:
        id: Larger than that of every message written before it, and never used twice.
        topic: Without the prefix.
        key: What keeps its order, or ``None``.
        body: The envelope as bytes.
        headers: The user's, as a JSON object.
        created_at: When it was written, in Unix seconds.
    """

    id: int
    message_id: str
    topic: str
    key: str | None
    body: bytes
    headers: str
    created_at: float

    @classmethod
    def of(cls, row: Any, created_at: datetime) -> Self:
        """The message of a row, which has the other fields as attributes."""
        names = ("id", "message_id", "topic", "key", "headers")
        fields = {name: getattr(row, name) for name in names}
        return cls(**fields, body=bytes(row.body), created_at=created_at.timestamp())


class Store(Protocol):
    """The tables behind a relay. Each method is one short transaction of its own.

    Attributes:
        errors: What the methods raise when the database cannot be had; the relay tries again.
    """

    errors: tuple[type[Exception], ...]

    def acquire(self, owner: str, seconds: float) -> bool:
        """Make or keep ``owner`` the one whose relay is active; false if another is and its time is not over."""

    def release(self, owner: str) -> None:
        """Let another relay be active, if this one is."""

    def oldest(self, limit: int) -> Sequence[Entry]:
        """The messages with the lowest ids that are not parked, in order."""

    def delete(self, ids: Sequence[int]) -> None:
        """Delete messages in one statement; those that are gone are passed over."""

    def park(self, entry_id: int, error: str) -> None:
        """Put a message aside, with the reason."""

    def rest(self) -> None:
        """Called between rounds: let go of connections that are broken or too old."""


@attrs.define
class _Round:
    """What became of one look at the outbox."""

    read: int = 0
    done: list[int] = attrs.field(factory=list)
    stuck: set[str | None] = attrs.field(factory=set)
    waits: int = 0
    error: Exception | None = None
    final: MessagingError | None = None

    def wait(self, entry: Entry, error: Exception) -> None:
        """A message stays, and with it what follows of its key."""
        self.waits += 1
        self.error = error
        if entry.key is not None:
            self.stuck.add(entry.key)


class _Meter:
    """Counts, unless metrics are off. The lock is asked for anew each time: a fork may replace it."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled

    def relayed(self, count: int) -> None:
        if self._enabled:
            with metrics.LOCK:
                RELAYED.inc(count)

    def parked(self) -> None:
        if self._enabled:
            with metrics.LOCK:
                PARKED.inc()

    def oldest(self, age: float) -> None:
        if self._enabled:
            with metrics.LOCK:
                AGE.set(max(0.0, age))


class Relay:
    """Publishes what an outbox holds, at least once, the first time in order per key.

    Several processes may run one on the same outbox: one is active, the others stand by.

    Args:
        store: The outbox.
        service: Where to publish; closed by whoever made it.
        batch_size: How many messages are read at a time.
        poll_interval: Seconds between looks at an outbox that was empty.
        lease_secs: Seconds after which another relay takes over from one that died. The clocks of hosts that
            run relays must agree to within this time.

    Raises:
        ConfigurationError: A number is not allowed.
    """

    def __init__(
        self,
        store: Store,
        service: MessagingService,
        *,
        batch_size: int = 500,
        poll_interval: float = 0.5,
        lease_secs: float = 15.0,
    ) -> None:
        if not 1 <= batch_size <= 10_000:
            raise ConfigurationError(f"batch_size {batch_size!r} is not allowed: 1 to 10,000")
        for name, value in {"poll_interval": poll_interval, "lease_secs": lease_secs}.items():
            if Deadline.seconds(value, name) <= 0:
                raise ConfigurationError(f"{name} {value!r} is not allowed: more than 0 seconds")
        self._store = store
        self._service = service
        self._batch_size = batch_size
        self._poll_interval = poll_interval
        self._lease_secs = lease_secs
        self._token = uuid.uuid4().hex[:12]
        self._meter = _Meter(enabled=service.config.enable_metrics)
        self._held: tuple[str, float] | None = None
        self._pause = poll_interval
        self._trouble = ""

    def run(self, until: threading.Event) -> None:
        """Relay until the event is set; then the lease is given back.

        A broker or database that cannot be had is waited for, for ever.

        Raises:
            ConfigurationError: The configuration is wrong, or the broker too old; no message is to blame.
            BackendUnavailable: The service is closed or disabled.
        """
        self._check()
        try:
            while not until.is_set():
                until.wait(self._pause_after(self._attempt(until)))
        finally:
            self._let_go()

    def run_until_signal(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Relay until a signal comes; for the main thread. The handlers that the signals had are put back.

        Raises:
            ConfigurationError: This is not the main thread, or as `run`.
            BackendUnavailable: The service is closed or disabled.
        """
        with signalled(signals) as stop:
            self.run(stop)

    def run_once(self) -> int:
        """Look once, publish what is there (a batch at most), and return how many were acknowledged.

        0 also where another relay is active. The lease is kept; `release` gives it back.

        Raises:
            MessagingError: As `run`.
        """
        return len(self._round(threading.Event()).done)

    def release(self) -> None:
        """Let another relay be active at once."""
        self._forget_lease()
        self._store.release(self._owner)

    # -- one round --------------------------------------------------------------------------------

    @property
    def _owner(self) -> str:
        return f"{socket.gethostname()[:80]}-{os.getpid()}-{self._token}"

    def _check(self) -> None:
        """Raise what would be wrong with every message; a broker that is away is waited for later."""
        try:
            self._service.connect(_CHECK_SECS)
        except MessagingError as error:
            if _ends_relay(error):
                raise
            log.debug("outbox: no connection at the beginning: %s", error)

    def _round(self, until: threading.Event) -> _Round:
        if not self._service.config.enabled:
            raise BackendUnavailable("Messaging disabled: nothing can be relayed", code="disabled")
        round_ = _Round()
        if not self._hold():
            return round_
        entries = self._store.oldest(self._batch_size)
        round_.read = len(entries)
        self._meter.oldest(time.time() - entries[0].created_at if entries else 0.0)
        try:
            for wave in _waves(entries):
                if until.is_set() or not self._hold():
                    break
                self._publish(wave, round_)
        finally:
            if round_.done:
                self._store.delete(round_.done)
                self._meter.relayed(len(round_.done))
        return round_

    def _hold(self) -> bool:
        """Whether this relay is the active one; asked of the database a few times in each lease."""
        owner, asked_at = self._owner, now()
        if self._held is not None and self._held[0] == owner and asked_at - self._held[1] <= self._lease_secs / 4:
            return True
        if self._store.acquire(owner, self._lease_secs):
            self._held = owner, asked_at
            return True
        self._forget_lease()
        return False

    def _forget_lease(self) -> None:
        self._held = None
        self._meter.oldest(0.0)

    def _publish(self, wave: Sequence[Entry], round_: _Round) -> None:
        """Hand over one message of each key, and wait until each has an end."""
        sent = []
        window_full = False
        for entry in wave:
            if entry.key in round_.stuck or window_full:
                round_.stuck.add(entry.key)
                continue
            future = self._send(entry)
            if future is not None:
                sent.append((entry, future))
                window_full = future.done() and getattr(future.exception(), "code", "") == "window_full"
        for entry, future in sent:
            self._settle(entry, self._outcome(future), round_)
        if round_.final is not None:
            raise round_.final

    def _send(self, entry: Entry) -> Future[PublishReceipt] | None:
        """Nothing where the message itself is wrong, which is put aside."""
        try:
            envelope, headers = read(entry.body, entry.headers)
            self._service._prepare(Message(entry.topic, envelope, key=entry.key, headers=headers))
        except MessagingError as error:
            self._park(entry, error)
            return None
        try:
            return self._service.publish_nowait(
                entry.topic, envelope, key=entry.key, headers=headers, block=self._lease_secs / 4
            )
        except MessagingError as error:
            failed: Future[PublishReceipt] = Future()
            failed.set_exception(error)
            return failed

    def _outcome(self, future: Future[PublishReceipt]) -> BaseException | None:
        """Of a publish; the lease is kept while it is waited for."""
        while True:
            try:
                return future.exception(self._lease_secs / 4)
            except TimeoutError:
                with suppress(*self._store.errors):  # the end of the round meets them again
                    self._hold()

    def _settle(self, entry: Entry, error: BaseException | None, round_: _Round) -> None:
        if error is None:
            round_.done.append(entry.id)
        elif not isinstance(error, MessagingError):
            raise error
        elif all(each.code == "too_large" for each in _answers(error)):
            self._park(entry, error)
        else:
            round_.wait(entry, error)
            round_.final = round_.final or next(filter(_ends_relay, _answers(error)), None)

    def _park(self, entry: Entry, error: MessagingError) -> None:
        self._store.park(entry.id, f"{type(error).__name__} ({error.code}): {error}")
        self._meter.parked()
        log.error("outbox: message %s to %s is put aside: %s", entry.message_id, entry.topic, error)

    # -- between rounds ---------------------------------------------------------------------------

    def _attempt(self, until: threading.Event) -> _Round:
        try:
            self._store.rest()
            round_ = self._round(until)
        except self._store.errors as error:
            self._forget_lease()
            round_ = _Round(error=error)
        self._tell(round_)
        return round_

    def _tell(self, round_: _Round) -> None:
        """One line in the log when trouble begins or becomes another, and when it is over."""
        trouble = f"{type(round_.error).__name__} {getattr(round_.error, 'code', '')}" if round_.error else ""
        if trouble and trouble != self._trouble:
            log.warning("outbox: waits, and tries again: %s", round_.error)
        elif self._trouble and not trouble:
            log.info("outbox: goes on")
        self._trouble = trouble

    def _pause_after(self, round_: _Round) -> float:
        """Seconds; none where there is more to do, ever longer ones while nothing works."""
        if round_.error is not None and not round_.done:
            pause, self._pause = self._pause, min(self._pause * 2, max(LONGEST_PAUSE, self._poll_interval))
            return pause
        self._pause = self._poll_interval
        return 0.0 if round_.read == self._batch_size and not round_.waits else self._poll_interval

    def _let_go(self) -> None:
        try:
            self.release()
        except self._store.errors as error:
            log.warning("outbox: the lease is not given back, and runs out: %s", error)
        try:
            self._store.rest()
        except self._store.errors:
            log.debug("outbox: closing a connection", exc_info=True)


def _answers(error: MessagingError) -> Sequence[MessagingError]:
    """What each broker said that did not take a message; the error itself where none was asked."""
    return [result.error for result in error.results.values() if result.error is not None] or [error]


def _ends_relay(error: MessagingError) -> bool:
    """Whether it would be the same for every message, for ever."""
    return isinstance(error, ConfigurationError) or error.code in _FINAL


def _waves(entries: Sequence[Entry]) -> Sequence[Sequence[Entry]]:
    """Each key at most once in a wave, in order over the waves; what has no key is in the first."""
    waves: list[list[Entry]] = []
    depths = Counter[str]()
    for entry in entries:
        depth = 0
        if entry.key is not None:
            depth = depths[entry.key]
            depths[entry.key] += 1
        if depth == len(waves):
            waves.append([])
        waves[depth].append(entry)
    return waves
