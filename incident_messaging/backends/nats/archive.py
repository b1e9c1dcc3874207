"""A look into a topic that JetStream keeps: message by message, by the stream's own sequence.

No consumer is made for it, so nobody has to be allowed to make one and none is left behind. API:
``STREAM.MSG.GET`` with ``next_by_subj`` (server 2.9), ``STREAM.MSG.DELETE``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from incident_messaging.backends.base import Archive
from incident_messaging.backends.nats.streams import DENIED, Api, ApiError, Streams
from incident_messaging.backends.nats.wire import Message, unix
from incident_messaging.deadline import Deadline
from incident_messaging.errors import PublishFailed, SubscribeFailed, Timeout
from incident_messaging.eventloop import EventLoop
from incident_messaging.record import Position, Received

#: Messages for one crossing of the border to the loop.
_PAGE = 100
_NO_MESSAGE = (10037, 10057)


class StreamArchive(Archive):
    """See `Archive`. A topic may lie in several streams; they are read one after another."""

    def __init__(self, loop: EventLoop, api: Api, streams: Streams, topic: str, patience: float) -> None:
        self._loop = loop
        self._api = api
        self._streams = streams
        self._topic = topic
        self._patience = patience

    def read(self, since: float = 0.0) -> Iterator[Received]:
        """See `Archive.read`."""
        for stream, last in self._ask(self._ends, "looking for its streams"):
            sequence = 1
            if since:
                sequence = self._ask(partial(self._first, stream, since, last), f"looking for a time in {stream}")
            while sequence <= last:
                page = self._ask(partial(self._page, stream, sequence, last), f"reading from {stream}")
                yield from page
                if len(page) < _PAGE:
                    break
                sequence = (page[-1].position.sequence or 0) + 1

    def remove(self, messages: Sequence[Received]) -> None:
        """See `Archive.remove`."""
        try:
            self._ask(lambda: self._delete(messages), f"removing {len(messages)} messages")
        except SubscribeFailed as exc:
            raise PublishFailed(str(exc), code="denied", backend="nats") from exc

    def close(self) -> None:
        """See `Archive.close`."""

    def _ask(self, work: Any, what: str) -> Any:
        try:
            return self._loop.run(work, Deadline.after(self._patience), f"{self._topic}: {what}")
        except Timeout as exc:
            raise Timeout(f"{exc} ({self._patience:g} s)", backend="nats") from exc
        except ApiError as exc:
            code = "denied" if exc.code == DENIED else "no_topic"
            raise SubscribeFailed(f"{self._topic}: {what}: {exc}", code=code, backend="nats") from exc

    async def _ends(self) -> list[tuple[str, int]]:
        """The streams that keep something of the topic, with the sequence of its last message in each."""
        found = []
        for stream in await self._streams.find(self._topic):
            last = await self._get(stream, last_by_subj=self._topic)
            if last is not None:
                found.append((stream, int(last["seq"])))
        return found

    async def _first(self, stream: str, since: float, last: int) -> int:
        """A sequence before which all of the topic was stored before a time: what a stream stores has rising times."""
        first, end = 1, last + 1
        while first < end:
            middle = (first + end) // 2
            message = await self._get(stream, seq=middle, next_by_subj=self._topic)
            if message is not None and message["seq"] <= last and unix(message["time"]) < since:
                first = message["seq"] + 1
            else:
                end = middle
        return first

    async def _page(self, stream: str, sequence: int, last: int) -> list[Received]:
        page: list[Received] = []
        while sequence <= last and len(page) < _PAGE:
            message = await self._get(stream, seq=sequence, next_by_subj=self._topic)
            if message is None or message["seq"] > last:
                break
            page.append(_opened(stream, message))
            sequence = message["seq"] + 1
        return page

    async def _get(self, stream: str, **wish: Any) -> dict[str, Any] | None:
        try:
            answer = await self._api.ask(f"STREAM.MSG.GET.{stream}", **wish)
        except ApiError as exc:
            if exc.code in _NO_MESSAGE:
                return None
            raise
        message: dict[str, Any] = answer["message"]
        return message

    async def _delete(self, messages: Sequence[Received]) -> None:
        for message in messages:
            try:
                await self._api.ask(
                    f"STREAM.MSG.DELETE.{message.position.stream}", seq=message.position.sequence, no_erase=True
                )
            except ApiError as exc:
                if exc.code not in _NO_MESSAGE:  # somebody else was faster
                    raise


def _opened(stream: str, message: dict[str, Any]) -> Received:
    block = base64.b64decode(message["hdrs"]) if "hdrs" in message else None
    body = base64.b64decode(message.get("data", ""))
    opened = Message(message["subject"], block, body)
    opened.position = Position(stream=stream, sequence=message["seq"])
    opened.timestamp = unix(message["time"])
    return opened
