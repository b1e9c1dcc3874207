"""Prometheus instruments, and the meter through which the SDK counts.

Backends do not know this module. All updates go through one lock, which is held over a fork
(`incident_messaging.lifecycle`): prometheus_client's own locks are then never taken at that moment,
and the child does not inherit one that nobody will release.
"""

from __future__ import annotations

import collections
import os
import threading
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

#: Held round every update of an instrument, and over a fork.
LOCK = threading.RLock()  # re-entrant: a signal handler or finalizer may publish in between

_TOPIC = ("topic", "backend")
_ERROR = ("topic", "backend", "error")
_SIZES = (128, 512, 2_048, 8_192, 32_768, 131_072, 524_288, 1_048_576, 4_194_304)
_TIMES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: The label of topics beyond ``metrics_topic_limit``, and of names that are not topics.
OTHER = "other"


class MessagingMetrics:
    """The prometheus_client objects, by name.

    Labels: ``topic`` (without the prefix), ``backend`` (``nats``, ``kafka``, ``memory``), ``error``
    (the class of the error), ``reason`` (why a message was settled without a handler).

    They are made, and registered, by the first service or the first look at one of them: prometheus_client, which
    brings an HTTP server with it, takes a third of the time in which the whole package is imported.
    """

    messages_published: Counter
    messages_consumed: Counter
    publish_failures: Counter
    consume_failures: Counter
    active_connections: Gauge
    publish_latency: Histogram
    message_size: Histogram
    retries: Counter
    dead_letters: Counter
    redriven: Counter
    skipped: Counter
    stalled: Gauge
    handler_time: Histogram

    def __getattr__(self, name: str) -> Any:
        """An instrument, at the first look at any of them."""
        if name not in type(self).__annotations__:
            raise AttributeError(f"no metric {name!r}; there are {', '.join(sorted(type(self).__annotations__))}")
        self.make()
        return vars(self)[name]

    @property
    def made(self) -> bool:
        """Whether the instruments are there."""
        return "handler_time" in vars(self)  # the last

    def make(self) -> None:
        """Make the instruments, unless they are there."""
        with LOCK:
            if not self.made:
                self._make()

    def _make(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.messages_published = Counter(
            "messaging_messages_published_total", "Messages a broker has acknowledged", _TOPIC
        )
        self.messages_consumed = Counter(
            "messaging_messages_consumed_total", "Messages handed to a handler or iterator, each once", _TOPIC
        )
        self.publish_failures = Counter("messaging_publish_failures_total", "Publishes that ended in an error", _ERROR)
        self.consume_failures = Counter("messaging_consume_failures_total", "Attempts at a message that failed", _ERROR)
        self.active_connections = Gauge(
            "messaging_active_connections", "Brokers connected", ("backend",), multiprocess_mode="livesum"
        )
        self.publish_latency = Histogram(
            "messaging_publish_latency_seconds", "From hand-over to acknowledgement", _TOPIC, buckets=_TIMES
        )
        self.message_size = Histogram(
            "messaging_message_size_bytes", "Body, key and headers of a publish", _TOPIC, buckets=_SIZES
        )
        self.retries = Counter("messaging_retries_total", "Messages put back for another attempt", _TOPIC)
        self.dead_letters = Counter("messaging_dead_letters_total", "Dead letters a broker has taken", _TOPIC)
        self.redriven = Counter("messaging_redriven_total", "Dead letters put back on their topic", _TOPIC)
        self.skipped = Counter("messaging_skipped_total", "Messages settled without a handler", (*_TOPIC, "reason"))
        self.stalled = Gauge(
            "messaging_stalled_subscriptions",
            "Subscriptions whose prefetch is full of messages that wait",
            _TOPIC,
            multiprocess_mode="livesum",
        )
        self.handler_time = Histogram("messaging_handler_seconds", "Time in a callback", _TOPIC, buckets=_TIMES)

    def value(self, name: str, **labels: str) -> float:
        """One instrument's value by its attribute name; of a histogram, the sum of what it saw.

        Raises:
            KeyError: There is no instrument of that name.
        """
        self.make()
        instrument = vars(self).get(name)
        if instrument is None:
            raise KeyError(f"no metric {name!r}; there are {', '.join(sorted(vars(self)))}")
        with LOCK:
            child = instrument.labels(**labels)
            cell = child._sum if hasattr(child, "_sum") else child._value
            return float(cell.get())


def _is_text(topic: str) -> bool:
    """Whether it can be a label: a stranger's topic may hold foreign bytes (surrogateescape), and no page can."""
    try:
        return topic.isascii() or bool(topic.encode())
    except UnicodeEncodeError:
        return False


def _observe(histogram: Any, values: Sequence[float]) -> None:
    """``histogram.observe`` of each value, with one addition for each bucket; there is no public way."""
    if len(values) < 2:
        for value in values:
            histogram.observe(value)
        return
    histogram._sum.inc(sum(values))
    number = bisect_left(histogram._upper_bounds, min(values))
    if max(values) <= histogram._upper_bounds[number]:  # as sizes nearly always
        histogram._buckets[number].inc(len(values))
        return
    for number, count in collections.Counter(map(partial(bisect_left, histogram._upper_bounds), values)).items():
        histogram._buckets[number].inc(count)


def after_fork_in_child() -> None:
    """What a gauge counts is the parent's; in prometheus_client's multiprocess mode a child has its own file."""
    if not MESSAGING_METRICS.made:
        return
    for gauge in (MESSAGING_METRICS.active_connections, MESSAGING_METRICS.stalled):
        gauge.clear()
    _users.clear()


#: The instruments of this process, in prometheus_client's default registry.
MESSAGING_METRICS = MessagingMetrics()

#: Children that a meter finds without asking; topics beyond `metrics_topic_limit` share one, but not its place here.
_REMEMBERED = 100_000

_topics_seen: set[str] = set()

#: Services of this process that use a broker, by backend; kept as the instruments are, under the lock.
_users: collections.Counter[str] = collections.Counter()


class Meter:
    """How a service counts: bounded topic labels, children looked up once, off when disabled."""

    def __init__(self, *, enabled: bool, topic_limit: int) -> None:
        if enabled:
            MESSAGING_METRICS.make()
        self._enabled = enabled
        self._limit = topic_limit
        self._children: dict[tuple[Any, ...], Any] = {}
        self._publishing: dict[tuple[str, str], tuple[Any, Any, Any]] = {}

    def published(self, topic: str, backend: str, sizes: Sequence[int], seconds: Sequence[float]) -> None:
        """A broker acknowledged publishes of so many bytes, after so many seconds."""
        if not self._enabled:
            return
        with LOCK:
            published, latency, message_size = self._publishing.get((topic, backend)) or self._look_up(topic, backend)
            published.inc(len(sizes))
            _observe(latency, seconds)
            _observe(message_size, sizes)

    def publish_failed(self, topic: str, backend: str, error: BaseException) -> None:
        """A publish ended in an error on one broker."""
        self._inc("publish_failures", topic, backend, type(error).__name__)

    def consumed(self, topic: str, backend: str, count: int) -> None:
        """So many messages reached a handler for the first time."""
        if self._enabled:
            with LOCK:
                self._child(MESSAGING_METRICS.messages_consumed, topic, backend).inc(count)

    def consume_failed(self, topic: str, backend: str, error: str) -> None:
        """An attempt failed with an error of this class."""
        self._inc("consume_failures", topic, backend, error)

    def retried(self, topic: str, backend: str) -> None:
        """A message was put back for another attempt."""
        self._inc("retries", topic, backend)

    def buried(self, topic: str, backend: str) -> None:
        """A broker acknowledged a dead letter."""
        self._inc("dead_letters", topic, backend)

    def redriven(self, topic: str, backend: str) -> None:
        """A broker acknowledged a dead letter that was put back."""
        self._inc("redriven", topic, backend)

    def skipped(self, topic: str, backend: str, reason: str) -> None:
        """A message was settled without a handler."""
        self._inc("skipped", topic, backend, reason)

    def handled(self, topic: str, backend: str, seconds: Sequence[float]) -> None:
        """Callbacks ended, after so many seconds."""
        if self._enabled:
            with LOCK:
                _observe(self._child(MESSAGING_METRICS.handler_time, topic, backend), seconds)

    def stalled(self, topic: str, backend: str, change: int) -> None:
        """A subscription came to (+1) or left (-1) the state of taking no more."""
        if self._enabled:
            with LOCK:
                self._child(MESSAGING_METRICS.stalled, topic, backend).inc(change)

    def connected(self, backend: str, change: int, *, users: int = 0) -> None:
        """A broker was connected (+1) or let go (-1); a service came to use one (``users`` +1) or was closed (-1).

        Zero says that a broker is missed, so where no service uses one any more there is no zero either. In
        prometheus_client's multiprocess mode one that was there stays: its files have no way to take one away.
        """
        if not self._enabled:
            return
        with LOCK:
            gauge = MESSAGING_METRICS.active_connections
            child = gauge.labels(backend=backend)
            child.inc(change)
            _users[backend] += users
            missed = _users[backend] or child._value.get()  # not zero where a look of before the close comes after it
            if not missed and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
                gauge.remove(backend)

    def _inc(self, instrument: str, topic: str, backend: str, *more: str) -> None:
        if self._enabled:
            with LOCK:
                self._child(getattr(MESSAGING_METRICS, instrument), topic, backend, *more).inc()

    def _look_up(self, topic: str, backend: str) -> tuple[Any, Any, Any]:
        """The three that every publish moves, found together the next time."""
        metrics = MESSAGING_METRICS
        instruments = (metrics.messages_published, metrics.publish_latency, metrics.message_size)
        first, second, third = (self._child(instrument, topic, backend) for instrument in instruments)
        if len(self._publishing) < _REMEMBERED:
            self._publishing[topic, backend] = first, second, third
        return first, second, third

    def _child(self, instrument: Any, topic: str, *labels: str) -> Any:
        key = (instrument, topic, *labels)
        child = self._children.get(key)
        if child is None:
            child = instrument.labels(self._label(topic), *labels)
            if len(self._children) < _REMEMBERED:
                self._children[key] = child
        return child

    def _label(self, topic: str) -> str:
        if topic not in _topics_seen:
            if len(_topics_seen) >= self._limit or not _is_text(topic):
                return OTHER
            _topics_seen.add(topic)
        return topic
