"""Core NATS, at most once: nothing is kept by the server, and what is under way may be lost."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from incident_messaging.backends.base import ConsumerSpec, MessageConsumer, Sink
from incident_messaging.backends.nats.consume import Tools
from incident_messaging.backends.nats.credit import Credit
from incident_messaging.backends.nats.publish import Publisher
from incident_messaging.backends.nats.wire import Message
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError, SubscribeFailed, Timeout
from incident_messaging.record import Position, Received

_log = logging.getLogger("incident_messaging.nats")

#: How many times its prefetch a slow subscription may fall behind before it misses messages.
_BACKLOG = 8


class CorePublisher(Publisher):
    """A record is done when the server has read it; what a broken connection swallowed is not sent again."""

    _wants_stream = False

    def up(self) -> None:
        """Send what was never sent."""
        self._send([number for number, parcel in self._pending.items() if not parcel.sent])

    def down(self) -> None:
        """Whether the server has read what was sent is not known."""
        for number, parcel in list(self._pending.items()):
            if parcel.sent:
                text = f"{parcel.topic}: the connection was lost before NATS had confirmed"
                self._end(number, error=Timeout(text, maybe_delivered=True, backend="nats"))

    def _send(self, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        super()._send(numbers)
        if numbers:
            self._connection.confirm(partial(self._read, numbers))

    def _reply_to(self, number: int) -> str:
        return ""

    def _read(self, numbers: Sequence[int], read: bool) -> None:
        if read:
            self._end_all(numbers)


class CoreMessage(Message):
    """A message that nobody keeps: it has no place, and the time at which it came."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        """See `Message`."""
        if name == "position":
            self.position = Position(topic=self.topic)
            return self.position
        return super().__getattr__(name)

    def _own_id(self) -> str:
        return os.urandom(16).hex()


class CoreConsumer(MessageConsumer):
    """See `MessageConsumer`; acknowledging only makes room for the next. Everything else is on the loop."""

    def __init__(self, tools: Tools, spec: ConsumerSpec, sink: Sink) -> None:
        self._tools = tools
        self._spec = spec
        self._sink = sink
        self._credit = Credit(spec.prefetch, spec.prefetch_bytes)
        self._backlog: deque[CoreMessage] = deque()
        self._backlog_size = 0
        self._unsettled: set[Received] = set()
        self._handing_over = False
        self._missed = 0
        self._sid: int | None = None
        self._over = False
        self._ready = False

    def open(self, deadline: Deadline) -> None:
        """See `MessageConsumer.open`."""
        topic = self._spec.topic
        try:
            self._tools.loop.run(self._open, deadline, f"subscribing to {topic}")
        except Timeout as exc:
            if not self._tools.connection.ever:
                raise self._tools.connection.failed("no answer in time") from exc
            words = f"{topic}: not ready in time, waited for the server to confirm"
            raise Timeout(words, backend="nats") from exc

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        """See `MessageConsumer.ack`."""
        self._tools.settling.put((self._settle, batch))

    def extend(self, batch: Sequence[Received]) -> None:
        """See `MessageConsumer.extend`: nobody waits here."""

    def mark(self, message: Received, starts: int, deadline: Deadline) -> None:
        """See `MessageConsumer.mark`: what a process died of does not come again."""

    def close(self, deadline: Deadline) -> None:
        """See `MessageConsumer.close`."""
        self._over = True
        if not self._tools.loop.started:
            return
        try:
            self._tools.loop.run(self._close, deadline, f"leaving {self._spec.topic}")
        except MessagingError as exc:
            _log.warning("%s: %s", self._spec.topic, exc)

    async def _open(self) -> None:
        connection = self._tools.connection
        connection.attach(self)
        self._sid = connection.listen(self._spec.topic, self._message, self._spec.name if self._spec.group else "")
        try:
            while not self._over:
                await connection.until_up()
                if await connection.barrier() and not self._over:
                    self._ready = True
                    return
        except BaseException:
            await self._close()
            raise
        raise SubscribeFailed(
            f"NATS denies subscribing to {self._spec.topic}: the user has no permission for it",
            code="denied",
            backend="nats",
        )

    async def _close(self) -> None:
        self._over = True
        self._tools.connection.detach(self)
        if self._sid is not None:
            self._tools.connection.forget(self._sid)

    def _message(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        if len(self._backlog) >= self._spec.prefetch * _BACKLOG or self._backlog_size >= self._spec.prefetch_bytes:
            self._miss()
            return
        message = CoreMessage(subject, headers, body)
        message.timestamp = time.time()
        self._backlog.append(message)
        self._backlog_size += message.size
        if not self._handing_over:
            self._handing_over = True
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _miss(self) -> None:
        if not self._missed:
            self._tools.connection.error = f"slow consumer on {self._spec.topic}: messages are dropped"
            _log.warning("NATS %s", self._tools.connection.error)
        self._missed += 1

    def _hand_over(self) -> None:
        self._handing_over = False
        batch = [] if self._over else self._credit.take(self._backlog)
        self._unsettled.update(batch)
        self._backlog_size -= sum(message.size for message in batch)
        if batch:
            self._sink.deliver(batch)
        if self._missed and not self._backlog:
            _log.warning("NATS slow consumer on %s: %d messages were dropped", self._spec.topic, self._missed)
            self._missed = 0

    def _settle(self, batch: Sequence[Received]) -> None:
        settled = self._unsettled.intersection(batch)
        self._unsettled -= settled
        self._credit.give_back(settled)
        self._hand_over()

    def up(self) -> None:
        """Nothing: the connection has subscribed again."""

    def down(self) -> None:
        """Nothing: what is missed now is lost."""

    def denied(self, action: str, subject: str) -> None:
        """A subscription that is not allowed is over."""
        if action != "subscription" or subject != self._spec.topic.lower() or self._over:
            return
        self._over = True

    def gave_up(self, error: MessagingError) -> None:
        """The subscription is over with the connection."""
        if not self._over:
            self._over = True
            if self._ready:  # else whoever opens it is told
                self._sink.ended(error)
