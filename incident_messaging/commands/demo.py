"""``incident-messaging demo``."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import click
from rich.console import Console

from incident_messaging.brokers import BrokerError
from incident_messaging.commands.common import INTERRUPTED
from incident_messaging.config import MessagingBackend
from incident_messaging.demo.fork import run_forked
from incident_messaging.demo.replay import SAMPLE, ReplayError, made_up_events, read_log
from incident_messaging.demo.run import BROKERS, run
from incident_messaging.demo.view import View
from incident_messaging.errors import MessagingError
from incident_messaging.events import IncidentEvent

__all__ = ["demo"]


@click.command()
@click.option(
    "--backend",
    type=click.Choice([name.value for name in BROKERS]),
    default="both",
    show_default=True,
    help="The broker to use; it is started for the demo.",
)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    metavar="CSV",
    help="The log to replay; by default the sample of a checkout, else events are made up.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Publish only the first N events.")
@click.option("--fork", is_flag=True, help="Show instead what becomes of messages that a forked child publishes.")
def demo(backend: str, file: Path | None, limit: int | None, fork: bool) -> None:
    """Replay a service desk's log through real brokers, and check what arrived.

    Starts a NATS server and a Kafka broker on free ports of this machine (extra "brokers"), publishes
    the log as incident events, consumes them with three subscriptions on each broker, and compares.

    With --fork a small program runs twice on each broker, with the client library alone and with this
    SDK: it publishes, forks a child that publishes too, and what the broker then holds is counted.

    Exit code: 0 if all that was published was consumed, once and in order (with --fork: if all that the
    SDK published arrived); 1 if not, or something failed; 130 after Ctrl-C.
    """
    if fork and (file or limit):
        raise click.UsageError("--fork replays no log: it takes neither --file nor --limit")
    console = Console(highlight=False)
    try:
        chosen = MessagingBackend(backend)
        good = run_forked(chosen, console) if fork else _replayed(chosen, file, limit, View(console))
    except (BrokerError, MessagingError, ReplayError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("interrupted: the brokers are stopped, their data is deleted", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(0 if good else 1)


def _replayed(backend: MessagingBackend, file: Path | None, limit: int | None, view: View) -> bool:
    """Whether what arrived is what was published."""
    events = list(islice(_events(file, view), limit))
    return not run(events, backend, view)


def _events(file: Path | None, view: View) -> list[IncidentEvent]:
    """The events to publish, from where the user wants them."""
    if file is None and not SAMPLE.is_file():
        view.say("no --file, and no sample outside a checkout: the events are made up, the same at every run")
        return made_up_events()
    view.say(f"reading {file or SAMPLE.name}")
    return read_log(file or SAMPLE)
