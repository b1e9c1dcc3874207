"""What the commands that move messages share: options, messages as lines, publishes on their way, a progress bar."""

from __future__ import annotations

import base64
import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from incident_messaging.codec import from_json
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.consuming.delivery import REPEATED, Delivery
from incident_messaging.consuming.graves import is_kept
from incident_messaging.envelope import MessageEnvelope, is_envelope
from incident_messaging.errors import BackendUnavailable, ConfigurationError, SerializationError
from incident_messaging.publishing.publication import PublishReceipt
from incident_messaging.service import MessagingService

__all__ = [
    "InFlight", "as_fields", "body_fields", "enabled", "nobody_reads", "progress_bar",
    "silence_stdout", "users_headers",
]  # fmt: skip

T = TypeVar("T")

#: Publishes that are on their way at once: what a killed process may have to repeat.
_MOST = 1_000


def enabled(config: MessagingConfig) -> MessagingConfig:
    """The configuration, where there is a broker to it: a command that says so of what it did not send would lie.

    Raises:
        BackendUnavailable: Messaging is disabled.
        ConfigurationError: The backend is this process's own memory.
    """
    if not config.enabled:
        raise BackendUnavailable("Messaging disabled", code="disabled")
    if config.backend is MessagingBackend.MEMORY:
        raise ConfigurationError("backend 'memory' is no broker: it begins empty, and ends with this command")
    return config


def users_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that a message may be published again with: neither the SDK's nor the broker's own."""
    ours = REPEATED | {"traceparent"}
    return {name: text for name, text in headers.items() if is_kept(name) and name.lower() not in ours}


def as_fields(delivery: Delivery[bytes]) -> dict[str, Any]:
    """A message as `tail --json` writes and `publish --file` reads it; what is no JSON has no payload, but a body."""
    fields = {
        "topic": delivery.topic,
        "key": delivery.key,
        "headers": dict(delivery.headers),
        "metadata": attrs.asdict(delivery.metadata),
        "backend": delivery.backend.value,
        "position": str(delivery.position),
    }
    try:
        document: Any = from_json(delivery.body, Any)
    except SerializationError:
        return fields | body_fields(delivery.body)
    return fields | {"payload": document["payload"] if is_envelope(document) else document}


def body_fields(body: bytes) -> dict[str, str]:
    """Bytes that may be text, as JSON takes them."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "body_encoding": "base64"}


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone; who only writes to it learns that by the next line."""
    try:
        look = select.poll()
        look.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError, AttributeError):  # no descriptor behind it, or a system without poll
        return False
    return any(event & select.POLLERR for _, event in look.poll(0))


def silence_stdout() -> None:
    """Let what is still buffered for a reader that has gone go nowhere, also at the interpreter's own flush."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class InFlight(Generic[T]):
    """Publishes on their way, whose outcomes are told in the order in which they were handed over.

    Args:
        service: Publishes them.
        told: Called with the note that a publish was given and its receipt.
    """

    def __init__(self, service: MessagingService, told: Callable[[T, PublishReceipt], object]) -> None:
        self._service = service
        self._told = told
        self._block = service.config.publish_timeout_ms / 1000
        self._waiting: deque[tuple[T, Future[PublishReceipt]]] = deque()

    def add(self, note: T, topic: str, envelope: MessageEnvelope[Any], **options: Any) -> None:
        """Hand one over; waits for the oldest where too many are on their way.

        Raises:
            MessagingError: This one cannot be published, or the oldest was not.
        """
        future = self._service.publish_nowait(topic, envelope, block=self._block, **options)
        self._waiting.append((note, future))
        while len(self._waiting) > _MOST or (self._waiting and self._waiting[0][1].done()):
            self._tell()

    def finish(self) -> None:
        """Wait for the rest.

        Raises:
            MessagingError: One was not published.
        """
        while self._waiting:
            self._tell()

    def landed(self, seconds: float) -> list[T]:
        """The notes of those that a broker acknowledges within so many seconds, whatever becomes of the others."""
        wait([future for _, future in self._waiting], seconds)
        return [note for note, future in self._waiting if future.done() and future.exception() is None]

    def _tell(self) -> None:
        note, future = self._waiting[0]
        self._told(note, future.result())
        self._waiting.popleft()  # last: what Ctrl-C comes before is still to be found by `landed`


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """A bar where stderr is a terminal, nothing elsewhere; it is told how many are done.

    Args:
        what: One word before it.
        total: How many there are; ``None`` where that is not known.
    """
    console = Console(stderr=True)
    if not console.is_interactive:
        yield lambda _done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
