"""The way of every publish: encode, take a place in the window, hand over to the chosen brokers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import attrs

from incident_messaging import topics, tracing
from incident_messaging.callbacks import CallbackThread
from incident_messaging.codec import CORRELATION_ID, MESSAGE_ID, Codec, sent_envelope
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.connections import Connections
from incident_messaging.context import correlation_of
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError, PublishFailed, Timeout
from incident_messaging.metrics import OTHER, Meter
from incident_messaging.publishing.batch import Batch
from incident_messaging.publishing.future import OutcomeFuture, SingleFuture
from incident_messaging.publishing.outlet import Outlet, Waiter
from incident_messaging.publishing.publication import Pair, Publication, PublishReceipt, Single, start_all
from incident_messaging.record import Record

#: Topics whose route is kept.
_ROUTES = 4096

#: Seconds that a broker may be late with an outcome before the call gives up on it.
LATE = 0.15


@attrs.define
class Message:
    """What the caller wants published; not to be changed. (A frozen class takes three times as long to build.)"""

    topic: str
    payload: Any
    key: str | None = attrs.field(default=None, kw_only=True)
    headers: Mapping[str, str] | None = attrs.field(default=None, kw_only=True)
    correlation_id: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class Route:
    """Where a topic's messages go.

    Attributes:
        topic: Without the prefix.
        full: Its name on the brokers.
        backends: The brokers that were asked for.
        outlets: The way to each; none where messaging is disabled.
    """

    topic: str
    full: str
    backends: Sequence[MessagingBackend]
    outlets: Sequence[Outlet]


class _Run:
    """Messages of a batch to one broker that are handed over together.

    Attributes:
        route: That of the last message, if there was one.
        deadline: For those that are handed over next.
    """

    def __init__(self, batch: Batch, limit: float, together: int) -> None:
        self.route: Route | None = None
        self.deadline = Deadline.after(limit)
        self._batch = batch
        self._limit = limit
        self._together = together
        self._legs: list[Single] = []

    def add(self, leg: Single) -> None:
        """Take one in; whoever completes the run starts it."""
        self._legs.append(leg)
        if len(self._legs) >= self._together:
            self.start()

    def start(self) -> None:
        """Hand over what was taken in; the batch learns of those that were not let in."""
        self.deadline = self.deadline.renewed(self._limit)
        legs, self._legs = self._legs, []
        if not legs:
            return
        try:
            refused = start_all(legs, self.deadline, self._limit)
        except BaseException:
            self._batch.drop(len(legs))
            raise
        for leg, error in refused:
            self._batch.fail(leg.index, error)


class Publisher:
    """Publishes for a service, over the connections of this process."""

    def __init__(
        self,
        config: MessagingConfig,
        codec: Codec,
        connections: Connections,
        meter: Meter,
        timer: CallbackThread,
        callbacks: CallbackThread,
    ) -> None:
        self._config = config
        self._codec = codec
        self._connections = connections
        self._meter = meter
        self._timer = timer
        self._callbacks = callbacks
        self._timeout = config.publish_timeout_ms / 1000
        self._most = config.max_message_size
        self._deadline = Deadline(0.0)  # of the last publish_nowait, shared by those of a moment
        self._routes: dict[str, Route] = {}

    def publish(self, message: Message, backend: MessagingBackend | str | None, deadline: Deadline) -> PublishReceipt:
        """Hand over and wait for the outcome; promises and errors as ``MessagingService.publish``."""
        waiting = _Waiting()
        route = self._route(message.topic, backend)
        record, publication = self._hand_over(message, route, deadline, deadline, waiting)
        if publication is None:
            return _nothing(record, message.topic)
        if not waiting.wait((deadline.left() or 0.0) + LATE):
            raise Timeout(
                f"publish to {message.topic} has no outcome",
                maybe_delivered=True,
                topic=message.topic,
                envelope=sent_envelope(message.payload, record),
            )
        self._connections.note()
        return publication.receipt()

    def publish_nowait(
        self, message: Message, backend: MessagingBackend | str | None, block: Deadline
    ) -> Future[PublishReceipt]:
        """Hand over; promises and errors as ``MessagingService.publish_nowait``."""
        deadline = self._deadline = self._deadline.renewed(self._timeout)
        route = self._route(message.topic, backend)
        if _is_usual(route):
            single = SingleFuture(route.outlets[0], message.payload, route.topic, self._callbacks)
            single.taken = self._write(single, message, route.full, route.backends)
            single.start(block, deadline)
            return single
        future = OutcomeFuture(route.topic, self._callbacks)
        record, publication = self._hand_over(message, route, block, deadline, future)
        if publication is None:
            future.nothing(_nothing(record, message.topic))
        return future

    def check(self, topic: str | None, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Refuse what would be wrong with every message of a batch; errors as ``publish``."""
        try:
            if topic is not None:
                topics.full_name(self._config.topic_prefix, topic)
            self._codec.check(key, headers)
        except MessagingError as error:
            raise self._refused(error, topic, self._connections.backends) from error.__cause__

    def publish_all(self, batch: Batch, messages: Iterable[Message], limit: float, *, together: int) -> None:
        """Hand over one after another until too many failed.

        Args:
            batch: Learns of the end of each.
            messages: What to publish.
            limit: Seconds for each.
            together: How many may wait for one another before they are handed over.
        """
        run = _Run(batch, limit, together)
        try:
            for message in messages:
                self._add(batch, message, run)
                if batch.failed:
                    break
        except Exception:
            run.start()  # those before the one that could not even be read
            raise
        run.start()

    def _add(self, batch: Batch, message: Message, run: _Run) -> None:
        index = batch.next_index()
        try:
            route = run.route
            if route is None or message.topic != route.topic:
                route = run.route = self._route(message.topic, None)
            if _is_usual(route):
                run.add(self._single(message, route, batch, index))
                return
            run.start()
            record, publication = self._hand_over(message, route, run.deadline, run.deadline, batch, index)
        except MessagingError as error:
            batch.fail(index, error)
        except BaseException:
            batch.drop(1)
            raise
        else:
            if publication is None:
                batch.nothing(index, _nothing(record, message.topic))

    def prepare(self, message: Message) -> Record:
        """What would be sent; errors as ``publish`` of what is wrong with the message itself."""
        backends = self._connections.backends
        return self._encode(message, self._full_name(message.topic, backends), backends)[0]

    # -- the way of one message ---------------------------------------------------------------------------------

    def _route(self, topic: str, backend: MessagingBackend | str | None) -> Route:
        known = self._routes.get(topic) if backend is None and not self._connections.closed else None
        return known or self._new_route(topic, backend)

    def _new_route(self, topic: str, backend: MessagingBackend | str | None) -> Route:
        try:
            backends = self._connections.chosen(backend)
        except MessagingError as error:
            raise self._refused(error, topic, self._connections.backends) from error.__cause__
        full = self._full_name(topic, backends)
        outlets = [self._connections.outlet(one) for one in backends] if self._config.enabled else []
        route = Route(topic, full, backends, outlets)
        if backend is None and len(self._routes) < _ROUTES:
            self._routes[topic] = route
        return route

    def _full_name(self, topic: str, backends: Sequence[MessagingBackend]) -> str:
        try:
            return topics.full_name(self._config.topic_prefix, topic)
        except MessagingError as error:
            raise self._refused(error, topic, backends) from error.__cause__

    def _hand_over(
        self,
        message: Message,
        route: Route,
        block: Deadline,
        deadline: Deadline,
        waiter: Waiter,
        index: int = 0,
    ) -> tuple[Record, Publication | None]:
        """What is sent, and its publication; none where messaging is disabled."""
        if _is_usual(route):
            single = self._single(message, route, waiter, index)
            single.start(block, deadline)
            return single, single
        record, size = self._encode(message, route.full, route.backends)
        if not route.outlets:
            return record, None
        sending = _followed(message, route, record)
        if sending is not None:
            return record, self._traced(sending, message, route, record, block, deadline, waiter, index)
        publication = self._publication(route, message.payload, record, size, waiter, index)
        publication.start(block, deadline)
        return record, publication

    def _single(self, message: Message, route: Route, waiter: Waiter, index: int) -> Single:
        """The usual publication, which is the record itself."""
        single = Single(route.outlets[0], message.payload, route.topic, waiter, index)
        single.taken = self._write(single, message, route.full, route.backends)
        return single

    def _traced(
        self,
        sending: tracing.Sending,
        message: Message,
        route: Route,
        record: Record,
        block: Deadline,
        deadline: Deadline,
        waiter: Waiter,
        index: int,
    ) -> Publication:
        """The rest of the way where somebody looks on, whose headers make the message larger."""
        try:
            size = record.size
            if size > self._most:
                raise self._too_large(size, message, record, route.backends)
            publication = self._publication(route, message.payload, record, size, _Traced(sending, waiter), index)
            publication.start(block, deadline)
        except BaseException as error:
            sending.ended({}, error)
            raise
        return publication

    def _publication(
        self, route: Route, message: Any, record: Record, size: int, waiter: Waiter, index: int
    ) -> Publication:
        outlets = route.outlets
        if len(outlets) == 1:
            single = Single(outlets[0], message, route.topic, waiter, index)
            single.take(record)
            single.taken = size
            return single
        require, later = self._config.publish_require, self._timer.submit
        return Pair(outlets, message, record, route.topic, size, waiter, index, require=require, later=later)

    def _encode(self, message: Message, full: str, backends: Sequence[MessagingBackend]) -> tuple[Record, int]:
        record = Record.__new__(Record)
        return record, self._write(record, message, full, backends)

    def _write(self, record: Record, message: Message, full: str, backends: Sequence[MessagingBackend]) -> int:
        """Fill a blank record; returns its size."""
        payload = message.payload
        correlation = correlation_of(payload, message.correlation_id)
        try:
            size = self._codec.write(record, payload, full, message.key, message.headers, correlation)
        except MessagingError as error:
            raise self._refused(error, message.topic, backends, message.topic) from error.__cause__
        if size > self._most:
            raise self._too_large(size, message, record, backends)
        return size

    def _too_large(
        self, size: int, message: Message, record: Record, backends: Sequence[MessagingBackend]
    ) -> MessagingError:
        error = PublishFailed(
            f"message of {size:,} bytes exceeds max_message_size {self._most:,} (body, key and headers);"
            " send less, or raise max_message_size and the broker's own limit",
            code="too_large",
            envelope=sent_envelope(message.payload, record),
        )
        return self._refused(error, message.topic, backends, message.topic)

    def _refused(
        self, error: MessagingError, topic: Any, backends: Sequence[MessagingBackend], label: str = OTHER
    ) -> MessagingError:
        """Count what never went to a broker; a topic that is none is no label."""
        for backend in backends:
            self._meter.publish_failed(label, backend.value, error)
        return error if topic is None else error.about(topic=str(topic))


def _is_usual(route: Route) -> bool:
    """Whether a publish is one object: to one broker, and no tracer looks on."""
    return len(route.outlets) == 1 and tracing.installed() is None


def _followed(message: Message, route: Route, record: Record) -> tracing.Sending | None:
    """What a tracer makes of a message on its way, whose headers it adds to; ``None`` where nobody looks on."""
    tracer = tracing.installed()
    if tracer is None:
        return None
    sending = tracer.publishing(
        tracing.Outgoing(
            topic=message.topic,
            backends=[backend.value for backend in route.backends],
            message_id=record.headers[MESSAGE_ID],
            correlation_id=record.headers.get(CORRELATION_ID),
            key=record.key,
            size=len(record.body),
        )
    )
    record.headers = {**sending.headers, **record.headers}  # the user's own baggage stays
    return sending


def _nothing(record: Record, topic: str) -> PublishReceipt:
    """The receipt of a publish while messaging is disabled."""
    return PublishReceipt(message_id=record.headers[MESSAGE_ID], topic=topic, results={})


class _Waiting:
    """A thread that waits for one publish; a bare lock, since an event makes two and costs four times as much."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        self._ended = threading.Lock()
        self._ended.acquire()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by then. To be called once."""
        return self._ended.acquire(timeout=seconds)

    def finished(self, _: Sequence[Publication]) -> None:
        """It has ended."""
        self._ended.release()


class _Traced:
    """A tracer that is told before the one who waits."""

    def __init__(self, sending: tracing.Sending, waiter: Waiter) -> None:
        self._sending = sending
        self._waiter = waiter

    def finished(self, publications: Sequence[Publication]) -> None:
        """It has ended."""
        for publication in publications:
            self._sending.ended(publication.outcomes(), publication.failure())
        self._waiter.finished(publications)
