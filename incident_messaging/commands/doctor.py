"""``incident-messaging doctor``."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import click
from rich.console import Console
from rich.text import Text

from incident_messaging.commands.common import INTERRUPTED, Sources, configured, json_flag, printable
from incident_messaging.doctor import Finding, Scope, Severity, broken, examine, exit_code
from incident_messaging.errors import ConfigurationError

__all__ = ["doctor"]

_STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.BROKEN: "bold red", Severity.NOT_DONE: "dim"}
_WIDTH = max(len(severity.value) for severity in Severity)


@click.command()
@configured
@click.option(
    "--topic", "topics", multiple=True, help="Topic or pattern that the service uses; else all with the prefix."
)
@click.option(
    "--role",
    type=click.Choice(["both", "publisher", "consumer"]),
    default="both",
    show_default=True,
    help="What the service does, and so which rights it needs.",
)
@click.option("--metrics-url", metavar="URL", help="NATS: a worker's page of metrics, for how long handlers take.")
@click.option(
    "--probe",
    is_flag=True,
    help="Kafka: write two empty records, to a topic made for them and deleted again; only so its clock is known.",
)
@json_flag
def doctor(
    sources: Sources, topics: tuple[str, ...], role: str, metrics_url: str | None, probe: bool, as_json: bool
) -> None:
    """Check broker by broker what the promised guarantees need, and say what mends it.

    Connects as configured and reads: servers, versions, rights, streams and topics, groups, clocks. It changes
    nothing and leaves nothing behind. Rights are tried without being used: on NATS by messages that the server checks
    and drops (Nats-Trace-Only; its log has those that it refuses), on Kafka by asking, and by CreateTopics with
    validate_only. The oldest unread message of each group is read, without a place. Only --probe writes.

    Exit code: 0 if all is well, 1 with warnings, 2 if something is broken, the configuration included.
    """
    scope = Scope(
        topics=topics,
        publishes=role != "consumer",
        subscribes=role != "publisher",
        metrics_url=metrics_url,
        probe=probe,
    )
    tell = _Page() if not as_json else None
    found = []
    try:
        with _quiet():
            for finding in _findings(sources, scope):
                found.append(finding)
                if tell is not None:
                    tell.line(finding)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    code = exit_code(finding.severity for finding in found)
    if tell is not None:
        tell.end(found)
    else:
        click.echo(json.dumps({"exit_code": code, "findings": [_as_fields(finding) for finding in found]}))
    sys.exit(code)


def _findings(sources: Sources, scope: Scope) -> Iterator[Finding]:
    """All findings; a configuration that is not allowed, or cannot be looked at, is the only one."""
    why = "no service comes up with it"
    try:
        config = sources.load()
        why = "nothing was looked at"
        yield from examine(config, scope)
    except ConfigurationError as error:
        wrong = broken(str(error), "the setting or option that the text names", why)
        yield attrs.evolve(wrong, check="configuration")


@contextmanager
def _quiet() -> Iterator[None]:
    """What is logged meanwhile is in the findings, in better words."""
    log = logging.getLogger("incident_messaging")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


class _Page:
    """Findings for people, each as soon as it is made."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False)

    def line(self, finding: Finding) -> None:
        """One finding: a line, and below it why it matters and what mends it."""
        style = _STYLES[finding.severity]
        where = f"{finding.backend} {finding.check}".strip()
        self._console.print(
            Text(f"{finding.severity.value:<{_WIDTH}}", style), Text(printable(f"{where}: {finding.what}"))
        )
        if finding.severity in (Severity.OK, Severity.NOT_DONE):
            if finding.remedy:
                self._below("ask by", finding.remedy)
            return
        self._below("why", finding.why)
        self._below("mend", finding.remedy)

    def end(self, found: list[Finding]) -> None:
        """How many there are of each."""
        counts = Counter(finding.severity for finding in found)
        self._console.print(Text(", ".join(f"{counts[severity]} {severity.value}" for severity in Severity)))

    def _below(self, label: str, text: str) -> None:
        self._console.print(Text(" " * (_WIDTH + 1) + f"{label}: ", "dim"), Text(printable(text)), sep="")


def _as_fields(finding: Finding) -> dict[str, str]:
    return {**attrs.asdict(finding), "severity": finding.severity.value}
