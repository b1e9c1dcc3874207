"""Pulling from one stream, and what is unsettled of it. On the loop.

nats-py's ``fetch`` sits still after a reconnect and costs a task for each message; here one inbox
lives as long as the subscription, and every message and status of the server comes to it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

from incident_messaging.backends.nats.acks import AckMemory, answers
from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.marks import Marks
from incident_messaging.backends.nats.places import Place
from incident_messaging.backends.nats.streams import ApiError, nanos
from incident_messaging.backends.nats.wire import Message, publish_command, status_of, told_by
from incident_messaging.errors import MessagingError
from incident_messaging.record import Position

_log = logging.getLogger("incident_messaging.nats")

#: Seconds after which the server forgets a request: one that it lost is asked again by then.
_EXPIRES_SECS = 5.0
_HEARTBEAT_SECS = 1.5
#: Seconds without a sign of the server after which its requests count as lost.
_SILENCE_SECS = 2 * _HEARTBEAT_SECS + 0.5
#: Seconds between two looks at a consumer that cannot be had just now.
_PAUSE = 0.2

_NAK, _WORKING = "-NAK", "+WPI"


class Arrival(Message):
    """A message of a stream, and what it is settled by.

    Attributes:
        puller: Whose it is.
        reply: Where its acknowledgement goes.
        sequence: Its number in the stream.
        stored: When the stream stored it, in nanoseconds.
        times: How often the server has delivered it, to anybody.
        marked: Whether the start of a handler on it is stored.
    """

    __slots__ = ("marked", "puller", "reply", "sequence", "stored", "times")

    puller: Puller
    sequence: int
    stored: int
    times: int

    def __init__(self, subject: str, reply: str, body: bytes, headers: bytes | None) -> None:
        super().__init__(subject, headers, body)
        self.reply = reply
        self.marked = False

    def __getattr__(self, name: str) -> Any:
        """See `Message`."""
        if name == "position":
            self.position = Position(stream=self.puller.place.stream, sequence=self.sequence)
            return self.position
        if name == "timestamp":
            self.timestamp = self.stored / 1e9
            return self.timestamp
        return super().__getattr__(name)


class Puller:
    """Guarantees: a message is delivered once while it is unsettled here, and not again after it was
    settled here, however often the server repeats it; acknowledgements that a lost connection or a
    killed server may have swallowed are sent again.

    Attributes:
        asked: How many messages the server was asked for and has not sent.
        asked_bytes: The same in bytes.
        ready: Whether the consumer on the server is there.
    """

    def __init__(
        self,
        place: Place,
        connection: Connection,
        arrived: Callable[[Arrival], None],
        changed: Callable[[], None],
        failed: Callable[[MessagingError], None],
        marks: Marks,
    ) -> None:
        self.place = place
        self.asked = 0
        self.asked_bytes = 0
        self._refused_bytes = 0
        self.ready = False
        self._connection = connection
        self._arrived = arrived
        self._changed = changed
        self._failed = failed
        self._marks = marks
        self._looks: set[asyncio.Task[None]] = set()
        self._unsettled: dict[int, Arrival] = {}
        self._acks = AckMemory(connection)
        self._renewal: asyncio.Task[None] | None = None
        self._latest: tuple[int, int, int] | None = None  # sequence, number of the delivery, pending
        self._check: asyncio.Task[None] | None = None
        self._troubled = False
        self._round = 0
        self._heard = 0.0
        self._hears = False  # since the last tick
        self._inbox = connection.new_inbox()
        self._sid = connection.listen(f"{self._inbox}*", self._message)

    # -- pulling --------------------------------------------------------------------------------------------

    def ask(self, share: int, share_bytes: int, *, idle: bool) -> None:
        """Ask for what is free of a share, unless enough of it is on its way; ``idle``: nothing is unsettled."""
        if self.asked > share // 2:
            return
        free_bytes = share_bytes - self.asked_bytes
        if self.asked:
            # The next request need not wait for the end of this one, but must not be one for a few bytes.
            if not self._refused_bytes and free_bytes >= max(1, share_bytes // 4):
                self._pull(share - self.asked, free_bytes)
        elif idle and self._refused_bytes:
            self._pull(1, None)  # one message is let through, however large
        elif free_bytes > self._refused_bytes:
            # Half of it, for the same reason, unless half was too little.
            self._pull(share, free_bytes if self._refused_bytes else -(-free_bytes // 2))

    def _pull(self, messages: int, most_bytes: int | None) -> None:
        wish: dict[str, int] = {
            "batch": messages,
            "expires": nanos(_EXPIRES_SECS),
            "idle_heartbeat": nanos(_HEARTBEAT_SECS),
        }
        if most_bytes is not None:
            wish["max_bytes"] = most_bytes
            self.asked_bytes += most_bytes
        self.asked += messages
        self._refused_bytes = 0
        self._heard = asyncio.get_running_loop().time()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.place.stream}.{self.place.name}"
        self._connection.write(publish_command(subject, f"{self._inbox}{self._round}", b"", json.dumps(wish).encode()))

    def renew(self, pause: float = 0.0) -> None:
        """Forget what was asked, see that the consumer is there, and then ask anew."""
        self._restart()
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_task(self._renew(pause))

    async def _renew(self, pause: float) -> None:
        try:
            await asyncio.sleep(pause)
            while not await self._secured():
                await asyncio.sleep(_PAUSE)
        finally:
            self._renewal = None

    async def _secured(self) -> bool:
        try:
            await self.place.secure()
        except ApiError as exc:
            if not self._troubled:
                _log.warning("NATS consumer %s, asking on: %s", self.place.name, exc)
            self._troubled = True
            return False
        except MessagingError as exc:
            self._failed(exc)
            return True
        self.ready, self._troubled = True, False
        self._changed()
        return True

    def _restart(self) -> None:
        self._round += 1
        self.asked = self.asked_bytes = 0
        self._heard = asyncio.get_running_loop().time()

    # -- what comes -----------------------------------------------------------------------------------------

    def _message(self, subject: str, reply: str, body: bytes, headers: bytes | None) -> None:
        self._hears = True
        if headers is not None and headers[8:9] == b" " and not body:
            if subject == f"{self._inbox}{self._round}":
                self._status(headers)
            return
        times, sequence, delivery, stored, pending = told_by(reply)
        self._look_for_gap(sequence, delivery, pending)
        if self.asked > 1:
            self.asked -= 1
            self.asked_bytes = max(0, self.asked_bytes - len(body) - (0 if headers is None else len(headers)))
        else:
            self.asked = self.asked_bytes = 0
        known = self._unsettled.get(sequence)
        if known is not None:
            known.reply = reply  # the server's time for it ran out; the latest delivery is the one to settle
            return
        if self._acks.holds(sequence):
            self._acks.repeat(sequence, reply)
            self._changed()
            return
        if not self.place.takes(sequence):
            return
        message = self._unsettled[sequence] = Arrival(subject, reply, body, headers)
        message.puller, message.sequence, message.stored, message.times = self, sequence, stored, times
        if times > 1 and self.place.ack_wait:
            message.known = False
            look = asyncio.get_running_loop().create_task(self._look_into(message))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        self._arrived(message)

    async def _look_into(self, message: Arrival) -> None:
        """A message that was delivered before: it is a suspect, unless who had it has given it back."""
        try:
            known = await self._marks.look(self._key(message), message.timestamp)
        except MessagingError:
            return  # the connection is given up, and the subscription with it
        message.starts = int(known.get("starts", 0))
        message.suspect = known.get("back") != message.times - 1
        message.known, message.marked = True, bool(known)
        self._changed()

    def _key(self, message: Arrival) -> str:
        return f"{self.place.name}.{self.place.stream}.{message.sequence}"

    def _look_for_gap(self, sequence: int, delivery: int, pending: int) -> None:
        """Notice what the server passed over in silence: deleted by age or a purge before it was delivered.

        Between two deliveries as many messages stop pending as were delivered, or fewer (redeliveries, and
        what arrived meanwhile). More is a gap, if the stream's beginning confirms it.
        """
        latest = self._latest
        if latest is None:
            self._latest = sequence, delivery, pending
            return
        after, number, pended = latest
        if delivery <= number:
            return
        self._latest = sequence, delivery, pending
        missing = pended - (delivery - number) - pending
        if missing > 0 and self.place.ack_wait and self._check is None:
            self._check = asyncio.get_running_loop().create_task(self._check_gap(after, missing))

    async def _check_gap(self, after: int, missing: int) -> None:
        try:
            await self.place.check_passed_over(after, missing)
        except ApiError as exc:
            _log.debug("NATS consumer %s, a gap could not be looked into: %s", self.place.name, exc)
        except MessagingError as exc:
            self._failed(exc)
        finally:
            self._check = None

    def _status(self, block: bytes) -> None:
        """https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-13.md."""
        code, words, headers = status_of(block)
        if code == "100":
            return
        words = words.lower()
        if code in ("404", "408") or "exceeds maxbytes" in words or "batch completed" in words:
            if "exceeds maxbytes" in words:
                self._refused_bytes = max(1, self.asked_bytes)
            self.asked = max(0, self.asked - int(headers.get("Nats-Pending-Messages", self.asked)))
            left = int(headers.get("Nats-Pending-Bytes", self.asked_bytes))
            self.asked_bytes = max(0, self.asked_bytes - left) if self.asked else 0
            self._changed()
            return
        # 503: nobody took the request; 409: consumer deleted, leader changed, server shutting down.
        self.ready = False
        self.renew(_PAUSE)

    # -- what is settled ------------------------------------------------------------------------------------

    def settle(self, messages: Iterable[Arrival]) -> list[Arrival]:
        """Acknowledge; returns those that were unsettled until now."""
        unsettled = self._unsettled
        settled = [message for message in messages if unsettled.pop(message.sequence, None) is message]
        if self.place.ack_wait:
            self._acks.send({message.sequence: message.reply for message in settled})
        marked = [self._key(message) for message in settled if message.marked]
        if marked:
            self._marks.drop(marked)
        return settled

    async def mark(self, message: Arrival, starts: int) -> None:
        """Store how often a handler was started; 0 takes it back."""
        if self._unsettled.get(message.sequence) is not message:
            return
        message.marked = starts > 0
        if starts:
            await self._marks.put(self._key(message), message.timestamp, starts)
        else:
            self._marks.drop([self._key(message)])

    def is_ours(self, message: Arrival) -> bool:
        """Whether an acknowledgement of this message still means anything."""
        return self._unsettled.get(message.sequence) is message or self._acks.holds(message.sequence)

    def extend(self, messages: Iterable[Arrival] | None = None) -> None:
        """Tell the server that these, or all that is unsettled, are being worked on."""
        if self.place.ack_wait:
            chosen = self._unsettled.values() if messages is None else messages
            self._connection.write(answers(_WORKING, [message.reply for message in chosen]))

    async def give_back(self) -> None:
        """Hand all that is unsettled back to the group, and return when the server has taken it.

        A PONG would not tell: the server keeps acknowledgements in a queue of its own, and whoever asks
        meanwhile gets newer messages in between.
        """
        given, self._unsettled = list(self._unsettled.values()), {}
        if not given or not self.place.ack_wait or not self._connection.online:
            return
        innocent = (each for each in given if each.known and not each.suspect)
        self._marks.put_back((self._key(each), each.timestamp, each.times) for each in innocent)
        self._connection.write(answers(_NAK, [each.reply for each in given[:-1]]))
        await self._connection.request(given[-1].reply, _NAK.encode())

    # -- life -----------------------------------------------------------------------------------------------

    def up(self) -> None:
        """After a reconnect: the requests are gone, and the last acknowledgements may be."""
        self._acks.send_again()
        if not self.place.ack_wait:
            self.ready = False  # what was under way to a broadcast is gone with its consumer
        self.renew()
        self._changed()

    def tick(self) -> None:
        """To be called about twice a second."""
        self._acks.tick()
        time = asyncio.get_running_loop().time()
        if self._hears:
            self._heard, self._hears = time, False
        silent = time - self._heard > _SILENCE_SECS
        if self.asked and silent and self._connection.online:
            self.renew()

    @property
    def holds(self) -> bool:
        """Whether something of a group is unsettled here."""
        return bool(self._unsettled and self.place.ack_wait)

    @property
    def has_acks(self) -> bool:
        """Whether there are acknowledgements that the server may not have."""
        return self._acks.unsure

    def deafen(self) -> None:
        """Take no more messages; those under way still come, until the next barrier."""
        self.ready = False
        self._connection.deafen(self._sid)

    def end(self) -> None:
        """Be gone."""
        self.ready = False
        for task in (self._renewal, self._check, *self._looks):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._connection.forget(self._sid)
