"""The way of every publish: encode, take a place in the window, hand over to the chosen brokers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import attrs

from incident_messaging import topics, tracing
from incident_messaging.callbacks import CallbackThread, PublishFuture
from incident_messaging.codec import Codec
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.connections import Connections
from incident_messaging.context import correlation_of
from incident_messaging.deadline import Deadline
from incident_messaging.envelope import MessageEnvelope
from incident_messaging.errors import MessagingError, PublishFailed, Timeout
from incident_messaging.metrics import OTHER, Meter
from incident_messaging.publishing.batch import Batch
from incident_messaging.publishing.outlet import Waiter
from incident_messaging.publishing.publication import Pair, Publication, PublishReceipt, Single
from incident_messaging.record import Record

#: Seconds that a broker may be late with an outcome before the call gives up on it.
LATE = 0.15


@attrs.frozen
class Message:
    """What the caller wants published."""

    topic: str
    payload: Any
    key: str | None = attrs.field(default=None, kw_only=True)
    headers: Mapping[str, str] | None = attrs.field(default=None, kw_only=True)
    correlation_id: str | None = attrs.field(default=None, kw_only=True)


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

    def publish(self, message: Message, backend: MessagingBackend | str | None, deadline: Deadline) -> PublishReceipt:
        """Hand over and wait for the outcome; promises and errors as ``MessagingService.publish``."""
        waiting = _Waiting()
        envelope, publication = self._hand_over(message, backend, deadline, deadline, waiting)
        if publication is None:
            return _nothing(envelope, message.topic)
        if not waiting.ended.wait((deadline.left() or 0.0) + LATE):
            raise Timeout(
                f"publish to {message.topic} has no outcome",
                maybe_delivered=True,
                topic=message.topic,
                envelope=envelope,
            )
        self._connections.note()
        return publication.receipt()

    def publish_nowait(
        self, message: Message, backend: MessagingBackend | str | None, block: Deadline
    ) -> Future[PublishReceipt]:
        """Hand over; promises and errors as ``MessagingService.publish_nowait``."""
        future = PublishFuture(self._callbacks, message.topic)
        deadline = Deadline.after(self._config.publish_timeout_ms / 1000)
        envelope, publication = self._hand_over(message, backend, block, deadline, _Promised(future))
        if publication is None:
            future.set_result(_nothing(envelope, message.topic))
        return future

    def check(self, topic: str | None, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Refuse what would be wrong with every message of a batch; errors as ``publish``."""
        try:
            if topic is not None:
                topics.full_name(self._config.topic_prefix, topic)
            self._codec.check(key, headers)
        except MessagingError as error:
            raise self._refused(error, topic, self._connections.backends) from error.__cause__

    def add(self, batch: Batch, message: Message, deadline: Deadline) -> None:
        """Hand over one message of a batch, which learns of its end."""
        index = batch.next_index()
        try:
            envelope, publication = self._hand_over(message, None, deadline, deadline, batch, index)
        except MessagingError as error:
            batch.fail(index, error)
        except BaseException:
            batch.drop(index)
            raise
        else:
            if publication is None:
                batch.nothing(index, _nothing(envelope, message.topic))

    def _hand_over(
        self,
        message: Message,
        backend: MessagingBackend | str | None,
        block: Deadline,
        deadline: Deadline,
        waiter: Waiter,
        index: int = 0,
    ) -> tuple[MessageEnvelope[Any], Publication | None]:
        """No publication where messaging is disabled."""
        chosen = self._chosen(message, backend)
        envelope, record, size = self._encode(message, chosen)
        if not self._config.enabled:
            return envelope, None
        sending = _followed(record, message, envelope, chosen)
        try:
            if sending is not None:
                waiter = _Traced(sending, waiter)
                size = self._checked_size(message, envelope, record, chosen)
            publication = self._publication(chosen, envelope, message.topic, size, waiter, index)
            publication.start(record, block, deadline)
        except BaseException as error:
            if sending is not None:
                sending.ended({}, error)
            raise
        return envelope, publication

    def _publication(
        self,
        chosen: Sequence[MessagingBackend],
        envelope: MessageEnvelope[Any],
        topic: str,
        size: int,
        waiter: Waiter,
        index: int,
    ) -> Publication:
        if len(chosen) == 1:
            return Single(self._connections.outlet(chosen[0]), envelope, topic, size, waiter, index)
        outlets = [self._connections.outlet(one) for one in chosen]
        require, later = self._config.publish_require, self._timer.submit
        return Pair(outlets, envelope, topic, size, waiter, index, require=require, later=later)

    def _chosen(self, message: Message, backend: MessagingBackend | str | None) -> Sequence[MessagingBackend]:
        try:
            return self._connections.chosen(backend)
        except MessagingError as error:
            raise self._refused(error, message.topic, self._connections.backends) from error.__cause__

    def prepare(self, message: Message) -> tuple[MessageEnvelope[Any], Record]:
        """What would be sent; errors as ``publish`` of what is wrong with the message itself."""
        envelope, record, _ = self._encode(message, self._connections.backends)
        return envelope, record

    def _encode(self, message: Message, chosen: Sequence[MessagingBackend]) -> tuple[MessageEnvelope[Any], Record, int]:
        label = OTHER
        try:
            full = topics.full_name(self._config.topic_prefix, message.topic)
            label = message.topic
            envelope, record = self._codec.encode(
                message.payload,
                topic=full,
                key=message.key,
                headers=message.headers,
                correlation_id=correlation_of(message.payload, message.correlation_id),
            )
        except MessagingError as error:
            raise self._refused(error, message.topic, chosen, label) from error.__cause__
        return envelope, record, self._checked_size(message, envelope, record, chosen)

    def _checked_size(
        self,
        message: Message,
        envelope: MessageEnvelope[Any],
        record: Record,
        chosen: Sequence[MessagingBackend],
    ) -> int:
        size, most = record.size, self._config.max_message_size
        if size > most:
            error = PublishFailed(
                f"message of {size:,} bytes exceeds max_message_size {most:,} (body, key and headers);"
                " send less, or raise max_message_size and the broker's own limit",
                code="too_large",
                envelope=envelope,
            )
            raise self._refused(error, message.topic, chosen, message.topic)
        return size

    def _refused(
        self, error: MessagingError, topic: Any, backends: Sequence[MessagingBackend], label: str = OTHER
    ) -> MessagingError:
        """Count what never went to a broker; a topic that is none is no label."""
        for backend in backends:
            self._meter.publish_failed(label, backend.value, error)
        return error if topic is None else error.about(topic=str(topic))


def _followed(
    record: Record, message: Message, envelope: MessageEnvelope[Any], chosen: Sequence[MessagingBackend]
) -> tracing.Sending | None:
    """What a tracer makes of a message on its way, whose headers it adds to; ``None`` where nobody looks on."""
    tracer = tracing.installed()
    if tracer is None:
        return None
    metadata = envelope.metadata
    sending = tracer.publishing(
        tracing.Outgoing(
            topic=message.topic,
            backends=[backend.value for backend in chosen],
            message_id=metadata.message_id,
            correlation_id=metadata.correlation_id,
            key=record.key,
            size=len(record.body),
        )
    )
    record.headers = {**sending.headers, **record.headers}  # the user's own baggage stays
    return sending


def _nothing(envelope: MessageEnvelope[Any], topic: str) -> PublishReceipt:
    """The receipt of a publish while messaging is disabled."""
    return PublishReceipt(message_id=envelope.metadata.message_id, topic=topic, results={})


class _Waiting:
    """A thread that waits for one publish."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = threading.Event()

    def finished(self, _: Sequence[Publication]) -> None:
        """It has ended."""
        self.ended.set()


class _Promised:
    """A future of one publish."""

    __slots__ = ("_future",)

    def __init__(self, future: PublishFuture) -> None:
        self._future = future

    def finished(self, publications: Sequence[Publication]) -> None:
        """It has ended."""
        for publication in publications:
            # Not raised here: its traceback would keep the frames of the broker's thread, and the client with them,
            # alive for as long as somebody keeps the future.
            error = publication.failure()
            if error is not None:
                self._future.set_exception(error)
            else:
                self._future.set_result(publication.receipt())


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
