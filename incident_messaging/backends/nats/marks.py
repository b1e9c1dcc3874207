"""What of a group's messages outlives a process: which were given back, and which starts are known. On the loop.

JetStream counts deliveries, also into a prefetch and of what was given back. So who leaves writes down what it
gives back, and before a handler is started on a message that somebody had and did not give back, that start is
written down (``docs/decisions/0010-messages-that-kill.rst``). Both go into one key-value bucket (ADR-8:
https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-8.md), which is made when it is needed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.streams import DENIED, STREAM_NOT_FOUND, Api, ApiError, Streams, nanos
from incident_messaging.backends.nats.wire import publish_command, status_of

_log = logging.getLogger("incident_messaging.nats")

#: The bucket's name; keys are ``<durable>.<stream>.<sequence>``.
BUCKET = "incident-messaging"
_STREAM = f"KV_{BUCKET}"
#: Seconds that the bucket keeps what nobody took away.
_MAX_AGE = 86_400
_NO_MESSAGE = 10037
#: Another process was faster, with other settings.
_NAME_IN_USE = 10058
_PAUSE = 0.1
_DELETED = b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n"


class Marks:
    """The bucket of one broker, shared by its consumers.

    Guarantees: where it cannot be had (``create_streams`` is off and nobody made it, or it is not allowed) that is
    logged once, and nothing is known of any message.
    """

    def __init__(self, api: Api, connection: Connection, streams: Streams, *, may_create: bool) -> None:
        self._api = api
        self._connection = connection
        self._streams = streams
        self._may_create = may_create
        self._usable: bool | None = None

    async def look(self, key: str, stored: float) -> Mapping[str, Any]:
        """What is known of a message: ``back``, the delivery that was given back, and ``starts``.

        ``stored`` is when the stream stored the message: a stream made anew counts from 1 again.
        """
        if self._usable is False:
            return {}
        try:
            answer = await self._api.ask(f"STREAM.MSG.GET.{_STREAM}", last_by_subj=_subject(key))
        except ApiError as exc:
            if exc.code not in (_NO_MESSAGE, STREAM_NOT_FOUND):
                self._do_without(exc)
            return {}
        return _read(answer["message"].get("data", ""), stored)

    async def put(self, key: str, stored: float, starts: int) -> None:
        """Store how often a handler was started; returns when that is confirmed."""
        body = _written(stored, {"starts": starts})
        while await self.exists():
            await self._connection.until_up()
            try:
                answer = await self._connection.request(_subject(key), body)
            except PermissionError as exc:
                self._do_without(exc)
                return
            if answer is not None and not status_of(answer[1])[0]:
                said = json.loads(answer[0])
                if "error" not in said:
                    return
                _log.warning("NATS bucket %s: %s", BUCKET, said["error"].get("description", said["error"]))
            elif answer is not None:
                self._usable = None  # nobody there: the bucket was deleted
            await asyncio.sleep(_PAUSE)

    def put_back(self, messages: Iterable[tuple[str, float, int]]) -> None:
        """Write down of messages (key, when stored, number of the delivery) that they are about to be given back."""
        if self._usable:
            commands = (
                publish_command(_subject(key), "", b"", _written(stored, {"back": times}))
                for key, stored, times in messages
            )
            self._connection.write(b"".join(commands))

    def drop(self, keys: Iterable[str]) -> None:
        """Take away what is known of messages."""
        self._connection.write(b"".join(publish_command(_subject(key), "", _DELETED, b"") for key in keys))

    async def exists(self) -> bool:
        """Whether there is a bucket; it is made where that may be."""
        if self._usable is None:
            try:
                await self._find()
            except ApiError as exc:
                self._do_without(exc)
            else:
                self._usable = True
        return bool(self._usable)

    async def _find(self) -> None:
        try:
            await self._api.ask(f"STREAM.INFO.{_STREAM}")
        except ApiError as exc:
            if exc.code != STREAM_NOT_FOUND or not self._may_create:
                raise
            await self._make()

    async def _make(self) -> None:
        try:
            await self._streams.create(
                _STREAM,
                [f"$KV.{BUCKET}.>"],
                max_msgs_per_subject=1,
                max_age=nanos(_MAX_AGE),
                discard="new",
                allow_rollup_hdrs=True,
                deny_delete=True,
                allow_direct=True,
            )
        except ApiError as exc:
            if exc.code != _NAME_IN_USE:
                raise

    def _do_without(self, exc: Exception) -> None:
        if self._usable is not False:
            hint = "" if getattr(exc, "code", DENIED) == DENIED else f" (create_streams, or make stream {_STREAM})"
            _log.warning(
                "no bucket %s, so a message that ends its process comes back each time: %s%s", BUCKET, exc, hint
            )
        self._usable = False


def _subject(key: str) -> str:
    return f"$KV.{BUCKET}.{key}"


def _written(stored: float, known: Mapping[str, Any]) -> bytes:
    return json.dumps({"stored": stored, **known}).encode()


def _read(data: str, stored: float) -> Mapping[str, Any]:
    known = json.loads(base64.b64decode(data) or b"{}")
    return known if known.get("stored") == stored else {}
