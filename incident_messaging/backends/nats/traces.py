"""What traffic on a topic of one's own leaves on the server, and taking it away again.

Blocking, on a loop of its own: whoever made the traffic may be closed by then.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.streams import CONSUMER_NOT_FOUND, Api, ApiError, Streams
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError, SubscribeFailed
from incident_messaging.eventloop import EventLoop

_T = TypeVar("_T")


class Traces:
    """Made before the traffic begins.

    Args:
        config: How NATS is reached.
        topic: The topic, prefix included; nobody else uses it.

    Raises:
        ConnectionFailed: There is no server.
        SubscribeFailed: The server does not let streams be looked for.
    """

    def __init__(self, config: MessagingConfig, topic: str) -> None:
        self._config = config
        self._topic = topic
        core = config.nats.delivery == "core"
        self._before: Sequence[str] = () if core else self._ask(lambda _api, streams: streams.find(topic))
        self._kept = not core

    def remove(self, groups: Sequence[str]) -> list[str]:
        """Take the topic's messages away, and its groups (their names on the server).

        A stream that keeps other topics, too, stays.

        Returns:
            What is left, in words.
        """
        if not self._kept:
            return []
        try:
            return self._ask(lambda api, streams: self._remove(api, streams, groups))
        except MessagingError as exc:
            return [f"the messages of {self._topic}, and its durables {', '.join(groups)}: {exc}"]

    async def _remove(self, api: Api, streams: Streams, groups: Sequence[str]) -> list[str]:
        left = []
        for name in await streams.find(self._topic):
            stream = await streams.look_at(name)
            if all(subject in (self._topic, f"{self._topic}.>") for subject in stream.subjects):
                left += await _tried(api, f"STREAM.DELETE.{name}", f"stream {name}")
                continue
            what = f"the messages of {self._topic} in stream {name}"
            left += await _tried(api, f"STREAM.PURGE.{name}", what, filter=self._topic)
            for group in groups:
                left += await _tried(api, f"CONSUMER.DELETE.{name}.{group}", f"durable {group} of stream {name}")
            if name not in self._before:
                left.append(f"stream {name}, which was made for {', '.join(stream.subjects)}")
        return left

    def _ask(self, work: Callable[[Api, Streams], Coroutine[Any, Any, _T]]) -> _T:
        loop, connection = EventLoop("incident-messaging-loop"), Connection(self._config)
        api = Api(connection)
        streams = Streams(api, connection, self._config)
        patience = Deadline.after(self._config.subscribe_timeout_ms / 1000)
        try:
            return loop.run(lambda: work(api, streams), patience, f"asking NATS about {self._topic}")
        except ApiError as exc:
            raise SubscribeFailed(f"{self._topic}: {exc}", code="denied", backend="nats") from exc
        finally:
            farewell = Deadline.after(0.5)
            with suppress(MessagingError):
                loop.run(lambda: connection.close(farewell), farewell, "closing NATS")
            loop.stop(Deadline.after(0.5))


async def _tried(api: Api, request: str, what: str, **fields: Any) -> list[str]:
    """What is left after a request, in words."""
    try:
        await api.ask(request, **fields)
    except ApiError as exc:
        return [] if exc.code == CONSUMER_NOT_FOUND else [f"{what}: {exc}"]
    return []
