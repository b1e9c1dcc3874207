"""A dead letter as its reader sees it, and which of them are meant. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypedDict

import attrs

from incident_messaging import topics
from incident_messaging.config import MessagingBackend
from incident_messaging.consuming.delivery import REPEATED
from incident_messaging.consuming.graves import BODY_CUT, count_in, is_kept
from incident_messaging.consuming.options import backend_of
from incident_messaging.errors import ConfigurationError
from incident_messaging.forms import parse_rfc3339
from incident_messaging.record import Position, Received


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A message that a group gave up, and why.

    What another writer has put on the dead-letter topic has no topic and no group.

    Attributes:
        backend: The broker on which it lies.
        topic: Where it came from, without this service's prefix.
        original_topic: The same as the broker knows it, in full.
        original: Where it was there.
        group: Who gave it up.
        exception_type: The class of what the last attempt raised, with its module unless it is built in.
        exception_message: What it said.
        stacktrace: Where it was raised.
        attempts: How often a handler was started.
        failed_at: When it was given up.
        redrive_count: How often it was put back before.
        key: The message's key.
        headers: The user's headers.
        body: The message's bytes, as they were.
        body_cut: Whether these are only the beginning, because the whole did not fit into a dead letter.
        position: Where the dead letter itself lies.
    """

    backend: MessagingBackend
    topic: str | None
    original_topic: str | None
    original: Position
    group: str | None
    exception_type: str
    exception_message: str
    stacktrace: str
    attempts: int
    failed_at: datetime | None
    redrive_count: int
    key: str | None
    headers: Mapping[str, str]
    body: bytes
    body_cut: bool
    position: Position


class Choice(TypedDict, total=False):
    """Which dead letters a call means, and how many of them.

    Attributes:
        topic: The original topic, without prefix; a wildcard is allowed.
        exception: The class of what the last attempt raised, with or without its module.
        group: Who gave it up.
        since: Given up at that time or later, an aware datetime.
        limit: How many at most.
        backend: Which of two brokers; ``None`` is every one.
    """

    topic: str | None
    exception: str | None
    group: str | None
    since: datetime | None
    limit: int | None
    backend: MessagingBackend | str | None


def _is_aware(value: object) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@attrs.frozen(kw_only=True)
class Filter:
    """A `Choice`, checked.

    Raises:
        ConfigurationError: A part of it is not allowed.
    """

    topic: str | None = None
    exception: str | None = None
    group: str | None = None
    since: datetime | None = None
    limit: int | None = None
    backend: MessagingBackend | None = attrs.field(default=None, converter=backend_of)

    def __attrs_post_init__(self) -> None:
        if self.topic is not None:
            topics.full_pattern("", self.topic)
        if self.since is not None and not _is_aware(self.since):
            raise ConfigurationError(f"since {self.since!r} is not allowed: an aware datetime")
        if self.limit is not None and not _is_count(self.limit):
            raise ConfigurationError(f"limit {self.limit!r} is not allowed: a whole number from 0")

    @classmethod
    def of(cls, choice: Choice) -> Filter:
        """The filter that a call's keywords describe."""
        unknown = sorted(set(choice) - Choice.__annotations__.keys())
        if unknown:
            names = ", ".join(Choice.__annotations__)
            raise ConfigurationError(f"dead letters are not chosen by {', '.join(unknown)}, but by {names}")
        return cls(**choice)

    def takes(self, letter: DeadLetter) -> bool:
        """Whether a letter is one of them."""
        if self.topic is not None and not topics.regex(self.topic).fullmatch(letter.topic or ""):
            return False
        names = (letter.exception_type, letter.exception_type.rpartition(".")[2])
        if self.exception is not None and self.exception not in names:
            return False
        if self.group is not None and letter.group != self.group:
            return False
        return self.since is None or (letter.failed_at is not None and letter.failed_at >= self.since)


def read_letter(received: Received, backend: MessagingBackend, prefix: str) -> DeadLetter:
    """What a message on the dead-letter topic says; a foreign one says little."""
    get = received.headers.get
    full = get("x-dlq-original-topic")
    return DeadLetter(
        backend=backend,
        topic=None if full is None else topics.short_name(prefix, full),
        original_topic=full,
        original=_original(received.headers, full),
        group=get("x-dlq-group"),
        exception_type=get("x-dlq-exception-type", ""),
        exception_message=get("x-dlq-exception-message", ""),
        stacktrace=get("x-dlq-stacktrace", ""),
        attempts=count_in(get("x-dlq-attempts")) or 0,
        failed_at=_time(get("x-dlq-failed-at")),
        redrive_count=count_in(get("x-dlq-redrive-count")) or 0,
        key=received.key,
        headers={name: text for name, text in kept_text(received).items() if name.lower() not in REPEATED},
        body=received.body or b"",
        body_cut=BODY_CUT in received.headers,
        position=received.position,
    )


def kept_text(received: Received) -> dict[str, str]:
    """The headers that the message had before it was given up, as text."""
    return {name: text for name, text in received.headers.items() if is_kept(name)}


def _original(headers: Mapping[str, str], topic: str | None) -> Position:
    if "x-dlq-original-stream" in headers:
        return Position(
            stream=headers["x-dlq-original-stream"], sequence=count_in(headers.get("x-dlq-original-sequence"))
        )
    return Position(
        topic=topic,
        partition=count_in(headers.get("x-dlq-original-partition")),
        offset=count_in(headers.get("x-dlq-original-offset")),
    )


def _time(text: str | None) -> datetime | None:
    try:
        return None if text is None else parse_rfc3339(text)
    except ValueError:
        return None
