"""Where a subscription stands on a stream: a group's durable, or a broadcast's place in memory. On the loop."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import Any

from incident_messaging.backends.base import ConsumerSpec, Start
from incident_messaging.backends.nats.streams import (
    CONSUMER_NOT_FOUND,
    STREAM_NOT_FOUND,
    Api,
    ApiError,
    Stream,
    Streams,
    nanos,
)
from incident_messaging.errors import ConsumeFailed, SubscribeFailed
from incident_messaging.record import Position

_EXISTS_ALREADY = (10013, 10105, 10148)
#: Seconds after which the server drops a broadcast's consumer that nobody asks any more.
_INACTIVE_SECS = 30
#: In the durable's metadata: up to where the group is known to have seen all that concerns it.
REACHED = "incident-messaging.reached"


class Place(ABC):
    """A consumer of the server on one stream.

    Attributes:
        stream: The stream's name.
        name: The consumer's name on the server.
        ack_wait: Seconds the server waits for an acknowledgement, 0 where it wants none.
    """

    def __init__(self, stream: str, spec: ConsumerSpec, api: Api, streams: Streams) -> None:
        self.stream = stream
        self.name = spec.name
        self.ack_wait = 0.0
        self._spec = spec
        self._api = api
        self._streams = streams

    @abstractmethod
    async def secure(self) -> None:
        """Find the consumer on the server, or make it where that may be.

        Raises:
            ConsumeFailed: The place is lost.
            SubscribeFailed: It is there, and is another than ours.
            ApiError: JetStream refused.
        """

    @abstractmethod
    def takes(self, sequence: int) -> bool:
        """Whether a message that came is to be delivered; it counts as seen then."""

    @abstractmethod
    async def check_passed_over(self, after: int, missing: int) -> None:
        """Raise `ConsumeFailed` where the stream's beginning has moved past what was delivered last."""

    @abstractmethod
    async def leave(self) -> None:
        """Tell the server that nobody pulls any more, before anything is given back."""

    async def _create(self, **config: Any) -> dict[str, Any]:
        topic = self._spec.topic
        return await self._api.ask(
            f"CONSUMER.CREATE.{self.stream}.{self.name}.{topic}",
            stream_name=self.stream,
            action="create",
            config={"name": self.name, "filter_subject": topic, "replay_policy": "instant"} | config,
        )


class DurablePlace(Place):
    """A group's place, kept by the server. Never changed by us once it is there, but for its metadata."""

    def __init__(
        self, stream: str, spec: ConsumerSpec, api: Api, streams: Streams, ack_wait: float, start: Start
    ) -> None:
        super().__init__(stream, spec, api, streams)
        self._wanted_ack_wait = ack_wait
        self._start = start
        self._known = False
        self._reached = 0
        self._marked = 0

    async def secure(self) -> None:
        """Find the durable, or make it where it never was; see `Place.secure`."""
        try:
            stream = await self._streams.look_at(self.stream)  # before the consumer: see _check_lost
            info = await self._info() or await self._make()
        except ApiError as exc:
            if self._known and exc.code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
                raise self._lost(f"the server no longer has it ({exc})") from exc
            raise
        self._check_ours(info["config"])
        self.ack_wait = info["config"].get("ack_wait", 0) / 1e9
        await self._check_lost(stream, info)
        self._known = True

    async def check_passed_over(self, after: int, missing: int) -> None:
        """See `Place.check_passed_over`."""
        stream = await self._streams.look_at(self.stream)
        if stream.first - 1 > after:
            raise self._lost(f"at least {missing} messages were deleted unread")

    def takes(self, sequence: int) -> bool:
        """Always: the server keeps count."""
        return True

    async def leave(self) -> None:
        """Keep in mind what was reached, and have the requests dropped; see `Place.leave`."""
        # Asked for its state, the server drops the requests of an inbox that is gone. Else it takes the
        # first message given back for one of them, finds nobody there, and puts it behind the others.
        info = await self._info()
        if info is not None and self._reached > max(self._marked, info["delivered"]["stream_seq"]):
            await self._mark(info["config"])

    async def _info(self) -> dict[str, Any] | None:
        try:
            return await self._api.ask(f"CONSUMER.INFO.{self.stream}.{self.name}")
        except ApiError as exc:
            if exc.code == CONSUMER_NOT_FOUND and not self._known:
                return None
            raise

    async def _make(self) -> dict[str, Any]:
        try:
            return await self._create(
                durable_name=self.name,
                ack_policy="explicit",
                ack_wait=nanos(self._wanted_ack_wait),
                # Brokers count deliveries into a prefetch buffer too: a limit would lose what was never tried.
                max_deliver=-1,
                # Each member asks for no more than its credit; a limit for all would stall the others.
                max_ack_pending=-1,
                **deliver_policy(self._start, self.stream),
            )
        except ApiError as exc:
            if exc.code not in _EXISTS_ALREADY:
                raise
            info = await self._info()  # another member was faster
            if info is None:
                raise
            return info

    def _check_ours(self, config: dict[str, Any]) -> None:
        filters = config.get("filter_subjects") or [config.get("filter_subject")]
        if filters != [self._spec.topic] or config.get("deliver_subject"):
            raise SubscribeFailed(
                f"consumer {self.name} on stream {self.stream} is not ours: it reads {filters}, "
                f"wanted is a pull consumer of {self._spec.topic}; take another group",
                code="overlap",
                backend="nats",
            )
        if config.get("ack_policy") != "explicit":
            raise SubscribeFailed(
                f"consumer {self.name} on stream {self.stream} does not wait for acknowledgements; "
                "delete it or take another group",
                code="overlap",
                backend="nats",
            )

    async def _check_lost(self, stream: Stream, info: dict[str, Any]) -> None:
        """Raise where the stream begins behind what the group has reached.

        A group on a quiet topic stands still while the stream's other topics age: when nothing is
        pending, it has reached the end that the stream had just before.
        """
        marked = int(info["config"].get("metadata", {}).get(REACHED, 0))
        reached = max(self._reached, marked, info["delivered"]["stream_seq"])
        missing = stream.first - 1 - reached
        if missing > 0:
            self._reached = stream.first - 1
            await self._mark(info["config"])  # told once: the next subscription goes on from here
            raise self._lost(f"up to {missing} messages were deleted unread")
        caught_up = not info["num_pending"] and not info["num_ack_pending"]
        self._reached = max(reached, stream.last) if caught_up else reached
        self._marked = marked

    async def _mark(self, config: dict[str, Any]) -> None:
        marked = config | {"metadata": config.get("metadata", {}) | {REACHED: str(self._reached)}}
        await self._api.ask(
            f"CONSUMER.CREATE.{self.stream}.{self.name}.{self._spec.topic}",
            stream_name=self.stream,
            action="update",
            config=marked,
        )
        self._marked = self._reached

    def _lost(self, why: str) -> ConsumeFailed:
        return ConsumeFailed(
            f"group {self._spec.group} lost its place on {self._spec.topic} "
            f"(consumer {self.name} on stream {self.stream}): {why}",
            code="lost_place",
            backend="nats",
        )


class BroadcastPlace(Place):
    """A broadcast's place: the next sequence, in memory. The server's consumer is made anew as often as needed."""

    def __init__(self, stream: str, spec: ConsumerSpec, api: Api, streams: Streams, start: Start) -> None:
        super().__init__(stream, spec, api, streams)
        self._start = start
        self._next: int | None = None

    async def secure(self) -> None:
        """Make a consumer that goes on where this place is; see `Place.secure`."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", self._spec.name)[:100]
        self.name = f"{readable}-{os.urandom(6).hex()}"
        if self._next is None:
            policy = deliver_policy(self._start, self.stream)
        else:
            await self._check_wiped(self._next)
            policy = {"deliver_policy": "by_start_sequence", "opt_start_seq": self._next}
        info = await self._create(
            ack_policy="none",
            inactive_threshold=nanos(_INACTIVE_SECS),
            mem_storage=True,
            num_replicas=1,
            **policy,
        )
        if self._next is None:
            self._next = info["delivered"]["stream_seq"] + 1

    async def _check_wiped(self, following: int) -> None:
        try:
            stream = await self._streams.look_at(self.stream)
        except ApiError as exc:
            if exc.code != STREAM_NOT_FOUND:
                raise
            raise self._lost("the server no longer has it") from exc
        if stream.last + 1 < following:
            raise self._lost(f"it ends at {stream.last}, and {following} was to come next")

    def _lost(self, why: str) -> ConsumeFailed:
        return ConsumeFailed(
            f"a broadcast lost its place on {self._spec.topic}: stream {self.stream}: {why}",
            code="lost_place",
            backend="nats",
        )

    async def check_passed_over(self, after: int, missing: int) -> None:
        """Never: a broadcast that is slow misses what ages away; see `Place.check_passed_over`."""

    def takes(self, sequence: int) -> bool:
        """Whether it was not seen yet; see `Place.takes`."""
        # A consumer that was given up may still send what the new one sends again.
        if self._next is not None and sequence < self._next:
            return False
        self._next = sequence + 1
        return True

    async def leave(self) -> None:
        """Take the consumer away; see `Place.leave`."""
        await self._api.ask(f"CONSUMER.DELETE.{self.stream}.{self.name}")


def deliver_policy(start: Start, stream: str) -> dict[str, Any]:
    """Where a new consumer begins, in JetStream's words."""
    if isinstance(start, datetime):
        return {"deliver_policy": "by_start_time", "opt_start_time": start.astimezone(UTC).isoformat()}
    if isinstance(start, Position):
        if start.stream == stream and start.sequence:
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": start.sequence}
        return {"deliver_policy": "all"}
    return {"deliver_policy": "new" if start == "latest" else "all"}
