"""Publishing on NATS: what was sent is kept until it is acknowledged, and its deadline watched. On the loop.

nats-py's own ``publish_async`` never ends a future that the server refused, so the acknowledgements
come to an inbox of our own, each numbered by its reply subject.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any

from incident_messaging.backends.base import Parcel, Where
from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.streams import ApiError, NoCover, Streams
from incident_messaging.backends.nats.wire import (
    acknowledgement,
    encode_headers,
    publish_command,
    status_of,
    stored_at,
    usual_acknowledgement,
)
from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import (
    BackendUnavailable,
    MessagingError,
    PublishFailed,
    Timeout,
)
from incident_messaging.record import RESERVE, Record

_log = logging.getLogger("incident_messaging.nats")

#: The server's own limit for the header block of a stored message.
_MOST_HEADERS = 65_535
#: An earlier try of the same id is on its way through the cluster: that one, or the next, is stored.
_IN_PROCESS = 10158
#: Seconds between two tries while a stream takes nothing.
_PAUSE = 0.1
_ADDED = ("x-dlq-", "x-redrive-")
_DUE = attrgetter("deadline.at")


class Publisher:
    """Records in the order in which they were handed over, until each has its outcome.

    Guarantees: ``done`` once for each; what has no outcome is sent again in its order, under the same id, which
    the server knows when it has stored it already: after a reconnect, and where the server is there and has not
    acknowledged for so long that a stream's leader must have gone with it.
    """

    #: Whether a record goes out only where a stream keeps it.
    _wants_stream = True

    def __init__(self, connection: Connection, streams: Streams, patience: float, told: Callable[[], None]) -> None:
        self._connection = connection
        self._told = told
        self._telling = False
        self._patience = patience
        self._streams = streams
        #: By number; the note of each that was sent says when it was written the last time.
        self._pending: dict[int, Parcel] = {}
        #: Those for which there was a stream already when it was looked for.
        self._rehomed: set[int] = set()
        self._last = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._held: set[str] = set()
        self._looked = not self._wants_stream
        self._looking = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty: asyncio.Event = asyncio.Event()
        self._empty.set()
        self._inbox = connection.new_inbox()
        connection.listen(f"{self._inbox}*", self._acknowledged)
        self._usual = usual_acknowledgement(self._inbox)
        connection.shorten(b"MSG " + self._inbox.encode(), self._all_acknowledged)
        connection.attach(self)

    # -- in -------------------------------------------------------------------------------------------------

    def take(self, parcels: Sequence[Parcel]) -> None:
        """Send what was handed over, or keep it until there is a connection."""
        numbers = range(self._last + 1, self._last + 1 + len(parcels))
        self._last += len(parcels)
        self._pending.update(zip(numbers, parcels, strict=True))
        earliest = min(map(_DUE, parcels), default=None)
        if earliest is not None and self._wants_stream:
            earliest = min(earliest, now() + self._patience)
        self._empty.clear()
        if self._connection.online:
            self._send(numbers)
        else:
            self._connection.want()
        self._wake_at(earliest)

    def __len__(self) -> int:
        return len(self._pending)

    async def drained(self) -> None:
        """Return when nothing is on its way."""
        await self._empty.wait()

    def fail_all(self, why: Callable[[Parcel], MessagingError]) -> int:
        """End all that is left with an error; returns how many there were."""
        left = list(self._pending)
        for number in left:
            self._end(number, error=why(self._pending[number]))
        self._tell_all()  # the loop may not live to do it
        return len(left)

    # -- the connection -------------------------------------------------------------------------------------

    def up(self) -> None:
        """Send all that has no outcome, in its order."""
        self._held.clear()
        self._send(list(self._pending))

    def down(self) -> None:
        """Nothing: what has no outcome waits for the next connection."""

    def denied(self, action: str, subject: str) -> None:
        """End the records of a subject that may not be published to. The server says its name in lower case."""
        if action != "publish":
            return
        for number, parcel in list(self._pending.items()):
            if parcel.sent and parcel.topic.lower() == subject:
                text = f"NATS denies publishing to {parcel.topic}: the user has no permission for it"
                self._end(number, error=PublishFailed(text, code="denied", backend="nats"))

    def gave_up(self, error: MessagingError) -> None:
        """End all: nobody is connecting any more."""
        self.fail_all(lambda parcel: _unknown(parcel) if parcel.sent else error)

    # -- out ------------------------------------------------------------------------------------------------

    def _send(self, numbers: Iterable[int]) -> None:
        if not self._looked:
            self._look(numbers)
            return
        commands, time, max_payload = [], now(), self._connection.max_payload
        for number in numbers:
            parcel = self._pending[number]
            if parcel.topic in self._held:
                continue
            command = self._command(number, parcel, max_payload)
            if command is not None:
                parcel.note = time
                parcel.sent += 1
                commands.append(command)
        self._connection.write(b"".join(commands))

    def _look(self, numbers: Iterable[int]) -> None:
        """Before the very first record see that there is a stream for it, and so for its prefix; all wait for that.

        Where there is none, silence proves nothing: a core subscriber on the subject is a responder, too, so
        that the server does not say 503. Later topics, which may be in no stream, rely on the 503 all the same.
        """
        first = next((self._pending[number].topic for number in numbers), None)
        if first is not None and not self._looking:
            self._looking = True
            self._start(self._look_first(first))

    async def _look_first(self, topic: str) -> None:
        try:
            await asyncio.wait_for(self._streams.cover(topic), self._patience)
        except (TimeoutError, NoCover, ApiError, MessagingError) as exc:
            _log.debug("NATS: no stream found for %s before the first record: %s", topic, exc)
        self._looked, self._looking = True, False
        if self._connection.online:
            self._send([number for number, parcel in self._pending.items() if not parcel.sent])

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _command(self, number: int, record: Record, max_payload: int) -> bytes | None:
        try:
            headers = encode_headers(record)
            size = len(headers)
            if size > _MOST_HEADERS or size + len(record.body) > max_payload - RESERVE:
                _check_size(record, size, max_payload)
            return publish_command(record.topic, self._reply_to(number), headers, record.body)
        except ValueError as exc:
            error = PublishFailed(f"{record.topic}: headers that NATS cannot take: {exc}", backend="nats")
        except PublishFailed as exc:
            error = exc
        self._end(number, error=error)  # one record must not hold up those behind it
        return None

    def _reply_to(self, number: int) -> str:
        return f"{self._inbox}{number}"

    def _all_acknowledged(self, data: bytes, at: int) -> int:
        """Nearly all that ever comes here, off the wire in one look each; the others are `_acknowledged`'s."""
        match, end = self._usual.match, self._end
        with self._burst():
            while (found := match(data, at)) is not None:
                number, size, body, stream, sequence = found.groups()
                if int(size) != len(body):
                    break
                end(int(number), partial(stored_at, stream, sequence))
                at = found.end()
        return at

    def _acknowledged(self, subject: str, _reply: str, body: bytes, headers: bytes | None) -> None:
        number = int(subject[len(self._inbox) :])
        parcel = self._pending.get(number)
        if parcel is None:
            return
        if headers is not None and status_of(headers)[0] == "503":
            self._no_stream(parcel.topic, again=number in self._rehomed)
            return
        where, duplicate, error = acknowledgement(body)
        if error and error.get("err_code") == _IN_PROCESS:
            asyncio.get_running_loop().call_later(_PAUSE, self._send_again, [number], True)
            return
        self._end(number, where, duplicate, _refused(parcel, error) if error else None)

    def _end(
        self,
        number: int,
        where: Where | None = None,
        duplicate: bool = False,
        error: MessagingError | None = None,
    ) -> None:
        parcel = self._pending.pop(number, None)
        if parcel is None:
            return
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)
        try:
            parcel(where, duplicate, error)
        except Exception:
            _log.exception("the outcome of a record could not be told")

    def _end_all(self, numbers: Iterable[int]) -> None:
        """End many well at once."""
        end = self._end
        with self._burst():
            for number in numbers:
                end(number)

    @contextmanager
    def _burst(self) -> Iterator[None]:
        """What ends in here is told at its end, not a turn of the loop later."""
        scheduled, self._telling = self._telling, True
        try:
            yield
        finally:
            self._telling = scheduled
            self._tell_all()

    def _tell(self) -> None:
        """A burst is over: what came with one read of the socket."""
        self._telling = False
        self._tell_all()

    def _tell_all(self) -> None:
        if not self._pending:
            self._rehomed.clear()
            self._empty.set()
        self._told()

    # -- no stream ------------------------------------------------------------------------------------------

    def _no_stream(self, topic: str, *, again: bool) -> None:
        """Hold back the subject, which keeps its order, until there is a stream for it.

        Where there is one all the same, it has no leader just now (a cluster that lost a node).
        """
        if topic in self._held:
            return
        self._held.add(topic)
        self._start(self._find_home(topic, _PAUSE if again else 0.0))

    async def _find_home(self, topic: str, pause: float) -> None:
        await asyncio.sleep(pause)
        error: MessagingError | None = None
        try:
            await asyncio.wait_for(self._streams.cover(topic), self._patience)
        except TimeoutError:
            pass  # JetStream is not itself just now: ask again, as long as the records may wait
        except NoCover as exc:
            error = PublishFailed(str(exc), code="no_stream", backend="nats")
            error.__cause__ = exc
        except ApiError as exc:
            text = f"no stream covers {topic}, and JetStream refused to say more: {exc}"
            error = PublishFailed(text, code="no_stream", backend="nats")
            error.__cause__ = exc
        except MessagingError as exc:
            error = exc
        if topic not in self._held:
            return  # all was sent again meanwhile, by a reconnect
        self._held.discard(topic)
        numbers = [number for number, each in self._pending.items() if each.topic == topic]
        if error is not None:
            for number in numbers:
                self._end(number, error=error)
            return
        self._rehomed = self._rehomed.intersection(self._pending).union(numbers)
        self._send(numbers)

    # -- time -----------------------------------------------------------------------------------------------

    def _wake_at(self, at: float | None) -> None:
        """Have the timer ring at the earliest deadline; an ended record may leave it ringing for nothing."""
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay = Deadline(at).left() or 0.0
        self._timer = asyncio.get_running_loop().call_later(delay + 0.002, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        for number, parcel in list(self._pending.items()):
            if parcel.deadline.over:
                self._end(number, error=self._too_late(parcel))
        at = min((each.deadline.at or 0.0 for each in self._pending.values()), default=None)
        if at is not None and self._wants_stream:
            self._ask_for_unanswered()
            at = min(at, now() + self._patience)
        self._wake_at(at)

    def _ask_for_unanswered(self) -> None:
        """Send again what the server has read long ago, and what the stream's leader seems not to have got."""
        since = now() - self._patience
        late = [number for number, parcel in self._pending.items() if parcel.sent and parcel.note <= since]
        if late and self._connection.online:
            # A server that is frozen gives no PONG; what it has not read need not be written twice.
            self._connection.confirm(partial(self._send_again, late))

    def _send_again(self, numbers: Iterable[int], there: bool) -> None:
        if there and self._connection.online:
            self._send([number for number in numbers if number in self._pending])

    def _too_late(self, parcel: Parcel) -> MessagingError:
        if parcel.sent:
            return _unknown(parcel)
        if not self._connection.ever:
            return self._connection.failed("no answer in time")
        if self._connection.online:
            text = f"{parcel.topic}: JetStream did not say in time whether it keeps it; not sent"
            return Timeout(text, backend="nats")
        return Timeout(
            f"{parcel.topic}: no connection to NATS in time ({self._connection.error}); not sent",
            backend="nats",
        )


def _check_size(record: Record, headers: int, max_payload: int) -> None:
    """Refuse what the server would not take, or would not take back as a dead letter.

    Raises:
        PublishFailed: ``too_large``.
    """
    if headers > _MOST_HEADERS:
        words = f"headers of {headers:,} bytes exceed the {_MOST_HEADERS:,} that JetStream takes"
        raise PublishFailed(words, code="too_large", backend="nats")
    size, limit = headers + len(record.body), max_payload
    if not any(name.startswith(_ADDED) for name in record.headers):
        limit -= min(RESERVE, limit // 8)
    if size > limit:
        words = (
            f"message of {size:,} bytes with its headers exceeds the {limit:,} that the NATS server takes "
            "(its max_payload less what dead letters need)"
        )
        raise PublishFailed(words, code="too_large", backend="nats")


def _refused(record: Record, error: dict[str, object]) -> PublishFailed:
    words = str(error.get("description", "refused"))
    full = "maximum" in words or "resource" in words or "insufficient" in words
    return PublishFailed(
        f"NATS refused a message on {record.topic}: {words}"
        + (" (the stream is full: raise its limits or let messages age)" if full else ""),
        code="stream_full" if full else "rejected",
        backend="nats",
    )


def _unknown(parcel: Parcel) -> Timeout:
    return Timeout(
        f"{parcel.topic}: NATS has not acknowledged in time; the message may be stored",
        maybe_delivered=True,
        backend="nats",
    )


def closed(parcel: Parcel) -> MessagingError:
    """The error of a record that the end of the broker cut short."""
    if parcel.sent:
        return _unknown(parcel)
    return BackendUnavailable("NATS backend closed before the message was sent", code="closed", backend="nats")
