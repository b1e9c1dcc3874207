"""``incident-messaging dlq``: the dead letters, looked into, put back, thrown away."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import Any

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from incident_messaging.commands.common import (
    Number,
    Sources,
    backend_option,
    configured,
    connected,
    json_flag,
    moment,
    printable,
)
from incident_messaging.commands.messages import body_fields
from incident_messaging.config import MessagingBackend
from incident_messaging.consuming.dead_letters import DeadLetterReport
from incident_messaging.consuming.letters import DeadLetter
from incident_messaging.service import MessagingService

__all__ = ["dlq"]


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose dead letters, given to the command as one mapping."""

    @click.option("--topic", help="Original topic, without prefix; * and > are wildcards.")
    @click.option("--exception", help="Class of what the last attempt raised, with or without its module.")
    @click.option("--group", help="Who gave it up.")
    @click.option(
        "--since", callback=moment, metavar="TIME", help="Given up at or after: 30m, 2h, 7d ago, or ISO 8601."
    )
    @click.option("--limit", type=click.IntRange(min=0), metavar="N", help="At most so many.")
    @backend_option("Which of two brokers.")
    @wraps(command)
    def with_filters(
        topic: str | None, exception: str | None, group: str | None, since: datetime | None,
        limit: int | None, backend: MessagingBackend | None, **options: Any,
    ) -> None:  # fmt: skip
        command(
            filters={
                "topic": topic, "exception": exception, "group": group, "since": since, "limit": limit,
                "backend": backend,
            },
            **options,
        )  # fmt: skip

    return with_filters


@click.group()
@configured
@click.pass_context
def dlq(context: click.Context, sources: Sources) -> None:
    """Look into the dead letters, put them back, throw them away.

    Exit code: 0 if all went well; 1 if a broker cannot be had or a message failed; 2 for wrong usage.
    """
    context.obj = sources


@dlq.command("list")
@_filters
@configured
@json_flag
def list_(sources: Sources, filters: dict[str, Any], as_json: bool) -> None:
    """Show dead letters, a line each; looking changes nothing."""
    with connected(sources) as service:
        for letter in service.dead_letters.list(**filters):
            click.echo(_as_json(letter) if as_json else _line(letter))


@dlq.command()
@click.argument("position")
@configured
@json_flag
def show(sources: Sources, position: str, as_json: bool) -> None:
    """Show one dead letter in full; POSITION is what `list` begins its line with."""
    with connected(sources) as service:
        letter = next((one for one in service.dead_letters.list() if str(one.position) == position), None)
        if letter is None:
            click.echo(f"Error: there is no dead letter at {position}", err=True)
            sys.exit(1)
        click.echo(_as_json(letter) if as_json else _page(letter))


@dlq.command()
@_filters
@backend_option("The broker to put them on, of two.", "--to")
@click.option("--every-group", is_flag=True, help="Let all groups handle them again, not only who gave them up.")
@click.option(
    "--max-redrives", type=click.IntRange(min=1), default=2, show_default=True, help="Leave one after so many."
)
@click.option("--rate", type=Number(0.001, 1_000_000), metavar="N", help="At most so many a second.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@configured
@json_flag
def redrive(sources: Sources, filters: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Put dead letters back on their topic, for the group that gave them up.

    One leaves only when the broker has acknowledged it: what is interrupted is simply run again.
    """
    with connected(sources) as service, _progress("redriven", service, filters) as progress:
        report = service.dead_letters.redrive(**filters, **options, progress=progress)
    _tell("redriven", report, as_json)


@dlq.command()
@_filters
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@configured
@json_flag
def purge(sources: Sources, filters: dict[str, Any], as_json: bool, dry_run: bool, yes: bool) -> None:
    """Throw dead letters away; without filters, all of them."""
    with connected(sources) as service:
        if not (dry_run or yes):
            count = service.dead_letters.purge(**filters, dry_run=True).matched
            click.confirm(f"throw away {count:,} dead letters?", abort=True, err=True)
        with _progress("purged", service, filters) as progress:
            report = service.dead_letters.purge(**filters, dry_run=dry_run, progress=progress)
    _tell("purged", report, as_json)


@contextmanager
def _progress(
    what: str, service: MessagingService, filters: dict[str, Any]
) -> Iterator[Callable[[DeadLetterReport], object] | None]:
    """A bar where stderr is a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        total = service.dead_letters.purge(**filters, dry_run=True).matched
        task = bar.add_task(what, total=total)
        yield lambda report: bar.update(task, completed=report.matched)


def _tell(what: str, report: DeadLetterReport, as_json: bool) -> None:
    """The report, and exit code 1 if something failed."""
    if as_json:
        click.echo(json.dumps({**attrs.asdict(report), "errors": [str(error) for error in report.errors]}))
    else:
        would = "would be " if report.dry_run else ""
        click.echo(f"{report.matched:,} matched, {report.done:,} {would}{what}")
        for reason, count in report.skipped.items():
            click.echo(f"{count:,} left: {reason}")
        if report.failed:
            click.echo(f"{report.failed:,} failed")
    for error in report.errors:
        click.echo(f"Error: {printable(str(error))}", err=True)
    if report.failed:
        sys.exit(1)


def _line(letter: DeadLetter) -> str:
    when = "-" if letter.failed_at is None else letter.failed_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    why = f"{letter.exception_type}: {letter.exception_message}".replace("\n", " ")
    return printable(
        f"{letter.position}  {when}  {letter.topic or '-'}  {letter.group or '-'}"
        f"  {letter.attempts} attempts, {letter.redrive_count} redrives  {why:.120}"
    )


def _page(letter: DeadLetter) -> str:
    fields = _fields(letter)
    texts = (fields.pop("stacktrace"), fields.pop("body"))
    lines = [printable(f"{name}: {value}") for name, value in fields.items()]
    return "\n".join([*lines, "", *(printable(line) for text in texts for line in text.split("\n"))])


def _as_json(letter: DeadLetter) -> str:
    return json.dumps(_fields(letter))


def _fields(letter: DeadLetter) -> dict[str, Any]:
    return {
        "position": str(letter.position),
        "backend": letter.backend.value,
        "topic": letter.topic,
        "original": str(letter.original),
        "group": letter.group,
        "key": letter.key,
        "headers": dict(letter.headers),
        "attempts": letter.attempts,
        "failed_at": None if letter.failed_at is None else letter.failed_at.isoformat(),
        "redrive_count": letter.redrive_count,
        "exception_type": letter.exception_type,
        "exception_message": letter.exception_message,
        "stacktrace": letter.stacktrace,
        "body_cut": letter.body_cut,
        **body_fields(letter.body),
    }
