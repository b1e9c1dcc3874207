"""Whether the brokers are as the promises of delivery need them: checks, made one after another, and what they find.

The checks are the backends' own, which alone know a broker's words: ``checks`` is their table, ``checkup`` asks the
broker, ``findings`` judges the answers. Here stands what they share: what a finding is, how checks are run, and the
arithmetic of the configuration.
None of them changes anything on a broker: docs/decisions/0016-what-the-doctor-touches.rst.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from importlib import import_module, metadata
from typing import Any

import attrs

from incident_messaging import topics
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.errors import ConfigurationError, MessagingError

#: Seconds by which the clocks of a broker and of this machine may differ.
CLOCKS_APART_SECS = 2.0
#: The share of its retention that the oldest unread message may have behind it, and of its room that a stream may fill.
HALF, NEARLY = 0.5, 0.8
#: Delays that are added up one by one; by then they have grown as far as they do.
_MOST_DELAYS = 1_000
_NOBODY_KNOWS = "nobody knows whether what it looks at is good"


class Severity(Enum):
    """How bad a finding is."""

    OK = "ok"
    #: It works, and a promise falls with the next fault that has to be expected; or nobody could look.
    WARNING = "warning"
    #: Something does not work, or a promise is not kept as it is.
    BROKEN = "broken"
    #: Not looked at: what it rests on was not good, or it was not asked for.
    NOT_DONE = "not done"


@attrs.frozen(kw_only=True)
class Finding:
    """What a check has found.

    Attributes:
        severity: How bad it is.
        what: What was found, with its figures.
        remedy: The command or the setting that mends it; empty where all is well.
        why: Why it matters; that of the check, unless it says more.
        check: The check's name.
        backend: The broker's short name, or empty for the configuration.
    """

    severity: Severity
    what: str
    remedy: str = ""
    why: str = ""
    check: str = ""
    backend: str = ""


def ok(what: str) -> Finding:
    """All is well."""
    return Finding(severity=Severity.OK, what=what)


def warning(what: str, remedy: str, why: str = "") -> Finding:
    """It works, until a fault that has to be expected."""
    return Finding(severity=Severity.WARNING, what=what, remedy=remedy, why=why)


def broken(what: str, remedy: str, why: str = "") -> Finding:
    """It does not work, or a promise is not kept."""
    return Finding(severity=Severity.BROKEN, what=what, remedy=remedy, why=why)


def not_done(what: str, remedy: str = "") -> Finding:
    """Nobody looked."""
    return Finding(severity=Severity.NOT_DONE, what=what, remedy=remedy)


@attrs.frozen(kw_only=True)
class Scope:
    """What the service does that is asked about.

    Attributes:
        topics: Topics and patterns that it uses, without the prefix; none are all that there are with the prefix.
        publishes: Whether it publishes.
        subscribes: Whether it subscribes.
        metrics_url: Where a worker serves its metrics.
        probe: Whether records may be written, to a topic that is made for them and deleted again.
    """

    topics: tuple[str, ...] = ()
    publishes: bool = True
    subscribes: bool = True
    metrics_url: str | None = None
    probe: bool = False


@attrs.frozen(kw_only=True)
class Check:
    """One thing that is looked at.

    Attributes:
        name: Its name, as findings have it.
        asks: What is looked at, for the documentation.
        why: Why it matters.
        look: Looks, given the backend's `Checkup`. What it raises is a finding that something is broken.
        needs: Checks that must not be broken for this one to make sense.
    """

    name: str
    asks: str
    why: str
    look: Callable[[Any], Iterable[Finding]]
    needs: tuple[str, ...] = ()


class Checkup(ABC):
    """A broker as its checks see it: what is asked of it. Used by one thread.

    Attributes:
        config: How the broker is reached.
        scope: What is asked about.
    """

    def __init__(self, config: MessagingConfig, scope: Scope) -> None:
        """Begin, without I/O."""
        self.config = config
        self.scope = scope

    @property
    def used(self) -> Sequence[str]:
        """The topics and patterns that are asked about, with the prefix."""
        return [topics.full_pattern(self.config.topic_prefix, topic) for topic in self.scope.topics or (">",)]

    @property
    def dead_letters(self) -> str | None:
        """The topic of the dead letters, with the prefix, where it is written to."""
        if not (self.config.enable_dlq and self.scope.subscribes):
            return None
        return topics.full_name(self.config.topic_prefix, self.config.dlq_topic)

    @abstractmethod
    def explain(self, error: MessagingError) -> Finding:
        """What an error of the SDK means that a check has met."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the broker."""


def examine(config: MessagingConfig, scope: Scope) -> Iterator[Finding]:
    """Make all checks of the configured brokers, one after another; each finding as it is made.

    Raises:
        ConfigurationError: A topic or the URL of metrics is not allowed, or there is no broker to look at.
    """
    if config.backend is MessagingBackend.MEMORY:
        raise ConfigurationError("backend 'memory' is no broker: there is nothing to look at")
    for topic in scope.topics:
        topics.full_pattern(config.topic_prefix, topic)
    if scope.metrics_url is not None and "@" in scope.metrics_url:  # it stands in findings, and those in logs of CI
        raise ConfigurationError("--metrics-url holds a user or a password: pages of metrics are read without a login")
    both = (MessagingBackend.NATS, MessagingBackend.KAFKA)
    return _examine(config, scope, both if config.backend is MessagingBackend.BOTH else (config.backend,))


def _examine(config: MessagingConfig, scope: Scope, backends: Sequence[MessagingBackend]) -> Iterator[Finding]:
    if not config.enabled:
        off = warning("enabled is false", "enabled = true", "every publish succeeds, and does nothing")
        yield attrs.evolve(off, check="configuration")
    for backend in backends:
        checkup = _module(backend, "checkup").Checkup(config, scope)
        try:
            yield from run(checkup, checks_of(backend), backend.value)
        finally:
            checkup.close()


def checks_of(backend: MessagingBackend) -> Sequence[Check]:
    """A broker's checks, in their order; the client library is imported here."""
    checks: Sequence[Check] = _module(backend, "checks").CHECKS
    return checks


def _module(backend: MessagingBackend, name: str) -> Any:
    return import_module(f"incident_messaging.backends.{backend.value}.{name}")


def run(checkup: Checkup, checks: Iterable[Check], backend: str) -> Iterator[Finding]:
    """Make checks of a broker; one whose ground is missing is said to be not done."""
    missing: set[str] = set()
    for check in checks:
        ground = next((name for name in check.needs if name in missing), None)
        found = _look(check, checkup) if ground is None else [not_done(f"rests on the check {ground}")]
        for finding in found:
            if finding.severity in (Severity.BROKEN, Severity.NOT_DONE):
                missing.add(check.name)
            why = "" if finding.severity is Severity.OK else finding.why or check.why
            yield attrs.evolve(finding, check=check.name, backend=backend, why=why)


def _look(check: Check, checkup: Checkup) -> Iterator[Finding]:
    try:
        yield from check.look(checkup)
    except MessagingError as error:
        yield checkup.explain(error)
    except Exception as error:  # an answer that nobody foresaw; the checks that do not rest on it go on
        said = f"{type(error).__name__}: {error}"
        yield broken(f"the check itself failed: {said}", "report this line as a bug of the doctor", _NOBODY_KNOWS)


def exit_code(severities: Iterable[Severity]) -> int:
    """0 where all is well, 1 with warnings, 2 where something is broken."""
    return max((_CODES[severity] for severity in severities), default=0)


_CODES = {Severity.OK: 0, Severity.NOT_DONE: 0, Severity.WARNING: 1, Severity.BROKEN: 2}


# The arithmetic of the configuration.


def retries_secs(config: MessagingConfig) -> float:
    """Seconds that a message may wait between its attempts, all delays together."""
    policy = config.retry
    waits = policy.max_attempts - 1
    delays = [policy.delay(attempt, lambda: 1.0) for attempt in range(1, min(waits, _MOST_DELAYS) + 1)]
    return sum(delays) + (waits - len(delays)) * (delays[-1] if delays else 0.0)


def resend_secs(config: MessagingConfig) -> float:
    """Seconds within which the SDK by itself sends a message again whose acknowledgement did not come."""
    return config.publish_timeout_ms / 1000


def repeat_secs(config: MessagingConfig) -> float:
    """Seconds within which the same message is published again by who follows the documentation.

    Either by a caller who repeats what has timed out, once, or as the dead letter of a message whose process
    died before the original was settled: that is handed out again after ``ack_wait``, and tried anew.
    """
    again = config.nats.ack_wait_ms / 1000 + retries_secs(config)
    return max(2 * resend_secs(config), again if config.enable_dlq else 0.0)


def spoken(seconds: float) -> str:
    """A time for people: ``7 days``, ``2 hours``, ``45 s``."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


# What all brokers are asked alike.


def client_library(distribution: str) -> Iterator[Finding]:
    """Whether the installed client library is of the versions that the SDK is tested with."""
    try:
        installed = metadata.version(distribution)
        wanted = next(one for one in metadata.requires("incident-messaging") or () if _is_for(one, distribution))
    except (metadata.PackageNotFoundError, StopIteration) as exc:
        yield not_done(f"{distribution}: which versions are tested is not known ({exc})", "install incident-messaging")
        return
    bounds = dict(re.findall(r"(>=|<)\s*([\d.]+)", wanted))
    tested = ", ".join(f"{sign} {bound}" for sign, bound in sorted(bounds.items(), reverse=True))
    lowest, beyond = _numbers(bounds.get(">=", "0")), _numbers(bounds.get("<", "9999"))
    if lowest <= _numbers(installed) < beyond:
        yield ok(f"{distribution} {installed}; tested are {tested}")
    else:
        yield warning(
            f"{distribution} {installed} is not of the versions that are tested: {tested}",
            f'pip install "{distribution}{",".join(sign + bound for sign, bound in bounds.items())}"',
        )


def _is_for(requirement: str, distribution: str) -> bool:
    return re.match(r"[\w.-]+", requirement)[0] == distribution  # type: ignore[index]  # a requirement begins with a name


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))


def clock(backend: str, theirs: float, before: float, after: float) -> Finding:
    """What a broker's time says that was read between two of ours, all in Unix seconds."""
    apart = theirs - (before + after) / 2
    unsure = (after - before) / 2
    if abs(apart) - unsure <= CLOCKS_APART_SECS:
        return ok(f"the clocks are {abs(apart):.1f} s apart")
    which = "ahead of" if apart > 0 else "behind"
    return warning(
        f"the clock of {backend} is {spoken(abs(apart))} {which} that of this machine",
        "chronyc tracking    # on both machines: the one that is wrong is not synchronised",
    )
