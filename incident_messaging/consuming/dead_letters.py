"""The dead letters of a service, for those who look into them: list, redrive, purge.

They are read where they lie, without a place in any group, so looking changes nothing. A dead letter
leaves by being put back (`DeadLetters.redrive`) or thrown away (`DeadLetters.purge`), and only when the
broker has confirmed that: what is interrupted in between is done again, and can be repeated as it is.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Unpack

import attrs

from incident_messaging import topics
from incident_messaging.backends.base import Archive
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.connections import Connections
from incident_messaging.consuming.graves import BODY_CUT, kept_headers
from incident_messaging.consuming.letters import Choice, DeadLetter, Filter, kept_text, read_letter
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, ConfigurationError, MessagingError
from incident_messaging.metrics import Meter
from incident_messaging.publishing.outlet import Outlet
from incident_messaging.record import Received, Record

#: Dead letters that are put back, or taken out, before the next are looked at.
_CHUNK = 100
#: Errors that a report keeps; the rest is counted.
_ERRORS = 100


@attrs.frozen(kw_only=True)
class DeadLetterReport:
    """What a redrive or a purge did.

    Attributes:
        matched: How many dead letters were chosen.
        done: How many of them were put back, or thrown away; in a dry run, would be.
        skipped: How many were left as they are, by the reason.
        failed: How many a broker did not take, or not let go.
        errors: Why, the first hundred.
        dry_run: Whether nothing was done.
    """

    matched: int = 0
    done: int = 0
    skipped: Mapping[str, int] = attrs.field(factory=dict)
    failed: int = 0
    errors: Sequence[MessagingError] = ()
    dry_run: bool = False


@attrs.frozen
class _Found:
    """A dead letter as its user sees it, and as it came."""

    letter: DeadLetter
    received: Received


class DeadLetters:
    """See `MessagingService.dead_letters`. Every call may be made from any thread, and blocks.

    All calls choose by the same keywords: ``topic`` (the original one, without prefix; a wildcard is allowed),
    ``exception`` (a class, with or without its module), ``group``, ``since`` (given up at that time or later, an
    aware datetime), ``limit`` (how many at most) and ``backend`` (which of two brokers; ``None`` is every one).

    Raises:
        BackendUnavailable: Disabled or closed.
        ConfigurationError: A keyword is not allowed, or nothing keeps dead letters here (core NATS).
        ConnectionFailed: No broker has ever answered.
        Timeout: A broker has stopped answering.
        SubscribeFailed: A broker does not allow to look (``denied``).
    """

    def __init__(self, config: MessagingConfig, connections: Connections, meter: Meter) -> None:
        self._config = config
        self._connections = connections
        self._meter = meter
        self._topic = topics.full_name(config.topic_prefix, config.dlq_topic)
        self._patience = config.subscribe_timeout_ms / 1000

    def list(self, **choice: Unpack[Choice]) -> Iterator[DeadLetter]:
        """The dead letters that are there now, read as they are asked for; keywords and errors as the class."""
        wanted = Filter.of(choice)
        outlets = self._outlets(wanted)
        return (found.letter for found in islice(self._all(outlets, wanted), wanted.limit))

    def redrive(
        self,
        *,
        to: MessagingBackend | str | None = None,
        every_group: bool = False,
        max_redrives: int = 2,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Callable[[DeadLetterReport], object] | None = None,
        **choice: Unpack[Choice],
    ) -> DeadLetterReport:
        """Put dead letters back on their own topic, for the group that gave them up.

        Each leaves the dead letters when the broker has acknowledged it. What is interrupted may be called
        again as it is: a JetStream on which they lay stores what it had already once (within
        ``duplicate_window_secs``), Kafka, and a JetStream to which they go from Kafka, twice at worst.

        Args:
            to: The broker to put them on, of two; ``None`` is where each lies.
            every_group: Whether all groups are to handle it again, not only the one that gave it up.
            max_redrives: One that was put back so often already is left.
            rate: How many a second at most; ``None`` is as fast as it goes.
            dry_run: Only count.
            progress: Called after each chunk with the report so far.
            choice: The keywords of the class.

        Raises:
            MessagingError: As the class; what single messages met is in the report.
        """
        wanted = Filter.of(choice)
        if rate is not None and not Deadline.seconds(rate, "rate"):
            raise ConfigurationError(f"rate {rate!r} is not allowed: more than 0 a second")
        target = self._connections.outlet(self._connections.chosen(to)[0]) if to is not None else None
        job = _Redrive(self, target, every_group=every_group, most=max_redrives, rate=rate)
        return self._run(job, wanted, dry_run=dry_run, progress=progress)

    def purge(
        self,
        *,
        dry_run: bool = False,
        progress: Callable[[DeadLetterReport], object] | None = None,
        **choice: Unpack[Choice],
    ) -> DeadLetterReport:
        """Throw dead letters away.

        JetStream deletes them. Kafka deletes the beginning of a log only: others are marked as removed, not
        shown any more, and deleted once all before them are gone.

        Args:
            dry_run: Only count.
            progress: Called after each chunk with the report so far.
            choice: The keywords of the class.

        Raises:
            MessagingError: As the class.
        """
        return self._run(_Purge(), Filter.of(choice), dry_run=dry_run, progress=progress)

    # -- inside -----------------------------------------------------------------------------------

    def send(self, outlet: Outlet, records: Sequence[Record]) -> Sequence[MessagingError | None]:
        """Publish, and wait for every outcome."""
        outcomes: dict[int, MessagingError | None] = {}
        changed = threading.Condition()

        def told(index: int, error: MessagingError | None) -> None:
            with changed:
                outcomes[index] = error
                changed.notify_all()

        deadline = Deadline.after(self._config.publish_timeout_ms / 1000)
        for index, record in enumerate(records):
            outlet.broker.send(record, deadline, lambda _p, _d, error, index=index: told(index, error))  # type: ignore[misc]
        with changed:
            changed.wait_for(lambda: len(outcomes) == len(records))
        return [outcomes[index] for index in range(len(records))]

    def count(self, letter: DeadLetter) -> None:
        """One was put back."""
        self._meter.redriven(letter.topic or "", letter.backend.value)

    def _outlets(self, wanted: Filter) -> Sequence[Outlet]:
        if not self._config.enabled:
            raise BackendUnavailable("Messaging disabled", code="disabled")
        return [self._connections.outlet(one) for one in self._connections.chosen(wanted.backend)]

    def _archive(self, outlet: Outlet) -> Archive:
        outlet.broker.connect(Deadline.after(self._config.connect_timeout_ms / 1000))
        return outlet.broker.archive(self._topic, self._patience)

    def _all(self, outlets: Sequence[Outlet], wanted: Filter) -> Iterator[_Found]:
        for outlet in outlets:
            with closing(self._archive(outlet)) as archive:
                yield from self._matching(archive, outlet, wanted)

    def _matching(self, archive: Archive, outlet: Outlet, wanted: Filter) -> Iterator[_Found]:
        for received in archive.read():
            letter = read_letter(received, outlet.backend, self._config.topic_prefix)
            if wanted.takes(letter):
                yield _Found(letter, received)

    def _run(
        self,
        job: _Redrive | _Purge,
        wanted: Filter,
        *,
        dry_run: bool,
        progress: Callable[[DeadLetterReport], object] | None,
    ) -> DeadLetterReport:
        report = DeadLetterReport(dry_run=dry_run)
        for outlet in self._outlets(wanted):
            with closing(self._archive(outlet)) as archive:
                found = self._matching(archive, outlet, wanted)
                left = None if wanted.limit is None else wanted.limit - report.matched
                for chunk in _chunks(islice(found, left)):
                    report = self._step(job, archive, outlet, chunk, report)
                    if progress is not None:
                        progress(report)
        return report

    @staticmethod
    def _step(
        job: _Redrive | _Purge, archive: Archive, outlet: Outlet, chunk: Sequence[_Found], report: DeadLetterReport
    ) -> DeadLetterReport:
        skipped = dict(report.skipped)
        fit = []
        for found in chunk:
            if (reason := job.refuses(found.letter)) is None:
                fit.append(found)
            else:
                skipped[reason] = skipped.get(reason, 0) + 1
        errors: list[MessagingError] = []
        if not report.dry_run and fit:
            fit, errors = job.do(outlet, fit)
            archive.remove([found.received for found in fit])
        return attrs.evolve(
            report,
            matched=report.matched + len(chunk),
            done=report.done + len(fit),
            skipped=skipped,
            failed=report.failed + len(errors),
            errors=[*report.errors, *errors][:_ERRORS],
        )


class _Purge:
    """What a purge does with a chunk before it is taken out: nothing."""

    def refuses(self, _letter: DeadLetter) -> str | None:
        return None

    def do(self, _outlet: Outlet, chunk: list[_Found]) -> tuple[list[_Found], list[MessagingError]]:
        return chunk, []


class _Redrive:
    """What a redrive does with a chunk before it is taken out: publish it."""

    def __init__(
        self, letters: DeadLetters, target: Outlet | None, *, every_group: bool, most: int, rate: float | None
    ) -> None:
        self._letters = letters
        self._target = target
        self._every_group = every_group
        self._most = most
        self._rate = rate
        self._pause = threading.Event()  # never set: a wait that Ctrl-C ends

    def refuses(self, letter: DeadLetter) -> str | None:
        if letter.original_topic is None:
            return "no x-dlq-original-topic: it was not given up by this SDK"
        if not topics.is_name(letter.original_topic):  # whoever wrote it, it goes into a command to the broker
            return "x-dlq-original-topic is no topic's name"
        if letter.redrive_count >= self._most:
            return f"redriven {letter.redrive_count} times already"
        if letter.body_cut:
            return f"its body was cut to fit into a dead letter ({BODY_CUT}): the rest of the message is not there"
        return None

    def do(self, outlet: Outlet, chunk: list[_Found]) -> tuple[list[_Found], list[MessagingError]]:
        target = self._target or outlet
        size = len(chunk) if self._rate is None else 1
        done: list[_Found] = []
        errors: list[MessagingError] = []
        for at in range(0, len(chunk), size):
            part = chunk[at : at + size]
            outcomes = self._letters.send(target, [self._record(found, target, outlet) for found in part])
            for found, error in zip(part, outcomes, strict=True):
                if error is None:
                    done.append(found)
                    self._letters.count(found.letter)
                else:
                    errors.append(error.about(topic=found.letter.topic))
            if self._rate is not None:
                self._pause.wait(1 / self._rate)
        return done, errors

    def _record(self, found: _Found, target: Outlet, source: Outlet) -> Record:
        letter, received = found.letter, found.received
        assert letter.original_topic is not None
        count = letter.redrive_count + 1
        headers = {"x-redrive-count": str(count)}
        if letter.group and not self._every_group:
            headers["x-redrive-group"] = letter.group
        same = target is source  # else the raw form is another broker's, and so is the id
        letter_id = received.fallback_id if same else secrets.token_hex(16)
        return Record(
            topic=letter.original_topic,
            body=letter.body,
            key=letter.key,
            headers=headers if same else kept_text(received) | headers,
            raw_headers=kept_headers(received.raw_headers) if same else (),
            dedup_id=f"{letter_id}:r{count}",
        )


def _chunks(found: Iterator[_Found]) -> Iterator[list[_Found]]:
    while chunk := list(islice(found, _CHUNK)):
        yield chunk
