"""``incident-messaging publish``: one message from the command line, or a file of them.

A file is published to its end, over as many runs as that takes. A file beside it (`Progress`) says up to where it
is; each message's id is made of the run's own, the line and its number, so that what is sent a second time because
nobody knows what became of it is stored once by JetStream.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import click

from incident_messaging.codec import from_json, to_json
from incident_messaging.commands.common import (
    MOST_SECONDS,
    WRONG_USAGE,
    Number,
    Sources,
    backend_option,
    configured,
    failing,
    json_flag,
    printable,
)
from incident_messaging.commands.messages import InFlight, enabled, progress_bar, users_headers
from incident_messaging.commands.progress import Line, Progress
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.envelope import MessageEnvelope, MessageMetadata
from incident_messaging.errors import MessagingError, SerializationError
from incident_messaging.events import VARIANTS, IncidentEvent
from incident_messaging.publishing.publication import PublishReceipt
from incident_messaging.publishing.publisher import Message
from incident_messaging.service import MessagingService

__all__ = ["publish"]

#: What a line may have; the last two say where `tail` found it, and are passed over.
_FIELDS = ("topic", "key", "headers", "metadata", "payload", "backend", "position")
_METADATA = tuple(field.name for field in attrs.fields(MessageMetadata))
#: Bad lines that are named before the rest is counted.
_NAMED = 20
#: Seconds that an interrupted run waits for outcomes.
_LAST_OUTCOMES = 2.0


def _headers(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        headers[name] = text
    return headers


@click.command()
@click.argument("topic", required=False)
@click.argument("message", metavar="[JSON|-]", required=False)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    metavar="JSONL",
    help='Publish its lines: {"topic": ..., "key": ..., "headers": {...}, "payload": ...}.',
)
@click.option("--key", help="Messages with one key keep their order.  [default: an incident event's incident]")
@click.option("--header", "headers", multiple=True, callback=_headers, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--correlation-id", metavar="ID", help="What the message belongs to.")
@click.option(
    "--timeout",
    type=Number(0.001, MOST_SECONDS),
    metavar="SECONDS",
    help="For each message.  [default: as configured]",
)
@backend_option("One of two brokers, to repair one side.")
@configured
@json_flag
def publish(
    sources: Sources, topic: str | None, message: str | None, file: Path | None, key: str | None,
    headers: dict[str, str], correlation_id: str | None, timeout: float | None, backend: MessagingBackend | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Publish a message to TOPIC (without the prefix): JSON, or - for what stdin has.

    With --file a message for each line, an object with `payload` and, where they are wanted, `topic` (else TOPIC),
    `key`, `headers` and `metadata`: what `tail --json` writes. An incident event needs neither topic nor key: its own
    are taken. All lines are checked before the first is published. A run that was interrupted goes on where it was
    when it is run again; JSONL.progress says where.

    Exit code: 0 if all is published; 1 if a broker cannot be had or refuses, or another run publishes the file; 2 for
    wrong usage, a configuration or topic that is not allowed, JSON that cannot be read and bad lines, and then nothing
    was published; 130 after Ctrl-C.
    """
    if (file is None) == (message is None):
        raise click.UsageError("give TOPIC and JSON (- for stdin), or --file")
    if file is not None and (key is not None or headers or correlation_id is not None):
        raise click.UsageError("--file takes no --key, --header and --correlation-id: its lines say that")
    if timeout is not None:
        sources = attrs.evolve(
            sources, settings=(*sources.settings, ("publish_timeout_ms", str(max(1, round(timeout * 1000)))))
        )
    with failing():
        with closing(MessagingService(enabled(sources.load()))) as service:
            if file is not None:
                with _alone(file):
                    _File(service, file, topic, backend).publish(as_json)
                return
            payload = _read(message or "")
            event = _incident(payload)
            receipt = service.publish(
                topic or "", payload, key=event.incident_id if key is None and event else key, headers=headers,
                correlation_id=correlation_id, backend=backend,
            )  # fmt: skip
        _tell(receipt, as_json)


def _read(message: str) -> Any:
    data: str | bytes = sys.stdin.buffer.read() if message == "-" else message
    try:
        payload: Any = from_json(data, Any)
    except SerializationError as error:
        raise click.UsageError(printable(str(error))) from error
    return payload


def _incident(payload: Any) -> IncidentEvent | None:
    """The incident event that a payload is, if it is one.

    A wrong one is none: what has the type of one may be another topic's own message.
    """
    kind = payload.get("type") if isinstance(payload, dict) else None
    if not isinstance(kind, str) or kind not in VARIANTS:
        return None
    try:
        event: IncidentEvent = from_json(to_json(payload), IncidentEvent)
    except SerializationError:
        return None
    return event


def _tell(receipt: PublishReceipt, as_json: bool) -> None:
    results = {
        backend.value: {"state": result.state, "position": str(result.position), "duplicate": result.duplicate}
        for backend, result in receipt.results.items()
    }
    if as_json:
        click.echo(json.dumps({"message_id": receipt.message_id, "topic": receipt.topic, "results": results}))
        return
    where = ", ".join(
        f"{name} {result['position'] if result['state'] == 'ok' else result['state']}"
        for name, result in results.items()
    )
    click.echo(f"{receipt.message_id} published to {receipt.topic}: {where}")


class _BadLine(click.ClickException):
    """A line of the file is no message."""

    exit_code = WRONG_USAGE

    def __init__(self, number: int, words: str) -> None:
        super().__init__(f"line {number}: {printable(words)}")


class _File:
    """A file on its way to a topic."""

    def __init__(
        self, service: MessagingService, file: Path, topic: str | None, backend: MessagingBackend | None
    ) -> None:
        self._service = service
        self._file = file
        self._topic = topic
        self._backend = backend
        self._progress = Progress(file, _target(service.config, topic, backend))
        self._behind = self._progress.line
        self._duplicates = 0
        self._published = 0

    def publish(self, as_json: bool) -> None:
        """Publish what is left of it."""
        left = self._check()
        if self._behind:
            click.echo(f"going on behind line {self._behind:,}, where the run before was interrupted", err=True)
        with _terminated(), progress_bar("published", left) as done:

            def told(line: Line, receipt: PublishReceipt) -> None:
                self._published += 1
                self._duplicates += receipt.duplicate
                self._progress.passed(line)
                done(self._published)

            self._hand_over(InFlight(self._service, told))
        if as_json:
            counts = {"published": self._published, "duplicates": self._duplicates, "resumed_behind": self._behind}
            click.echo(json.dumps(counts))
        else:
            known = f", {self._duplicates:,} of them were there already" if self._duplicates else ""
            click.echo(f"{self._published:,} published{known}")

    def _hand_over(self, flight: InFlight[Line]) -> None:
        try:
            self._progress.save()  # before anything is sent: it holds what the ids are made of
            for line in self._lines():
                wish = line.message
                flight.add(line, wish.topic, wish.payload, key=wish.key, headers=wish.headers, backend=self._backend)
            flight.finish()
        except BaseException:
            self._progress.line_by_line(flight.landed(_LAST_OUTCOMES))
            words = f"{self._published:,} published, up to line {self._progress.line:,}; run it again to go on there"
            click.echo(words, err=True)
            self._service.close(0.0)  # what has no outcome by now is not waited for
            raise
        self._progress.end()

    def _check(self) -> int:
        """How many lines there are to publish, all of them good.

        Raises:
            click.ClickException: Some are not; those are named.
        """
        count = 0
        bad: list[_BadLine] = []
        for line in self._lines(bad.append):
            try:
                self._service._prepare(line.message)
                count += 1
            except MessagingError as error:
                bad.append(_BadLine(line.number, str(error)))
        if not bad:
            return count
        for one in bad[:_NAMED]:
            one.show()
        more = f" {len(bad) - _NAMED:,} more are not named." if len(bad) > _NAMED else ""
        click.echo(f"Nothing was published: {len(bad):,} of {len(bad) + count:,} lines are bad.{more}", err=True)
        sys.exit(_BadLine.exit_code)

    def _lines(self, bad: Callable[[_BadLine], object] | None = None) -> Iterator[Line]:
        """What is to be published yet; a bad line is told, or raised."""
        number, raw = self._progress.line, b""
        with self._file.open("rb") as lines:
            lines.seek(self._progress.offset)
            for text in lines:
                number, raw = number + 1, raw + text
                if not text.strip():
                    continue
                try:
                    mark = self._progress.mark(number, text)
                    if mark in self._progress.beyond:
                        continue
                    yield Line(number=number, raw=raw, mark=mark, message=self._message(number, text, mark))
                    raw = b""
                except _BadLine as error:
                    if bad is None:
                        raise
                    bad(error)

    def _message(self, number: int, text: bytes, mark: str) -> Message:
        fields = _object(number, text)
        metadata = fields.get("metadata", {})
        if not isinstance(metadata, dict) or not metadata.keys() <= set(_METADATA):
            raise _BadLine(number, f"metadata is an object of {', '.join(_METADATA)}")
        payload = fields["payload"]
        event = _incident(payload)
        topic, key = fields.get("topic"), fields.get("key")
        topic = self._topic if topic is None else topic
        if topic is None:
            if event is None:
                raise _BadLine(
                    number, "it names no topic, and reads as no incident event, which has its own; give TOPIC"
                )
            topic = event.topic
        envelope = MessageEnvelope(MessageMetadata(**{"message_id": mark, **metadata}), payload)
        return Message(
            topic,
            envelope,
            key=event.incident_id if key is None and event else key,
            headers=users_headers(fields.get("headers", {})),
        )


def _object(number: int, text: bytes) -> dict[str, Any]:
    """A line's fields."""
    try:
        fields = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _BadLine(number, f"not readable as JSON: {error}") from None
    if not isinstance(fields, dict) or "payload" not in fields:
        raise _BadLine(number, 'it is not an object with a "payload"')
    if unknown := sorted(fields.keys() - set(_FIELDS)):
        raise _BadLine(number, f"unknown {', '.join(unknown)}; there are {', '.join(_FIELDS)}")
    for name in ("topic", "key"):
        if not isinstance(fields.get(name), str | None):
            raise _BadLine(number, f"{name} {fields[name]!r} is not allowed: it is text")
    headers = fields.get("headers", {})
    if not isinstance(headers, dict):
        raise _BadLine(number, "headers is an object of text")
    return fields


def _target(config: MessagingConfig, topic: str | None, backend: MessagingBackend | None) -> str:
    """What tells where a file goes, so that a run to one place is not gone on with to another."""
    where = [topic, backend, config.backend, config.topic_prefix, config.nats.servers, config.kafka.bootstrap_servers]
    return hashlib.sha256(repr(where).encode()).hexdigest()


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """In the block no other run publishes the file: each would publish all of it, and write the same progress.

    Raises:
        click.ClickException: Another run does.
    """
    if not file.is_file():
        raise click.UsageError(f"{file} is no regular file: it is read twice")
    with file.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(f"another run publishes {printable(str(file))}; wait for its end") from None
        except OSError as error:  # some network file systems lock nothing that is open for reading alone
            click.echo(
                f"warning: {printable(str(file))} cannot be locked ({error.strerror}): run this once at a time",
                err=True,
            )
        yield


@contextmanager
def _terminated() -> Iterator[None]:
    """In the block SIGTERM ends the command as Ctrl-C does, so that the progress is kept to the last line."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
