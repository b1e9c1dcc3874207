"""``incident-messaging consume``: a process for each event."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from incident_messaging.codec import to_json
from incident_messaging.commands.common import (
    MOST_SECONDS,
    Number,
    Sources,
    backend_option,
    configured,
    failing,
    json_flag,
    printable,
)
from incident_messaging.commands.messages import enabled, nobody_reads, silence_stdout
from incident_messaging.config import MessagingBackend
from incident_messaging.consuming.delivery import Delivery, Reject
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError
from incident_messaging.service import MessagingService
from incident_messaging.worker import logs_somewhere

__all__ = ["consume"]

#: The exit code of a command that says that its message can never be handled; EX_DATAERR of <sysexits.h>.
REJECTED = os.EX_DATAERR

#: Seconds that running commands have at the end, where --handler-timeout says nothing else; and between SIGTERM and
#: SIGKILL for those that have used up their time.
_END = 10.0
_GRACE = 2.0
#: Seconds in which a worker that found the end of the whole lets nothing more run into it.
_BREAK = 1.0

_NOBODY = "nobody reads stdout any more"

log = logging.getLogger("incident_messaging")


def _command(_context: click.Context, _option: click.Parameter, value: str) -> Sequence[str]:
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None
    if not words:
        raise click.BadParameter("it is empty")
    if shutil.which(words[0]) is None:
        raise click.BadParameter(f"there is no command {words[0]!r}")
    return words


@click.command()
@click.argument("topic")
@click.option("--group", required=True, help="Its members share the messages, and it keeps its place.")
@click.option(
    "--exec", "command", required=True, callback=_command, metavar="CMD", help="Run for each event, without a shell."
)
@click.option("--concurrency", type=click.IntRange(min=1), default=1, show_default=True, help="How many run at once.")
@click.option(
    "--handler-timeout",
    type=Number(0, MOST_SECONDS, min_open=True),
    metavar="SECONDS",
    help="End CMD after so long; the event has failed.",
)
@backend_option("Which of two brokers to read from.")
@configured
@json_flag
def consume(
    sources: Sources, topic: str, group: str, command: Sequence[str], concurrency: int, handler_timeout: float | None,
    backend: MessagingBackend | None, as_json: bool,
) -> None:  # fmt: skip
    """Run CMD for each event of TOPIC, until SIGTERM or Ctrl-C.

    TOPIC is without the prefix; * stands for one level, a last > for one or more. CMD gets the payload as JSON on
    stdin and the rest as MESSAGE_ID, MESSAGE_TOPIC, MESSAGE_KEY, MESSAGE_ATTEMPT, MESSAGE_HEADERS (JSON),
    MESSAGE_CORRELATION_ID, MESSAGE_TIMESTAMP, MESSAGE_SOURCE, MESSAGE_GROUP, MESSAGE_BACKEND and MESSAGE_POSITION.

    Exit code of CMD: 0 acknowledges; 65 rejects, and the event goes to the dead letters at once; with any other it
    comes again, and goes to the dead letters after the last attempt (retry.max_attempts).

    stdout and stderr of CMD are those of this command. With --json there is an object on stdout for each run, and
    what CMD writes goes to stderr.

    Exit code: 0 if a signal ended it and all was finished; 1 if something was not, CMD cannot be started or the
    subscription ends; 2 for wrong usage.
    """
    runs = _Runs(command, handler_timeout, as_json=as_json)
    with failing(), _in_brief():
        service = MessagingService(enabled(sources.load()))
        service.handler(topic, Any, group=group, concurrency=concurrency, backend=backend, auto_ack=False)(runs.handle)
        try:
            left = service.run_until_signal(timeout=handler_timeout or _END)
        finally:
            runs.end()
    for words in (*runs.broken, *left):
        click.echo(f"Error: {printable(words)}", err=True)
    sys.exit(1 if runs.broken or left else 0)


class CommandFailed(Exception):
    """The command for an event ended with an exit code that is neither 0 nor 65, or ran out of time."""


class _NotStarted(Exception):
    """The command cannot be started, whatever the event is."""


class _Runs:
    """The processes that handle events.

    Args:
        command: What to run.
        seconds: How long each may take; ``None`` is for ever.
        as_json: Whether to tell of each on stdout.
    """

    def __init__(self, command: Sequence[str], seconds: float | None, *, as_json: bool) -> None:
        self._command = command
        self._seconds = seconds
        self._as_json = as_json
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ending = False
        #: Why none can be run any more.
        self.broken: list[str] = []

    def handle(self, delivery: Delivery[Any]) -> None:
        """Run the command for one event.

        Where it is not the event that failed, but this is the end of the whole (the command cannot be started, nobody
        reads stdout any more, the time for the end is over), the event is left as it is: a failure, also one that is
        to be tried again, would give it up at the last attempt. It comes again.

        Raises:
            CommandFailed: It ended with another exit code than 0 and 65.
            Reject: It said 65, or the event does not fit into an environment.
        """
        begun = time.monotonic()
        if self._nobody_reads():
            return
        try:
            code = self._run(delivery)
        except Reject:
            self._tell(delivery, "rejected", None, 0.0)
            raise
        except _NotStarted:
            return
        outcome = "acknowledged" if code == 0 else "rejected" if code == REJECTED else "failed"
        self._tell(delivery, outcome, code, time.monotonic() - begun)
        if outcome == "acknowledged":
            _acknowledge(delivery)
        elif outcome == "rejected":
            raise Reject(f"{self._command[0]}: exit code {REJECTED}")
        elif not (self._nobody_reads() or self._ending):
            raise CommandFailed(f"{self._command[0]}: {self._why(code)}")

    def end(self) -> None:
        """End what still runs; nothing is started any more."""
        with self._lock:
            self._ending, running = True, list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        until = Deadline.after(_GRACE)
        for process in running:
            _ended(process, until)

    def _run(self, delivery: Delivery[Any]) -> int | None:
        """The exit code; ``None`` if it ran out of time."""
        with self._started(delivery) as process:
            try:
                process.communicate(f"{to_json(delivery.payload)}\n".encode(), self._seconds)
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGTERM)
                _ended(process, Deadline.after(_GRACE))
                return None
            return process.returncode

    @contextmanager
    def _started(self, delivery: Delivery[Any]) -> Iterator[subprocess.Popen[bytes]]:
        try:
            # A group of its own: Ctrl-C is for this command, which lets those that run end.
            process = subprocess.Popen(  # noqa: S603 - what the user asks for, without a shell
                self._command,
                env=_environment(delivery),
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno() if self._as_json else None,
                process_group=0,
            )
        except (ValueError, OSError) as error:
            if isinstance(error, ValueError) or error.errno == errno.E2BIG:
                raise Reject(f"key, headers or ids do not fit into an environment: {error}") from error
            self._break(f"{self._command[0]} cannot be started: {error.strerror}")
            raise _NotStarted from error
        with process:
            with self._lock:
                self._running.add(process)
                ending = self._ending
            try:
                if ending:
                    _signal(process, signal.SIGKILL)
                yield process
            finally:
                with self._lock:
                    self._running.discard(process)

    def _nobody_reads(self) -> bool:
        """A command that writes to a closed pipe fails by that, whatever its event is; then this is the end."""
        if nobody_reads():
            self._break(_NOBODY)
            return True
        return False

    def _break(self, words: str) -> None:
        """End the whole, and let nothing more run into the same."""
        with self._lock:
            first = not self.broken
            if first:
                self.broken.append(words)
        if first:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_BREAK)

    def _tell(self, delivery: Delivery[Any], outcome: str, code: int | None, seconds: float) -> None:
        if not self._as_json:
            return
        fields = {
            "message_id": delivery.metadata.message_id, "topic": delivery.topic, "key": delivery.key,
            "position": str(delivery.position), "attempt": delivery.attempt, "outcome": outcome, "exit_code": code,
            "seconds": round(seconds, 3),
        }  # fmt: skip
        try:
            with self._lock:
                click.echo(json.dumps(fields))
        except OSError as error:
            silence_stdout()
            self._break(_NOBODY if isinstance(error, BrokenPipeError) else f"stdout: {error.strerror}")

    def _why(self, code: int | None) -> str:
        if code is None:
            return f"ended after --handler-timeout of {self._seconds:g} s"
        return f"exit code {code}" if code >= 0 else f"ended by signal {-code}"


def _environment(delivery: Delivery[Any]) -> Mapping[str, str]:
    """What the command finds; a variable of ours that does not belong to the event is not there."""
    metadata = delivery.metadata
    ours = {
        "MESSAGE_ID": metadata.message_id,
        "MESSAGE_TOPIC": delivery.topic,
        "MESSAGE_KEY": delivery.key,
        "MESSAGE_ATTEMPT": str(delivery.attempt),
        "MESSAGE_HEADERS": json.dumps(dict(delivery.headers)),
        "MESSAGE_CORRELATION_ID": metadata.correlation_id,
        "MESSAGE_TIMESTAMP": str(metadata.timestamp),
        "MESSAGE_SOURCE": metadata.source,
        "MESSAGE_GROUP": delivery.group,
        "MESSAGE_BACKEND": delivery.backend.value,
        "MESSAGE_POSITION": str(delivery.position),
    }
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return inherited | {name: value for name, value in ours.items() if value is not None}


def _acknowledge(delivery: Delivery[Any]) -> None:
    try:
        delivery.ack()
    except MessagingError as error:  # what cannot be confirmed comes again, or was stored
        log.warning("%s: acknowledged, but not confirmed: %s", delivery.position, error)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the command and to what it has started itself."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # it is over
        pass


def _ended(process: subprocess.Popen[bytes], deadline: Deadline) -> None:
    """Wait for its end, and make it end where that is not soon enough."""
    try:
        process.wait(deadline.left())
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()


@contextmanager
def _in_brief() -> Iterator[None]:
    """What the SDK has to say goes to stderr; of a command that failed no traceback, which would only show our code."""

    def shorten(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, (CommandFailed, Reject)):
            record.msg, record.args, record.exc_info = f"{record.getMessage()}: {error}", (), None
        return True

    logs_somewhere(logging.WARNING)
    log.addFilter(shorten)
    try:
        yield
    finally:
        log.removeFilter(shorten)
