"""``incident-messaging tail``: what is published, as it comes."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice

import click

from incident_messaging.commands.common import (
    MOST_SECONDS,
    Number,
    Sources,
    backend_option,
    configured,
    failing,
    json_flag,
    moment,
    printable,
)
from incident_messaging.commands.messages import as_fields, enabled, nobody_reads, silence_stdout
from incident_messaging.config import MessagingBackend
from incident_messaging.consuming.delivery import Delivery
from incident_messaging.consuming.subscription import Subscription
from incident_messaging.deadline import Deadline
from incident_messaging.forms import rfc3339
from incident_messaging.service import MessagingService
from incident_messaging.worker import logs_somewhere

__all__ = ["tail"]

#: Characters of a payload in a line for people.
_MOST = 500
#: Seconds between two looks at whether anybody still reads.
_LOOK_EVERY = 0.5
#: Seconds for the end: nothing has to be finished, and a broker that says nothing is not waited for.
_END = 1.0


@click.command()
@click.argument("topic")
@click.option(
    "--since", callback=moment, metavar="TIME", help="Begin there: 30m, 2h, 7d ago, or ISO 8601.  [default: now]"
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after so many.")
@click.option("--timeout", type=Number(0, MOST_SECONDS), metavar="SECONDS", help="End after so long without a message.")
@backend_option("Which of two brokers to read from.")
@configured
@json_flag
def tail(
    sources: Sources, topic: str, since: datetime | None, limit: int | None, timeout: float | None,
    backend: MessagingBackend | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what is published to TOPIC, a line each, until Ctrl-C.

    TOPIC is without the prefix; * stands for one level, a last > for one or more. Looking changes nothing: no
    place is kept in any group. A line has time, topic, key and payload (cut after 500 characters); with --json it is
    an object with all there is, as `publish --file` reads it.

    Exit code: 0 at --limit or --timeout, or when nobody reads any more (`| head`); 1 if a broker cannot be had or
    the subscription ends; 2 for wrong usage; 130 after Ctrl-C.
    """
    with _piped(), failing():
        service = MessagingService(enabled(sources.load()))
        try:
            subscription = service.subscribe(topic, bytes, broadcast=True, start=since or "latest", backend=backend)
            logs_somewhere(logging.WARNING)  # from now on: a connection that is lost, and is back
            for delivery in islice(_all(subscription, timeout), limit):
                click.echo(json.dumps(as_fields(delivery)) if as_json else _line(delivery), color=_colours())
        finally:
            service.close(_END)


def _all(subscription: Subscription[bytes], timeout: float | None) -> Iterator[Delivery[bytes]]:
    """Messages until none came for so long, or nobody reads any more."""
    while True:
        silence = Deadline.after(timeout)
        while (delivery := subscription.next(silence.wait(_LOOK_EVERY))) is None:
            if silence.over or nobody_reads():
                return
        yield delivery


def _line(delivery: Delivery[bytes]) -> str:
    fields = as_fields(delivery)
    if "payload" in fields:
        text = json.dumps(fields["payload"], separators=(",", ":"), ensure_ascii=False)
    else:
        text = delivery.body.decode("utf-8", "backslashreplace")
    parts = (
        click.style(rfc3339(delivery.metadata.time), dim=True),
        click.style(printable(delivery.topic), fg="cyan"),
        click.style(printable(delivery.key or "-"), fg="green"),
        printable(text[:_MOST]) + (" ..." if len(text) > _MOST else ""),
    )
    return "  ".join(parts)


def _colours() -> bool | None:
    """``None``: as the terminal wants; see https://no-color.org."""
    return False if os.environ.get("NO_COLOR") else None


@contextmanager
def _piped() -> Iterator[None]:
    """The reader of a pipe may go when it has seen enough: that is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
