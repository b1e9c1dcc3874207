"""What a subscription is asked to be: its options, checked, and the plan made of them."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Generic, TypedDict, TypeVar

import attrs

from incident_messaging import topics
from incident_messaging.backends.base import ConsumerSpec, Start
from incident_messaging.config import MessagingBackend, MessagingConfig, RetryPolicy
from incident_messaging.consuming.delivery import Delivery
from incident_messaging.deadline import Deadline
from incident_messaging.errors import ConfigurationError
from incident_messaging.record import Position

T = TypeVar("T")

#: Messages that a group's member holds unsettled, and that a broadcast's reader may fall behind.
PREFETCH, BROADCAST_PREFETCH = 1_000, 10_000


class PlaceOptions(TypedDict, total=False):
    """What every way of consuming takes, of the place."""

    group: str | None
    broadcast: bool
    start: Start | None
    auto_ack: bool
    prefetch: int | None
    retry: RetryPolicy | None


class ConsumeOptions(PlaceOptions, total=False):
    """What ``subscribe`` and ``consume`` take alike."""

    backend: MessagingBackend | str | None


class IterateOptions(ConsumeOptions, total=False):
    """The keyword arguments of ``consume`` with its own two."""

    timeout: float | None
    limit: int | None


class ConsumeOneOptions(TypedDict, total=False):
    """The keyword arguments of ``consume_one``."""

    timeout: float
    group: str | None
    auto_ack: bool
    start: Start | None
    backend: MessagingBackend | str | None


class SubscribeOptions(ConsumeOptions, Generic[T], total=False):
    """The keyword arguments of ``subscribe``."""

    callback: Callable[[Delivery[T]], object] | None
    concurrency: int
    handler_timeout: float | None
    timeout: float | None


class HandlerOptions(ConsumeOptions, total=False):
    """The keyword arguments of ``handler``."""

    concurrency: int
    handler_timeout: float | None
    timeout: float | None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_start(value: object) -> bool:
    return value in (None, "earliest", "latest") or isinstance(value, datetime | Position)


#: What each option may be by itself, in code and in words.
_ALLOWED: Mapping[str, tuple[Callable[[Any], object], str]] = {
    "callback": (
        lambda value: value is None or (callable(value) and not inspect.iscoroutinefunction(value)),
        "a plain function of a Delivery (no coroutine function), or None",
    ),
    "group": (lambda value: value is None or (isinstance(value, str) and value.strip()), "a name that is not empty"),
    "broadcast": (lambda value: isinstance(value, bool), "True or False"),
    "start": (_is_start, "None, 'earliest', 'latest', an aware datetime or a Position"),
    "auto_ack": (lambda value: isinstance(value, bool), "True or False"),
    "concurrency": (_is_count, "a whole number from 1"),
    "prefetch": (lambda value: value is None or _is_count(value), "a whole number from 1, or None"),
    "retry": (lambda value: value is None or isinstance(value, RetryPolicy), "a RetryPolicy or None"),
    "handler_timeout": (
        lambda value: value is None or Deadline.seconds(value, "handler_timeout"),
        "more than 0 seconds, or None",
    ),
}


@attrs.frozen(kw_only=True)
class Wish:
    """The options of one subscription, as the caller gave them.

    Raises:
        ConfigurationError: One is not allowed, or two contradict each other.
    """

    topic: str
    callback: Callable[..., object] | None = None
    group: str | None = None
    broadcast: bool = False
    start: Start | None = None
    auto_ack: bool = True
    concurrency: int = 1
    prefetch: int | None = None
    retry: RetryPolicy | None = None
    handler_timeout: float | None = None

    def __attrs_post_init__(self) -> None:
        for name, (is_allowed, words) in _ALLOWED.items():
            if not is_allowed(value := getattr(self, name)):
                raise ConfigurationError(f"{name} {value!r} is not allowed: {words}")
        if self.broadcast and self.group is not None:
            raise ConfigurationError(f"broadcast takes no group, got group={self.group!r}: it sees every message")
        if self.concurrency != 1 and self.callback is None:
            raise ConfigurationError("concurrency needs a callback: an iterator runs in the caller's threads")
        if isinstance(self.start, datetime) and self.start.tzinfo is None:
            raise ConfigurationError(f"start {self.start!r} has no time zone: use an aware datetime")

    def spec(self, config: MessagingConfig, backend: MessagingBackend) -> ConsumerSpec:
        """What to ask of a broker."""
        topic = topics.full_pattern(config.topic_prefix, self.topic)
        group = None if self.broadcast else self.group or config.kafka.group_id
        return ConsumerSpec(
            topic=topic,
            group=group,
            name=_place(config, backend, group, topic),
            start=self._start(config, backend),
            prefetch=self.prefetch or (BROADCAST_PREFETCH if self.broadcast else PREFETCH),
            prefetch_bytes=config.max_in_flight_bytes,
            dead_letter_topic=topics.full_name(config.topic_prefix, config.dlq_topic) if config.enable_dlq else None,
        )

    def _start(self, config: MessagingConfig, backend: MessagingBackend) -> Start:
        core = backend is MessagingBackend.NATS and config.nats.delivery == "core"
        if core and self.start not in (None, "latest"):
            raise ConfigurationError(f"start {self.start!r} is not allowed with core delivery: nothing is kept")
        if isinstance(self.start, Position):
            self._check_position(self.start, backend)
        return self.start or ("latest" if self.broadcast or core else "earliest")

    @staticmethod
    def _check_position(start: Position, backend: MessagingBackend) -> None:
        place = start.sequence if backend is MessagingBackend.NATS else start.offset
        whole = (start.stream, place) if backend is MessagingBackend.NATS else (start.topic, start.partition, place)
        if None in whole or place is None or place < 0:
            fields = "stream and sequence" if backend is MessagingBackend.NATS else "topic, partition and offset"
            raise ConfigurationError(f"start {start} is no position on {backend.value}: it has {fields}, from 0")


def _place(config: MessagingConfig, backend: MessagingBackend, group: str | None, topic: str) -> str:
    if group is None:
        return f"broadcast-{uuid.uuid4().hex[:12]}"
    if backend is MessagingBackend.NATS:
        return topics.durable_name(group, topic)
    return topics.place_name(group, topic, exact=config.kafka.exact_group_id)


def backend_of(value: MessagingBackend | str | None) -> MessagingBackend | None:
    """A backend by member or name.

    Raises:
        ConfigurationError: There is none of that name.
    """
    if value is None or isinstance(value, MessagingBackend):
        return value
    try:
        return MessagingBackend(str(value).lower())
    except ValueError:
        allowed = ", ".join(member.value for member in MessagingBackend)
        raise ConfigurationError(f"backend {value!r} is not allowed: {allowed}") from None
