"""The load of ``incident-messaging bench``: how it is made, and what is measured of it."""

from __future__ import annotations

import base64
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import attrs

from incident_messaging import topics
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.consuming.delivery import Delivery
from incident_messaging.consuming.subscription import Subscription
from incident_messaging.service import MessagingService

__all__ = ["Figures", "Latency", "Load", "OwnTopic", "Rate", "measured"]

#: The number of a message that does not count.
_WARMING = -1
#: As many incidents as the messages are about.
_KEYS = 100
#: Bytes of text that is drawn from, so that the messages of one request hardly share any.
_POOL = 4 * 1024 * 1024
#: Spreads consecutive numbers (Knuth, The Art of Computer Programming, volume 3, 6.4).
_SPREAD = 2_654_435_761


@attrs.frozen(kw_only=True)
class Load:
    """How much is sent.

    Attributes:
        messages: How many messages, of each way to publish.
        size: Bytes of text in each.
        threads: Threads that publish and wait.
        seconds: After how long a step begins nothing more.
    """

    messages: int
    size: int
    threads: int
    seconds: float


@attrs.frozen
class Rate:
    """How fast messages went.

    Attributes:
        messages: How many.
        seconds: In what time.
        start: How many of them only started the clock.
    """

    messages: int
    seconds: float
    start: int = 0

    @property
    def per_second(self) -> float | None:
        """Messages a second, where there were enough to tell."""
        counted = self.messages - self.start
        return counted / self.seconds if counted > 0 and self.seconds > 0 else None


@attrs.frozen(kw_only=True)
class Latency:
    """Milliseconds that half, 95 %, 99 % and all of the messages stayed within (nearest rank)."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Latency | None:
        """Of all messages; of none there is none."""
        ordered = sorted(nanoseconds)
        if not ordered:
            return None
        ranks = {name: -(-len(ordered) * share // 100) for name, share in (("p50", 50), ("p95", 95), ("p99", 99))}
        return cls(**{name: ordered[rank - 1] / 1e6 for name, rank in ranks.items()}, max=ordered[-1] / 1e6)


@attrs.frozen(kw_only=True)
class Figures:
    """What was measured on one broker.

    Attributes:
        body_bytes: Bytes of a message's body, its envelope included.
        publish: By ``publish`` in several threads.
        publish_latency: From the call to its return.
        delivered: How many of those came to the callback in time.
        delivery_latency: From the call of ``publish`` to the callback's.
        publish_batch: By ``publish_batch``, until all were acknowledged.
        consume: Of the batch, by a callback, from the first to the last; ``None`` where nothing is kept.
    """

    body_bytes: int
    publish: Rate
    publish_latency: Latency | None
    delivered: int
    delivery_latency: Latency | None
    publish_batch: Rate
    consume: Rate | None


@attrs.define
class OwnTopic:
    """A topic that nobody else uses.

    Attributes:
        name: Its name, without prefix; also that of the only group that reads it.
        full: Its name on the broker.
        place: The group's name on the broker.
        used: Whether there may be anything of it.
        left: What could not be taken away again, in words.
    """

    name: str
    full: str
    place: str
    used: bool = False
    left: list[str] = attrs.field(factory=list)

    @classmethod
    @contextmanager
    def of(cls, config: MessagingConfig) -> Iterator[OwnTopic]:
        """One for a configuration with one broker, from which all of it is taken away at the end.

        Raises:
            MessagingError: The broker cannot be had.
        """
        name = f"bench-{uuid.uuid4().hex[:8]}"
        full = topics.full_name(config.topic_prefix, name)
        if config.backend is MessagingBackend.NATS:
            place = topics.durable_name(name, full)
        else:
            place = topics.place_name(name, full, exact=config.kafka.exact_group_id)
        topic = cls(name, full, place)
        traces = import_module(f"incident_messaging.backends.{config.backend.value}.traces").Traces(config, topic.full)
        try:
            yield topic
        finally:
            if topic.used:
                topic.left += traces.remove([topic.place])


def measured(config: MessagingConfig, load: Load, topic: OwnTopic, say: Callable[[str], object]) -> Figures:
    """Load the configuration's one broker, step by step; ``say`` is told of each.

    Raises:
        MessagingError: The broker cannot be had, or refused something.
    """
    with MessagingService(config) as service:
        topic.used = True
        steps = _Steps(service, topic, load)
        say("publish")
        with steps.subscribed() as inbox:
            steps.warm(inbox)
            publish, delays = steps.publish()
            inbox.wait(publish.messages, load.seconds)
        say("publish_batch")
        batch = steps.publish_batch()
        consume = None
        if not _keeps_nothing(config):
            say("consume")
            with steps.subscribed() as reading:
                reading.wait(batch.messages + publish.messages - len(inbox.delays), load.seconds)
            consume = reading.rate()
        return Figures(
            body_bytes=inbox.body_bytes,
            publish=publish,
            publish_latency=Latency.of(delays),
            delivered=len(inbox.delays),
            delivery_latency=Latency.of(inbox.delays),
            publish_batch=batch,
            consume=consume,
        )


def _keeps_nothing(config: MessagingConfig) -> bool:
    return config.backend.value == "nats" and config.nats.delivery == "core"


class _Inbox:
    """A callback that notes when what came, and how long after it was sent."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.warm = threading.Event()
        self.delays: list[int] = []
        self.body_bytes = 0
        self._first = self._last = 0

    def __call__(self, delivery: Delivery[dict[str, Any]]) -> None:
        now = time.perf_counter_ns()
        if delivery.payload["number"] == _WARMING:
            self.warm.set()
            return
        with self._changed:
            self._first, self._last = self._first or now, now
            self.delays.append(now - delivery.payload["sent"])
            self.body_bytes = len(delivery.body)
            self._changed.notify_all()

    def wait(self, messages: int, seconds: float) -> bool:
        """Whether so many came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.delays) >= messages, seconds)

    def rate(self) -> Rate:
        """From the first to the last."""
        return Rate(len(self.delays), (self._last - self._first) / 1e9, start=1)


class _Steps:
    """What is done with one broker."""

    def __init__(self, service: MessagingService, topic: OwnTopic, load: Load) -> None:
        self._service = service
        self._topic = topic
        self._load = load
        size = -(-(_POOL + load.size) * 3 // 4)
        self._pool = base64.b64encode(os.urandom(size)).decode()  # text that hardly compresses

    @contextmanager
    def subscribed(self) -> Iterator[_Inbox]:
        inbox = _Inbox()
        subscription: Subscription[dict[str, Any]]
        with self._service.subscribe(self._topic.name, group=self._topic.name, callback=inbox) as subscription:
            yield inbox
            if subscription.error is not None:
                raise subscription.error

    def warm(self, inbox: _Inbox) -> None:
        """Send one message through, which does not count."""
        self._service.publish(self._topic.name, self._message(_WARMING))
        inbox.warm.wait(self._load.seconds)

    def publish(self) -> tuple[Rate, list[int]]:
        """Publish in threads, each waiting for each; with what each took in nanoseconds."""
        numbers = iter(range(self._load.messages))  # shared by the threads
        ended = threading.Event()
        begun = time.perf_counter()

        def work() -> list[int]:
            delays = []
            try:
                for number in numbers:
                    if ended.is_set() or time.perf_counter() - begun > self._load.seconds:
                        break
                    message = self._message(number)
                    self._service.publish(self._topic.name, message, key=_key(message))
                    delays.append(time.perf_counter_ns() - message["sent"])
            except BaseException:
                ended.set()
                raise
            return delays

        with ThreadPoolExecutor(self._load.threads, thread_name_prefix="bench") as pool:
            try:
                threads = [pool.submit(work) for _ in range(self._load.threads)]
                delays = [delay for thread in threads for delay in thread.result()]
            finally:
                ended.set()
        return Rate(len(delays), time.perf_counter() - begun), delays

    def publish_batch(self) -> Rate:
        begun = time.perf_counter()

        def messages() -> Iterator[dict[str, Any]]:
            for number in range(self._load.messages):
                if time.perf_counter() - begun > self._load.seconds:
                    break
                yield self._message(number)

        result = self._service.publish_batch(self._topic.name, messages(), key=_key)
        return Rate(len(result), time.perf_counter() - begun)

    def _message(self, number: int) -> dict[str, Any]:
        begin = number * _SPREAD % _POOL
        text = self._pool[begin : begin + self._load.size]
        return {"number": number, "text": text, "sent": time.perf_counter_ns()}


def _key(message: dict[str, Any]) -> str:
    return f"bench-{message['number'] % _KEYS}"
