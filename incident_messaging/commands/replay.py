"""``incident-messaging replay``: what a topic holds, published to another one.

The topic is read as the dead letters are, where it lies and to the end that it has at the beginning: a subscription
could only guess by a silence that it has come to that end.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

import attrs
import click

from incident_messaging import topics
from incident_messaging.codec import Codec
from incident_messaging.commands.common import (
    Number,
    Sources,
    backend_option,
    configured,
    failing,
    json_flag,
    moment,
    printable,
)
from incident_messaging.commands.messages import InFlight, enabled, progress_bar, users_headers
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.errors import ConfigurationError, MessagingError
from incident_messaging.publishing.publication import PublishReceipt
from incident_messaging.publishing.publisher import Message
from incident_messaging.record import Received
from incident_messaging.service import MessagingService
from incident_messaging.worker import logs_somewhere

__all__ = ["replay"]

#: Messages left out that are named before the rest is counted.
_NAMED = 20


@click.command()
@click.argument("topic")
@click.option(
    "--since", callback=moment, required=True, metavar="TIME", help="Stored since: 30m, 2h, 7d ago, or ISO 8601."
)
@click.option("--until", callback=moment, metavar="TIME", help="Stored until.  [default: the end there is now]")
@click.option("--to", "target", required=True, metavar="OTHER", help="The topic to publish to, without the prefix.")
@backend_option("Which of two brokers to read from.  [default: subscribe_backend]")
@backend_option("Which of two to publish to.  [default: where it is read]", "--to-backend")
@click.option("--rate", type=Number(0.001, 1_000_000), metavar="N", help="At most so many a second.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@configured
@json_flag
def replay(
    sources: Sources, topic: str, since: datetime, until: datetime | None, target: str,
    backend: MessagingBackend | None, to_backend: MessagingBackend | None, rate: float | None, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Publish again to OTHER what TOPIC holds since a time.

    It ends with what is there when it begins. Key, the user's headers and all of the envelope stay, so the ids, too;
    what is not JSON is left, and named. The topic keeps all.

    Exit code: 0 if all was replayed; 1 if a broker cannot be had or refuses, or something was left; 2 for wrong
    usage, a topic or configuration that is not allowed among it; 130 after Ctrl-C. What was interrupted may be run
    again: JetStream stores what it had already once (within duplicate_window_secs), Kafka twice.
    """
    with failing():
        config = enabled(sources.load())
        origin = _one_of(config, backend)
        to = _one_of(config, to_backend or origin)
        if (origin, topic) == (to, target):
            raise click.UsageError(f"{topic} cannot be replayed onto itself: name another topic, or broker")
        for name in (topic, target):
            topics.full_name(config.topic_prefix, name)
        with MessagingService(config) as service:
            logs_somewhere(logging.WARNING)  # from now on: a connection that is lost, and is back
            job = _Replay(service, since, until, rate, dry_run=dry_run)
            job.run(origin, topic, to, target)
    job.tell(as_json)


def _one_of(config: MessagingConfig, wanted: MessagingBackend | None) -> MessagingBackend:
    """The broker that is meant.

    Raises:
        ConfigurationError: It is not configured.
    """
    both = config.backend is MessagingBackend.BOTH
    if wanted is None:
        return config.subscribe_backend if both else config.backend
    if not both and wanted is not config.backend:
        raise ConfigurationError(f"backend {wanted.value!r} is not configured: {config.backend.value}")
    return wanted


@attrs.define
class _Counts:
    """What became of the messages.

    Attributes:
        matched: Stored in the time that was asked for.
        replayed: Published; in a dry run, would be.
        duplicates: Of these, what JetStream had already.
        left: What cannot be published.
    """

    matched: int = 0
    replayed: int = 0
    duplicates: int = 0
    left: int = 0


class _Replay:
    """The way of a topic's history to another topic."""

    def __init__(
        self, service: MessagingService, since: datetime, until: datetime | None, rate: float | None, *, dry_run: bool
    ) -> None:
        self._service = service
        self._since = since.timestamp()
        self._until = None if until is None else until.timestamp()
        self._rate = rate
        self._dry_run = dry_run
        self._counts = _Counts()
        self._decode = Codec(source=service.config.source).decoder(Any)
        self._pause = threading.Event()  # never set: a wait that Ctrl-C ends

    def run(self, origin: MessagingBackend, topic: str, to: MessagingBackend, target: str) -> None:
        """Publish all of it; what was done is told also where that breaks off."""
        try:
            with progress_bar("replayed", None) as done:

                def told(_: None, receipt: PublishReceipt) -> None:
                    self._counts.replayed += 1
                    self._counts.duplicates += receipt.duplicate
                    done(self._counts.replayed)

                flight: InFlight[None] = InFlight(self._service, told)
                for wish in self._messages(origin, topic, target):
                    if self._dry_run:
                        self._counts.replayed += 1
                    else:
                        flight.add(None, target, wish.payload, key=wish.key, headers=wish.headers, backend=to)
                flight.finish()
        except BaseException:
            click.echo(f"broken off: at least {self._counts.replayed:,} replayed", err=True)
            raise

    def tell(self, as_json: bool) -> None:
        """What became of it; exit code 1 if something was left."""
        counts = self._counts
        if as_json:
            click.echo(json.dumps({**attrs.asdict(counts), "dry_run": self._dry_run}))
        else:
            would = "would be " if self._dry_run else ""
            known = f", {counts.duplicates:,} of them were there already" if counts.duplicates else ""
            click.echo(f"{counts.matched:,} matched, {counts.replayed:,} {would}replayed{known}")
        if counts.left > _NAMED:
            click.echo(f"{counts.left:,} left", err=True)
        if counts.left:
            sys.exit(1)

    def _messages(self, origin: MessagingBackend, topic: str, target: str) -> Iterator[Message]:
        """What to publish, in the order of the broker and not faster than asked for."""
        begun = time.monotonic()
        for received in self._history(origin, topic):
            self._counts.matched += 1
            try:
                wish = self._message(received, target)
                self._service._prepare(wish)
            except MessagingError as error:
                self._leave(received, error)
                continue
            if self._rate is not None and not self._dry_run:
                self._pause.wait(max(0.0, begun + self._counts.matched / self._rate - time.monotonic()))
            yield wish

    def _history(self, origin: MessagingBackend, topic: str) -> Iterator[Received]:
        config = self._service.config
        broker = self._service._connections.outlet(origin).broker
        full = topics.full_name(config.topic_prefix, topic)
        with closing(broker.archive(full, config.subscribe_timeout_ms / 1000)) as archive:
            for received in archive.read(self._since):
                if self._since <= received.timestamp and (self._until is None or received.timestamp <= self._until):
                    yield received

    def _message(self, received: Received, target: str) -> Message:
        return Message(target, self._decode(received), key=received.key, headers=users_headers(received.headers))

    def _leave(self, received: Received, error: MessagingError) -> None:
        self._counts.left += 1
        if self._counts.left <= _NAMED:
            click.echo(f"left: {received.position}: {printable(str(error))}", err=True)
