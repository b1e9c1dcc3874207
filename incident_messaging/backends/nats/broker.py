"""The NATS backend: JetStream by default, core NATS on demand, on an event loop of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from incident_messaging.backends.base import (
    Archive,
    ConsumerSpec,
    MessageConsumer,
    MessageProducer,
    Parcel,
    Sink,
    Status,
)
from incident_messaging.backends.nats.archive import StreamArchive
from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.consume import JetStreamConsumer, Settling, Tools
from incident_messaging.backends.nats.core import CoreConsumer, CorePublisher
from incident_messaging.backends.nats.marks import Marks
from incident_messaging.backends.nats.publish import Publisher, closed
from incident_messaging.backends.nats.streams import Api, Streams
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import ConfigurationError, MessagingError
from incident_messaging.eventloop import EventLoop, Mailbox

_log = logging.getLogger("incident_messaging.nats")

#: Seconds of a close that belong to taking leave of the server and of the loop.
_FAREWELL_SECS = 0.5


class NatsBroker(MessageProducer):
    """See `MessageProducer`. One daemon thread, started by the first use, owns the loop and all on it."""

    name = "nats"

    def __init__(self, config: MessagingConfig) -> None:
        self._config = config
        self._core = config.nats.delivery == "core"
        self._loop = EventLoop("incident-messaging-loop")
        self._connection = Connection(config)
        api = Api(self._connection)
        streams = Streams(api, self._connection, config)
        publisher = CorePublisher if self._core else Publisher
        patience = config.nats.request_timeout_ms / 1000
        self._publisher = publisher(self._connection, streams, patience, lambda: self.told())
        self._sends: Mailbox[Parcel] = self._loop.mailbox(self._publisher.take, self._refuse)
        settling: Mailbox[Settling] = self._loop.mailbox(_settle, _ignore)
        marks = Marks(api, self._connection, streams, may_create=config.nats.create_streams)
        self._tools = Tools(config, self._loop, self._connection, api, streams, marks, settling)
        self._closed = False
        self._finishing = threading.Lock()  # held by whoever closes
        self._finished = False

    def connect(self, deadline: Deadline) -> None:
        """See `MessageProducer.connect`."""
        grace = Deadline(None if deadline.at is None else deadline.at + 0.1)
        self._loop.run(lambda: self._connection.until_up(deadline), grace, "connecting to NATS")

    def send_all(self, parcels: Sequence[Parcel]) -> None:
        """See `MessageProducer.send_all`."""
        if self._closed:
            self._refuse(parcels)
        else:
            self._sends.put_all(parcels)

    def consumer(self, spec: ConsumerSpec, sink: Sink) -> MessageConsumer:
        """See `MessageProducer.consumer`."""
        return (CoreConsumer if self._core else JetStreamConsumer)(self._tools, spec, sink)

    def archive(self, topic: str, patience: float) -> Archive:
        """See `MessageProducer.archive`."""
        if self._core:
            raise ConfigurationError("core delivery keeps nothing: there are no dead letters to look into")
        return StreamArchive(self._loop, self._tools.api, self._tools.streams, topic, patience)

    def status(self) -> Status:
        """See `MessageProducer.status`."""
        return Status(state=self._connection.state, error=self._connection.error)

    def close(self, deadline: Deadline) -> int:
        """See `MessageProducer.close`."""
        self._closed = True
        left = deadline.left()
        if not self._finishing.acquire(timeout=-1 if left is None else left):
            return 0  # by another thread, which counts
        try:  # a Ctrl-C in here leaves the rest to the next call
            return 0 if self._finished else self._finish(deadline)
        finally:
            self._finishing.release()

    def _finish(self, deadline: Deadline) -> int:
        left = self._farewell(deadline) if self._loop.started else 0
        self._loop.stop(Deadline.after(deadline.wait(_FAREWELL_SECS) + 0.3))
        self._connection.state = "closed"
        self._finished = True
        return left

    def _farewell(self, deadline: Deadline) -> int:
        for_records = Deadline(None if deadline.at is None else deadline.at - _FAREWELL_SECS)
        try:
            self._loop.run(self._publisher.drained, for_records, "sending what was handed over")
        except MessagingError:
            pass  # counted below
        try:
            return self._loop.run(lambda: self._end(deadline), Deadline.after(_FAREWELL_SECS), "closing NATS")
        except MessagingError as exc:
            _log.warning("%s", exc)
            return len(self._publisher)

    def _refuse(self, parcels: Sequence[Parcel]) -> None:
        for parcel in parcels:
            parcel(None, False, closed(parcel))
        self.told()

    async def _end(self, deadline: Deadline) -> int:
        left = self._publisher.fail_all(closed)
        if left:
            _log.warning("NATS closed with %d records unacknowledged", left)
        await self._connection.close(deadline)
        return left


def _settle(items: list[Settling]) -> None:
    for settle, burst in groupby(items, itemgetter(0)):
        settle([message for _, batch in burst for message in batch])


def _ignore(items: list[Settling]) -> None:
    """Acknowledgements after the end: the messages come again to somebody."""
