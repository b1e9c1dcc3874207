"""Pulling from one stream, and what is unsettled of it. On the loop.

nats-py's ``fetch`` sits still after a reconnect and costs a task for each message; here one inbox
lives as long as the subscription, and every message and status of the server comes to it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from functools import partial

from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.marks import Marks
from incident_messaging.backends.nats.places import Place
from incident_messaging.backends.nats.streams import ApiError, nanos
from incident_messaging.backends.nats.wire import Metadata, metadata, publish_command, received, status_of
from incident_messaging.errors import MessagingError
from incident_messaging.record import Received

_log = logging.getLogger("incident_messaging.nats")

#: Seconds after which the server forgets a request: one that it lost is asked again by then.
_EXPIRES_SECS = 5.0
_HEARTBEAT_SECS = 1.5
#: Seconds without a sign of the server after which its requests count as lost.
_SILENCE_SECS = 2 * _HEARTBEAT_SECS + 0.5
#: Seconds between two looks at a consumer that cannot be had just now.
_PAUSE = 0.2

_ACK, _NAK, _WORKING = b"+ACK", b"-NAK", b"+WPI"


class Token:
    """The handle of a delivered message.

    Attributes:
        known: Whether it is known by now if the message is a suspect; it may not be handed over before.
        times: How often the server has delivered it, to anybody.
        marked: Whether the start of a handler on it is stored.
    """

    __slots__ = ("known", "marked", "puller", "reply", "sequence", "size", "stored", "suspect", "times")

    def __init__(self, puller: Puller, meta: Metadata, reply: str, size: int) -> None:
        self.puller = puller
        self.sequence = meta.sequence
        self.reply = reply
        self.size = size
        self.stored = meta.timestamp
        self.times = meta.times
        self.known = True
        self.suspect = False
        self.marked = False


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
        arrived: Callable[[Received], None],
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
        self._unsettled: dict[int, Token] = {}
        self._acks = AckMemory(connection)
        self._renewal: asyncio.Task[None] | None = None
        self._latest: Metadata | None = None
        self._check: asyncio.Task[None] | None = None
        self._troubled = False
        self._round = 0
        self._heard = 0.0
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
        self._heard = asyncio.get_running_loop().time()
        if headers is not None and headers[8:9] == b" " and not body:
            if subject == f"{self._inbox}{self._round}":
                self._status(headers)
            return
        meta = metadata(reply)
        self._look_for_gap(meta)
        self.asked = max(0, self.asked - 1)
        self.asked_bytes = max(0, self.asked_bytes - len(body) - len(headers or b"")) if self.asked else 0
        known = self._unsettled.get(meta.sequence)
        if known is not None:
            known.reply = reply  # the server's time for it ran out; the latest delivery is the one to settle
            return
        if self._acks.repeats(meta.sequence, reply):
            self._changed()
            return
        if not self.place.takes(meta.sequence):
            return
        message = received(subject, headers, body, meta, 0.0)
        message.token = token = Token(self, meta, reply, message.size)
        self._unsettled[meta.sequence] = token
        if meta.times > 1 and self.place.ack_wait:
            token.known = False
            look = asyncio.get_running_loop().create_task(self._look_into(message, token))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        self._arrived(message)

    async def _look_into(self, message: Received, token: Token) -> None:
        """A message that was delivered before: it is a suspect, unless who had it has given it back."""
        try:
            known = await self._marks.look(self._key(token), token.stored)
        except MessagingError:
            return  # the connection is given up, and the subscription with it
        message.starts = int(known.get("starts", 0))
        message.suspect = token.suspect = known.get("back") != token.times - 1
        token.known, token.marked = True, bool(known)
        self._changed()

    def _key(self, token: Token) -> str:
        return f"{self.place.name}.{self.place.stream}.{token.sequence}"

    def _look_for_gap(self, meta: Metadata) -> None:
        """Notice what the server passed over in silence: deleted by age or a purge before it was delivered.

        Between two deliveries as many messages stop pending as were delivered, or fewer (redeliveries, and
        what arrived meanwhile). More is a gap, if the stream's beginning confirms it.
        """
        last = self._latest
        if last is not None and meta.delivery <= last.delivery:
            return
        self._latest = meta
        missing = 0 if last is None else last.pending - (meta.delivery - last.delivery) - meta.pending
        if last is not None and missing > 0 and self.place.ack_wait and self._check is None:
            self._check = asyncio.get_running_loop().create_task(self._check_gap(last.sequence, missing))

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

    def settle(self, tokens: Iterable[Token]) -> list[Token]:
        """Acknowledge; returns those that were unsettled until now."""
        settled = [token for token in tokens if self._unsettled.pop(token.sequence, None) is token]
        if self.place.ack_wait:
            self._acks.send(settled)
        if any(token.marked for token in settled):
            self._marks.drop(self._key(token) for token in settled if token.marked)
        return settled

    async def mark(self, token: Token, starts: int) -> None:
        """Store how often a handler was started; 0 takes it back."""
        if self._unsettled.get(token.sequence) is not token:
            return
        token.marked = starts > 0
        if starts:
            await self._marks.put(self._key(token), token.stored, starts)
        else:
            self._marks.drop([self._key(token)])

    def is_ours(self, token: Token) -> bool:
        """Whether an acknowledgement of this message still means anything."""
        return self._unsettled.get(token.sequence) is token or self._acks.holds(token.sequence)

    def extend(self, tokens: Iterable[Token] | None = None) -> None:
        """Tell the server that these, or all that is unsettled, are being worked on."""
        if self.place.ack_wait:
            chosen = self._unsettled.values() if tokens is None else tokens
            self._connection.write(b"".join(publish_command(each.reply, "", b"", _WORKING) for each in chosen))

    async def give_back(self) -> None:
        """Hand all that is unsettled back to the group, and return when the server has taken it.

        A PONG would not tell: the server keeps acknowledgements in a queue of its own, and whoever asks
        meanwhile gets newer messages in between.
        """
        given, self._unsettled = list(self._unsettled.values()), {}
        if not given or not self.place.ack_wait or not self._connection.online:
            return
        innocent = (each for each in given if each.known and not each.suspect)
        self._marks.put_back((self._key(each), each.stored, each.times) for each in innocent)
        self._connection.write(b"".join(publish_command(each.reply, "", b"", _NAK) for each in given[:-1]))
        await self._connection.request(given[-1].reply, _NAK)

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
        silent = asyncio.get_running_loop().time() - self._heard > _SILENCE_SECS
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


class AckMemory:
    """The acknowledgements of the last moments, which may be lost: with the connection, or with the
    server, which writes them down about ten times a second.

    They are kept in two generations. A generation is dropped half a second after the server has read it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._young: dict[int, str] = {}
        self._old: dict[int, str] = {}
        self._read = True
        self._generation = 0

    def send(self, tokens: Iterable[Token]) -> None:
        """Acknowledge, and remember it."""
        commands = []
        for token in tokens:
            self._young[token.sequence] = token.reply
            commands.append(publish_command(token.reply, "", b"", _ACK))
        self._connection.write(b"".join(commands))

    def repeats(self, sequence: int, reply: str) -> bool:
        """Whether a message that comes was acknowledged a moment ago; it is acknowledged again then."""
        if not self.holds(sequence):
            return False
        self._young[sequence] = reply
        self._connection.write(publish_command(reply, "", b"", _ACK))
        return True

    def holds(self, sequence: int) -> bool:
        """Whether a message was acknowledged a moment ago."""
        return sequence in self._young or sequence in self._old

    @property
    def unsure(self) -> bool:
        """Whether the server may not have read all of them."""
        return bool(self._young) or not self._read

    def send_again(self) -> None:
        """After a reconnect."""
        replies = [*self._old.values(), *self._young.values()]
        self._connection.write(b"".join(publish_command(reply, "", b"", _ACK) for reply in replies))

    def tick(self) -> None:
        """Let a generation pass, if the server has read it."""
        if self._read:
            self._old, self._young = self._young, {}
            self._read = not self._old
            self._generation += 1
        if not self._read:
            self._connection.confirm(partial(self._is_read, self._generation))

    def _is_read(self, generation: int, read: bool) -> None:
        if read and generation == self._generation:
            self._read = True
