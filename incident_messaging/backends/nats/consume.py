"""A subscription on JetStream: one `Puller` for each stream, one credit for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, cast

import attrs

from incident_messaging.backends.base import ConsumerSpec, MessageConsumer, Sink, Start
from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.credit import Credit
from incident_messaging.backends.nats.marks import Marks
from incident_messaging.backends.nats.places import BroadcastPlace, DurablePlace, Place
from incident_messaging.backends.nats.pull import Arrival, Puller
from incident_messaging.backends.nats.streams import DENIED, Api, ApiError, NoCover, Streams
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, ConfigurationError, MessagingError, SubscribeFailed, Timeout
from incident_messaging.eventloop import EventLoop, Mailbox
from incident_messaging.record import Position, Received

_log = logging.getLogger("incident_messaging.nats")

#: ``settle(batch)`` on the loop, and its batch.
Settling = tuple[Callable[[Sequence[Received]], None], Sequence[Received]]

#: Seconds between two looks after everything that takes time.
_TICK_SECS = 0.5
#: Seconds between two looks whether the place is still there, and for streams that are new.
_LOOK_SECS = 30.0
_DISCOVERY_SECS = 0.5
#: Seconds that leaving has at least, even when `close` has none: what is given back goes on at once elsewhere.
_LEAVING_SECS = 0.2
#: Seconds for which a little credit is kept back, so that each message does not ask for the next.
_SAVING_SECS = 0.02


@attrs.frozen
class Tools:
    """What the consumers of a broker share."""

    config: MessagingConfig
    loop: EventLoop
    connection: Connection
    api: Api
    streams: Streams
    marks: Marks
    settling: Mailbox[Settling]


class JetStreamConsumer(MessageConsumer):
    """See `MessageConsumer`. Everything below the first section happens on the loop."""

    def __init__(self, tools: Tools, spec: ConsumerSpec, sink: Sink) -> None:
        self._tools = tools
        self._connection = tools.connection
        self._spec = spec
        self._sink = sink
        self._credit = Credit(spec.prefetch, spec.prefetch_bytes)
        self._pullers: dict[str, Puller] = {}
        self._arrivals: deque[Arrival] = deque()
        self._handing_over = False
        self._saving: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._background: asyncio.Task[None] | None = None
        self._due: dict[str, float] = {}
        self._all_known = False
        self._waits_for = "the connection"
        self._opened = False
        self._over = False

    # -- from any thread --------------------------------------------------------------------------------------

    def open(self, deadline: Deadline) -> None:
        """See `MessageConsumer.open`."""
        topic = self._spec.topic
        try:
            self._tools.loop.run(self._open, deadline, f"subscribing to {topic}")
        except Timeout as exc:
            if not self._connection.ever:
                raise self._connection.failed("no answer in time") from exc
            raise Timeout(f"{topic}: not ready in time, waited for {self._waits_for}", backend="nats") from exc

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        """See `MessageConsumer.ack`."""
        if deadline is None:
            self._tools.settling.put((self._settle, batch))
            return
        what = f"acknowledging {len(batch)} on {self._spec.topic}"
        self._tools.loop.run(lambda: self._confirm(batch), deadline, what)

    def extend(self, batch: Sequence[Received]) -> None:
        """See `MessageConsumer.extend`."""
        self._tools.settling.put((self._extend, batch))

    def mark(self, message: Received, starts: int, deadline: Deadline) -> None:
        """See `MessageConsumer.mark`."""
        arrival = cast(Arrival, message)
        self._tools.loop.run(lambda: arrival.puller.mark(arrival, starts), deadline, f"marking {message.position}")

    def close(self, deadline: Deadline) -> str | None:
        """See `MessageConsumer.close`."""
        if not self._tools.loop.started:
            self._over = True
            return None
        if deadline.at is not None:
            deadline = Deadline.after(max(_LEAVING_SECS, deadline.left() or 0.0))
        try:
            self._tools.loop.run(lambda: self._close(deadline), deadline, f"leaving {self._spec.topic}")
        except MessagingError as exc:
            late = isinstance(exc, Timeout)
            words = f"{self._spec.topic}: {'left before NATS had confirmed everything' if late else exc}"
            _log.warning("%s", words)
            return words
        return None

    # -- opening ------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        try:
            await self._connection.until_up()
            self._waits_for = "a stream"
            if self._spec.dead_letter_topic is not None:
                await self._tools.streams.cover(self._spec.dead_letter_topic)
            names = await self._tools.streams.cover(self._spec.topic)
            self._check_start(names)
            self._waits_for = "its place on the stream"
            for name in names:
                await self._add(name, self._spec.start)
            self._all_known = await self._covers(names)
        except NoCover as exc:
            self._dispose()
            raise SubscribeFailed(str(exc), code="overlap" if exc.overlap else "no_topic", backend="nats") from exc
        except ApiError as exc:
            self._dispose()
            code = "denied" if exc.code == DENIED else "no_topic"
            raise SubscribeFailed(f"{self._spec.topic}: {exc}", code=code, backend="nats") from exc
        except BaseException:
            self._dispose()
            raise
        if self._over:
            raise BackendUnavailable(f"{self._spec.topic}: closed meanwhile", code="closed", backend="nats")
        self._opened = True
        self._connection.attach(self)
        self._tick()
        self._ask()

    def _check_start(self, streams: Sequence[str]) -> None:
        start = self._spec.start
        if isinstance(start, Position) and streams and start.stream not in streams:
            words = f"start {start} is in no stream of the subscription: {self._spec.topic} is kept by"
            raise ConfigurationError(f"{words} {', '.join(streams)}")

    async def _add(self, stream: str, start: Start) -> None:
        place = self._place(stream, start)
        puller = Puller(place, self._connection, self._arrived, self._go_on, self._fail, self._tools.marks)
        self._pullers[stream] = puller
        await puller.place.secure()
        puller.ready = True

    def _place(self, stream: str, start: Start) -> Place:
        tools = self._tools
        if self._spec.group is None:
            return BroadcastPlace(stream, self._spec, tools.api, tools.streams, start)
        ack_wait = tools.config.nats.ack_wait_ms / 1000
        return DurablePlace(stream, self._spec, tools.api, tools.streams, ack_wait, start)

    async def _covers(self, names: Sequence[str]) -> bool:
        """Whether no other stream can come to keep something of the topic."""
        for name in names:
            stream = await self._tools.streams.look_at(name)
            if any(is_part(self._spec.topic, subject) for subject in stream.subjects):
                return True
        return False

    # -- delivering ---------------------------------------------------------------------------------------------

    def _arrived(self, message: Arrival) -> None:
        self._arrivals.append(message)
        if not self._handing_over:
            # One batch for all that one read from the socket brought.
            self._handing_over = True
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._handing_over = False
        batch = [] if self._over else self._credit.take(self._arrivals)
        if batch:
            self._sink.deliver(batch)
        self._ask()

    def _ask(self) -> None:
        """Ask each stream for its share of the free credit, unless that is little and some is on its way."""
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        pullers = [puller for puller in self._pullers.values() if puller.ready]
        free = self._credit.messages - self._credit.used - len(self._arrivals)
        if self._over or free < 1 or not pullers or not self._connection.online:
            return
        held = sum(message.size for message in self._arrivals)
        idle = not self._credit.used and not held
        free_bytes = self._credit.bytes - self._credit.used_bytes - held
        for puller in pullers:
            puller.ask(max(1, free // len(pullers)), free_bytes // len(pullers), idle=idle)

    def _ask_soon(self) -> None:
        free = self._credit.messages - self._credit.used - len(self._arrivals)
        if free >= max(1, self._credit.messages // 4) or not self._credit.used:
            self._ask()
        elif self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVING_SECS, self._ask)

    # -- settling -----------------------------------------------------------------------------------------------

    def _settle(self, batch: Sequence[Received]) -> None:
        for puller, messages in _by_puller(batch):
            self._credit.give_back(puller.settle(messages))
        if self._arrivals:
            self._hand_over()
        else:
            self._ask_soon()

    def _go_on(self) -> None:
        """Something has changed: there may be more to hand over, and to ask for."""
        if self._arrivals:
            self._hand_over()
        else:
            self._ask()

    async def _confirm(self, batch: Sequence[Received]) -> None:
        ours = [message for puller, each in _by_puller(batch) for message in each if puller.is_ours(message)]
        self._settle(batch)
        if self._spec.group is not None:
            await asyncio.gather(*(self._confirmed(message) for message in ours))

    async def _confirmed(self, message: Arrival) -> None:
        while True:
            await self._connection.until_up()
            if await self._connection.request(message.reply, b"+ACK") is not None:
                return

    def _extend(self, batch: Sequence[Received]) -> None:
        for puller, messages in _by_puller(batch):
            puller.extend(messages)

    # -- the connection -----------------------------------------------------------------------------------------

    def up(self) -> None:
        """Ask again at once, and look whether the places are still there."""
        for puller in self._pullers.values():
            puller.up()

    def down(self) -> None:
        """Nothing: what is unsettled stays ours until the server says otherwise."""

    def denied(self, action: str, subject: str) -> None:
        """Nothing: the connection has logged it."""

    def gave_up(self, error: MessagingError) -> None:
        """The subscription is over with the connection."""
        self._fail(error)

    # -- time ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        waits = [puller.place.ack_wait for puller in self._pullers.values() if puller.place.ack_wait]
        third = min(waits, default=0.0) / 3
        self._ticker = loop.call_later(min(_TICK_SECS, third) if third else _TICK_SECS, self._tick)
        working = bool(third) and self._is_due("work in progress", third)
        for puller in self._pullers.values():
            puller.tick()
            if working:
                puller.extend()
        if not self._all_known and self._is_due("discovery", _DISCOVERY_SECS):
            self._in_background(self._discover)
        elif self._is_due("look", _LOOK_SECS):
            self._in_background(self._look)

    def _is_due(self, what: str, every: float) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every * 0.9  # ticks are not exact
        return True

    def _in_background(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._background is None or self._background.done():
            self._background = asyncio.get_running_loop().create_task(self._calmly(work))

    async def _calmly(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except ApiError as exc:
            _log.debug("%s, looked after again soon: %s", self._spec.topic, exc)
        except MessagingError as exc:
            self._fail(exc)

    async def _discover(self) -> None:
        names = await self._tools.streams.find(self._spec.topic)
        for name in names:
            if name not in self._pullers:
                await self._add(name, "earliest")  # nothing of it was there before
        self._all_known = await self._covers(names)
        self._ask()

    async def _look(self) -> None:
        for puller in list(self._pullers.values()):
            if puller.place.ack_wait:
                await puller.place.secure()

    # -- the end ------------------------------------------------------------------------------------------------

    def _fail(self, error: MessagingError) -> None:
        if not self._over:
            self._dispose()
            self._sink.ended(error)

    async def _close(self, deadline: Deadline) -> None:
        if self._over:
            return
        self._over = True
        try:
            if self._opened:  # else nothing was taken that could be given back
                await self._leave(deadline)
        finally:
            self._dispose()

    async def _leave(self, deadline: Deadline) -> None:
        """Stop the flow first, so that what was under way can be given back too."""
        pullers = list(self._pullers.values())
        if not self._connection.online and not any(puller.has_acks for puller in pullers):
            return
        while True:
            await self._connection.until_up(deadline)
            for puller in pullers:
                puller.deafen()
            if await self._connection.barrier():
                break
        if any(puller.holds for puller in pullers):
            await self._tools.marks.exists()
        for puller in pullers:
            with suppress(ApiError, MessagingError):
                await puller.place.leave()
            with suppress(MessagingError, PermissionError):
                await puller.give_back()
        await self._connection.barrier()

    def _dispose(self) -> None:
        self._over = True
        self._connection.detach(self)
        for handle in (self._saving, self._ticker, self._background):
            if handle is not None:
                handle.cancel()
        for puller in self._pullers.values():
            puller.end()


def _by_puller(batch: Sequence[Received]) -> list[tuple[Puller, list[Arrival]]]:
    sorted_: dict[Puller, list[Arrival]] = {}
    for message in cast(Sequence[Arrival], batch):
        sorted_.setdefault(message.puller, []).append(message)
    return list(sorted_.items())


def is_part(pattern: str, of: str) -> bool:
    """Whether every subject of one pattern is one of another."""
    inner, outer = pattern.split("."), of.split(".")
    for at, level in enumerate(outer):
        if level == ">":
            return len(inner) > at
        if at >= len(inner) or inner[at] == ">" or (level != "*" and level != inner[at]):
            return False
    return len(inner) == len(outer)
