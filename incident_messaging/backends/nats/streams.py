"""JetStream's administration: requests, streams found by subject, and those made for a topic. On the loop.

API: https://docs.nats.io/reference/reference-protocols/nats_api_reference; error codes:
https://github.com/nats-io/nats-server/blob/main/server/errors.json.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import attrs

from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.wire import status_of
from incident_messaging.config import MessagingConfig

_log = logging.getLogger("incident_messaging.nats")

#: Ours, for a request that the user has no permission for: the server refuses it outside the API.
DENIED = -1
CONSUMER_NOT_FOUND = 10014
STREAM_NOT_FOUND = 10059
_NAME_IN_USE = 10058
_OVERLAP = 10065
#: No peers for so many replicas, or no cluster at all.
_TOO_FEW_SERVERS = (10005, 10074)

#: Seconds between two tries while JetStream does not answer (a restarted server, an election).
_PAUSE = 0.1


class ApiError(Exception):
    """JetStream refused a request.

    Attributes:
        code: JetStream's own number (``err_code``), 0 where it did not say.
    """

    def __init__(self, description: str, code: int = 0) -> None:
        super().__init__(description)
        self.code = code


class NoCover(Exception):
    """No stream covers a subject, and none can be made; the text names cause and remedy.

    Attributes:
        overlap: Whether another stream is in the way.
    """

    def __init__(self, text: str, *, overlap: bool = False) -> None:
        super().__init__(text)
        self.overlap = overlap


@attrs.frozen
class Stream:
    """A stream that keeps messages of a subject.

    Attributes:
        name: Its name.
        subjects: The subjects it keeps.
        first: The sequence of its first message.
        last: The sequence of its last message.
    """

    name: str
    subjects: tuple[str, ...]
    first: int
    last: int


class Api:
    """Requests to ``$JS.API``; each is asked again until it is answered, so bound it from outside."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            ApiError: It was refused.
            ConnectionFailed: There is no connection to be had.
        """
        body = json.dumps(fields).encode() if fields else b""
        while True:
            await self._connection.until_up()
            try:
                answer = await self._connection.request(f"$JS.API.{request}", body)
            except PermissionError as exc:
                raise ApiError(str(exc), DENIED) from exc
            if answer is not None and not status_of(answer[1])[0]:
                return _opened(json.loads(answer[0]))
            if answer is not None and not self._connection.server_info.get("jetstream"):
                raise ApiError("JetStream is not enabled on this server or for this account")
            await asyncio.sleep(_PAUSE)


class Streams:
    """Which streams keep a topic, asked by subject; makes one where there is none."""

    def __init__(self, api: Api, connection: Connection, config: MessagingConfig) -> None:
        self._api = api
        self._connection = connection
        self._config = config

    async def find(self, subject: str) -> list[str]:
        """The names of the streams that keep anything of a subject or pattern."""
        answer = await self._api.ask("STREAM.NAMES", subject=subject)
        return sorted(answer.get("streams") or ())

    async def look_at(self, name: str) -> Stream:
        """A stream as it is now."""
        answer = await self._api.ask(f"STREAM.INFO.{name}")
        state = answer["state"]
        subjects = tuple(answer["config"].get("subjects") or ())
        return Stream(name, subjects, state["first_seq"], state["last_seq"])

    async def cover(self, subject: str) -> list[str]:
        """The streams for a subject or pattern; one is made where there is none and its name is known.

        A pattern whose first level is a wildcard, without a prefix, may have none yet.

        Raises:
            NoCover: There is none, and none can be made.
        """
        names = await self.find(subject)
        if names:
            return names
        wanted = self.wanted(subject)
        if wanted is None:
            return []
        name, subjects = wanted
        if not self._config.nats.create_streams:
            raise NoCover(f"no stream covers {subject}: make one, or allow it with create_streams")
        try:
            await self._make(name, subjects)
        except ApiError as exc:
            names = await self.find(subject)  # another process may have been faster
            if names:
                return names
            raise await self._in_the_way(exc, subject, name, subjects) from exc
        return [name]

    def wanted(self, subject: str) -> tuple[str, list[str]] | None:
        """The stream that is made for a subject, with its subjects; ``None`` where its name is not known."""
        prefix = self._config.topic_prefix
        if prefix:
            return self._config.nats.stream or prefix.upper().replace(".", "-"), [f"{prefix}.>"]
        level = subject.split(".")[0]
        if level in ("*", ">"):
            return None
        name = f"{self._config.nats.stream}-{level}" if self._config.nats.stream else level.upper()
        return name, [level, f"{level}.>"]

    async def _make(self, name: str, subjects: list[str]) -> None:
        config = self._config.nats
        full = config.stream_max_bytes
        max_age = config.stream_max_age_secs
        window = min(config.duplicate_window_secs, max_age) if max_age else config.duplicate_window_secs
        await self.create(
            name,
            subjects,
            max_age=nanos(max_age),
            max_bytes=full if full is not None else -1,
            # A stream with a limit says that it is full; one without drops what is too old.
            discard="new" if full is not None else "old",
            duplicate_window=nanos(window),
        )

    async def create(self, name: str, subjects: list[str], **config: Any) -> None:
        """Make a stream on disk, with as many replicas as configured, or as the cluster is good for.

        Raises:
            ApiError: It was refused.
        """
        wanted = self._config.nats.stream_replicas
        guess = 3 if "cluster" in self._connection.server_info else 1
        config |= {"name": name, "subjects": subjects, "retention": "limits", "storage": "file"}
        try:
            await self._api.ask(f"STREAM.CREATE.{name}", num_replicas=wanted or guess, **config)
        except ApiError as exc:
            if wanted is not None or exc.code not in _TOO_FEW_SERVERS:
                raise
            await self._api.ask(f"STREAM.CREATE.{name}", num_replicas=1, **config)
        _log.info("NATS stream %s made for %s", name, ", ".join(subjects))

    async def _in_the_way(self, error: ApiError, subject: str, name: str, subjects: list[str]) -> Exception:
        if error.code == _NAME_IN_USE:
            return NoCover(f"stream {name} exists and does not cover {subject}: add it to the stream's subjects")
        if error.code != _OVERLAP:
            return NoCover(f"no stream covers {subject}, and {name} could not be made: {error}")
        others = sorted({other for each in subjects for other in await self.find(each)})
        return NoCover(
            f"no stream covers {subject}, and {name} ({', '.join(subjects)}) overlaps with "
            f"{', '.join(others)}: add {subject} to that stream's subjects",
            overlap=True,
        )


def _opened(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    if error:
        raise ApiError(error.get("description", "refused"), error.get("err_code", 0))
    return answer


def nanos(seconds: float) -> int:
    """JetStream's unit of time."""
    return int(seconds * 1_000_000_000)
