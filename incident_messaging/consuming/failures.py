"""What follows when a message was not handled: another attempt, a dead letter, or its end."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

from incident_messaging.consuming.bell import Bell
from incident_messaging.consuming.breaker import Breaker
from incident_messaging.consuming.delivery import Reject, Retry
from incident_messaging.consuming.graves import Grave, dead_letter, shed
from incident_messaging.consuming.plan import Plan
from incident_messaging.consuming.schedule import BURIED, HANDED, Entry, Schedule
from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import ConsumeFailed, MessagingError, PublishFailed, SerializationError

log = logging.getLogger("incident_messaging")

#: Seconds between attempts to store a dead letter.
BURIAL_DELAY = 1.0


class Failures:
    """Decides under the subscription's lock what follows a failure, and acts on it outside.

    Guarantees: a message that is given up is settled only when its dead letter is acknowledged; a
    dead letter makes no dead letter of its own; one that cannot be stored is tried once a second.
    """

    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        changed: Bell,
        *,
        acknowledge: Callable[[Entry], None],
        end: Callable[[MessagingError], None],
    ) -> None:
        self._plan = plan
        self._schedule = schedule
        self._changed = changed
        self._acknowledge = acknowledge
        self._end = end
        self._breaker = Breaker(plan.retry)
        self._warned = False
        #: Whether a message may ever leave without having been handled.
        self._gives_up = plan.dead_letters or plan.group is None
        #: Whether one that leaves so goes to the dead letters (a broadcast's is only counted).
        self._buries = plan.dead_letters and plan.group is not None
        #: How many dead letters are on their way.
        self.burying = 0

    def fail(self, entry: Entry, error: BaseException) -> None:
        """A handed-out entry has failed; one that was settled since is passed over."""
        delay = self._delay(entry, error)
        with self._changed:
            if entry.state != HANDED:
                return
            if entry.lost:  # another owner has it by now
                self._schedule.settle(entry)
                return
            broken = delay is None and self._buries and self._breaker.breaks()
            if broken:
                pass  # it stays unsettled, and is given back when the subscription ends
            elif delay is not None:
                self._schedule.delay(entry, now() + delay, hold=not self._is_dead_letter(entry))
            elif self._buries:
                entry.grave = Grave.of(error, entry.attempt)
            else:
                self._schedule.settle(entry)
            self.wake()
        self._report(entry, error, delay)
        if broken:
            self._end(self._bad_deploy(error))
        elif delay is None:
            self._give_up(entry)

    def ends_here(self, entry: Entry) -> bool:
        """Whether processes that died have used up a suspect's attempts, and it can go to the dead letters."""
        used_up = 0 < entry.received.starts == entry.attempt >= self._plan.retry.max_attempts
        return used_up and self._buries and not self._is_dead_letter(entry)

    def handled(self, count: int) -> None:
        """So many entries that a handler saw were acknowledged. Under the lock."""
        if self._breaker.watches:
            self._breaker.handled(count)

    def _bad_deploy(self, error: BaseException) -> ConsumeFailed:
        failed = ConsumeFailed(
            f"{self._breaker} (breaker_share {self._plan.retry.breaker_share}), the last one for"
            f" {type(error).__name__}: {error}; mend the handler and subscribe again, nothing is lost",
            code="breaker",
            backend=self._plan.broker.name,
        )
        failed.__cause__ = error
        return failed

    def _delay(self, entry: Entry, error: BaseException) -> float | None:
        """Seconds until the next attempt; ``None`` if there is none."""
        policy = self._plan.retry
        given_up = isinstance(error, Reject) or not policy.retries(entry.attempt, error)
        if given_up and (self._is_dead_letter(entry) or not self._gives_up):
            return policy.max_delay_secs
        if given_up:
            return None
        if isinstance(error, Retry) and error.delay is not None:
            return max(0.0, error.delay)
        return policy.delay(entry.attempt, random.random)

    def _is_dead_letter(self, entry: Entry) -> bool:
        return entry.received.topic == self._plan.dlq_topic

    def _report(self, entry: Entry, error: BaseException, delay: float | None) -> None:
        backend, topic = self._plan.broker.name, self._label(entry)
        self._plan.meter.consume_failed(topic, backend, type(error).__name__)
        if delay is not None:
            self._plan.meter.retried(topic, backend)
        if isinstance(error, SerializationError) and not self._gives_up:
            text = f"message at {entry.received.position} cannot be decoded, and enable_dlq is False: {error}"
            failed = ConsumeFailed(text, code="undecodable", backend=backend)
            failed.__cause__ = error
            self._end(failed)
        elif self._plan.dead_letters or self._plan.group is None:
            what = "given up" if delay is None else f"again in {delay:.1f} s"
            at = entry.received.position
            kind = type(error).__name__
            words = "%s: attempt %d at %s failed (%s), %s"
            fields = self._log_fields(entry)
            log.warning(words, self._plan.name, entry.attempt, at, kind, what, exc_info=error, extra=fields)
        elif not self._warned:
            self._warned = True
            log.warning("%s: %r; enable_dlq is False, failing messages are tried for ever", self._plan.name, error)

    def _give_up(self, entry: Entry) -> None:
        if self._buries:
            self.bury(entry)
        else:
            self._acknowledge(entry)

    def bury(self, entry: Entry) -> None:
        """Send the dead letter; only its acknowledgement settles the original."""
        grave, plan = entry.grave, self._plan
        with self._changed:
            entry.state = BURIED
            self.burying += 1
        if grave.record is None:
            grave.record = dead_letter(
                entry.received, grave, topic=plan.dlq_topic, group=self._plan.group or "", backend=plan.broker.name
            )
        plan.broker.send(
            grave.record,
            Deadline.after(plan.burial_timeout),
            lambda _position, _duplicate, error: self._buried(entry, error),  # a duplicate is of an earlier try here
        )

    def _buried(self, entry: Entry, error: MessagingError | None) -> None:
        smaller = None
        if isinstance(error, PublishFailed) and error.code == "too_large":
            smaller = shed(entry.grave.record)
        with self._changed:
            self.burying -= 1
            if error is None or entry.lost:
                self._schedule.settle(entry)
            else:
                entry.grave.record = smaller or entry.grave.record
                self._schedule.delay(entry, now() + (0.0 if smaller else BURIAL_DELAY))
            self._changed.notify_all()
        if error is None:
            self._plan.meter.buried(self._label(entry), self._plan.broker.name)
            self._acknowledge(entry)
        elif smaller is None and not entry.grave.told:
            entry.grave.told = True
            words = "%s: a dead letter could not be stored, its original stays: %s"
            log.error(words, self._plan.name, error, extra=self._log_fields(entry))

    def wake(self) -> None:
        """Somebody may go on, now that a key is free or nothing is left. Under the lock."""
        if not self._changed.awaited:
            return
        if not len(self._schedule):
            self._changed.notify_all()
        elif self._schedule.runnable or self._schedule.waiting:
            self._changed.notify()

    def _log_fields(self, entry: Entry) -> dict[str, Any]:
        """What a line tells besides its text, under the names of ``context.LogFields``."""
        headers = entry.received.headers
        fields = {
            "message_id": headers.get("x-message-id"),
            "correlation_id": headers.get("x-correlation-id"),
            "topic": self._label(entry),
            "group": self._plan.group,
            "attempt": entry.attempt,
            "backend": self._plan.broker.name,
        }
        return {name: value for name, value in fields.items() if value is not None}  # the filter may know better

    def _label(self, entry: Entry) -> str:
        return self._plan.short(entry.received.topic)
