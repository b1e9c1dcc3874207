"""Groups on JetStream: the durables of the streams that keep the topics. On the loop but for `NatsGroups`.

A durable's start cannot be changed, so a place is put elsewhere by making it anew, by the code with which a
subscription makes it (`DurablePlace`). Where that will be, and what is unread from there, a *probe* says: a consumer
in memory that nobody asks for a message.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import attrs

from incident_messaging import topics
from incident_messaging.backends.base import ConsumerSpec, Start
from incident_messaging.backends.groups import BrokerGroups, GroupPlace, Move, Target, has_members
from incident_messaging.backends.nats.connection import Connection
from incident_messaging.backends.nats.consume import is_part
from incident_messaging.backends.nats.durables import Durables, Info, filters, floor, group_of, is_active, unread
from incident_messaging.backends.nats.places import DurablePlace, deliver_policy
from incident_messaging.backends.nats.streams import DENIED, Api, ApiError, Stream, Streams, nanos
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import MessagingError, SubscribeFailed, Timeout
from incident_messaging.eventloop import EventLoop
from incident_messaging.record import Position

_T = TypeVar("_T")

#: The server drops a probe that could not be deleted.
_PROBE_SECS = 5
#: Beyond a third of ``ack_wait``, in which a member tells of all that it has; a longer one is not waited for.
_LATE_SECS = 0.7
_MOST_WAIT_SECS = 60.0
_FAREWELL_SECS = 0.3


@attrs.frozen
class _Step:
    """A durable to be made; ``replaces`` is how far that is which has its name, ``None`` where there is none."""

    stream: str
    sequence: int
    ack_wait: float
    replaces: tuple[int, int] | None = None


class NatsGroups(BrokerGroups):
    """See `BrokerGroups`."""

    def __init__(self, config: MessagingConfig) -> None:
        self._config = config
        self._loop = EventLoop("incident-messaging-loop")
        self._connection = Connection(config)
        api = Api(self._connection)
        streams = Streams(api, self._connection, config)
        self._durables = Durables(config, api, streams)
        self._work = _Work(config, api, streams, self._connection, self._durables)

    def connect(self, deadline: Deadline) -> None:
        """See `BrokerGroups.connect`."""
        self._loop.run(lambda: self._connection.until_up(deadline), Deadline(None), "connecting to NATS")

    def places(self, *, foreign: bool, ages: bool) -> list[GroupPlace]:
        """See `BrokerGroups.places`."""
        return self._ask(lambda: self._durables.places(foreign=foreign, ages=ages), "looking for consumers")

    def plan_reset(self, group: str, topic: str, target: Target) -> Move:
        """See `BrokerGroups.plan_reset`."""
        return self._ask(lambda: self._work.plan_reset(group, topic, target), f"looking at {topic}", watches=True)

    def plan_adopt(self, existing: str, group: str, topic: str) -> Move:
        """See `BrokerGroups.plan_adopt`."""
        return self._ask(lambda: self._work.plan_adopt(existing, group, topic), f"looking at {topic}", watches=True)

    def apply(self, move: Move) -> None:
        """See `BrokerGroups.apply`."""
        try:
            self._ask(lambda: self._work.apply(move), f"making {move.name}")
        except (Timeout, SubscribeFailed) as exc:
            if exc.code == "overlap" or not any(step.replaces is not None for step in move.steps):
                raise
            text = f"{exc}; {move.name} may have no place now: do the same again before a member subscribes"
            raise type(exc)(text, code=exc.code, backend="nats") from exc

    def close(self) -> None:
        """See `BrokerGroups.close`."""
        if self._loop.started:
            try:
                deadline = Deadline.after(_FAREWELL_SECS)
                self._loop.run(lambda: self._connection.close(deadline), deadline, "closing NATS")
            except MessagingError:
                pass  # it is aborted with the loop
            self._loop.stop(Deadline.after(_FAREWELL_SECS))

    def _ask(self, work: Callable[[], Coroutine[Any, Any, _T]], what: str, *, watches: bool = False) -> _T:
        patience = self._config.subscribe_timeout_ms / 1000 + (_watch_secs(_MOST_WAIT_SECS) if watches else 0.0)
        try:
            return self._loop.run(work, Deadline.after(patience), what)
        except Timeout as exc:
            raise Timeout(f"NATS has stopped answering: {exc} ({patience:g} s)", backend="nats") from exc
        except ApiError as exc:
            code = "denied" if exc.code == DENIED else "no_topic"
            raise SubscribeFailed(f"{what}: {exc}", code=code, backend="nats") from exc


class _Work:
    """What is done about it."""

    def __init__(
        self, config: MessagingConfig, api: Api, streams: Streams, connection: Connection, durables: Durables
    ) -> None:
        self._ack_wait = config.nats.ack_wait_ms / 1000
        self._api = api
        self._streams = streams
        self._connection = connection
        self._durables = durables

    async def plan_reset(self, group: str, topic: str, target: Target) -> Move:
        """See `BrokerGroups.plan_reset`."""
        name = topics.durable_name(group, topic)
        move = Move(backend="nats", name=name, group=group, topic=topic, begins=(), before=None, after=0, steps=())
        infos = {stream: await self._durables.info(stream, name) for stream in await self._covering(topic)}
        for stream, info in infos.items():
            if info is not None:
                await self._refuse_members(stream, info)
            sequence, after = await self._probe(stream, [topic], target)
            before = None if info is None else unread(info)
            if info is None and any(infos.values()):  # its members would begin there at the beginning
                before = await self._durables.count(stream, topic)
            ack_wait = self._ack_wait if info is None else info["config"]["ack_wait"] / 1e9
            difference = after - before if before is not None else 0
            move = attrs.evolve(
                _with(
                    move, _Step(stream, sequence, ack_wait, None if info is None else _progress(info)), before, after
                ),
                skipped=move.skipped + max(0, -difference),
                again=move.again + max(0, difference),
                remarks=(*move.remarks, *_passed_over(info, sequence)),
            )
        return move

    async def plan_adopt(self, existing: str, group: str, topic: str) -> Move:
        """See `BrokerGroups.plan_adopt`."""
        name = topics.durable_name(group, topic)
        move = Move(backend="nats", name=name, group=group, topic=topic, begins=(), before=None, after=0, steps=())
        for stream in await self._covering(topic):
            if await self._durables.info(stream, name) is not None:
                raise _refused(f"group {group} has a place on {topic} already (consumer {name} on stream {stream})")
            old = await self._durables.info(stream, existing)
            if old is None or not old["config"].get("durable_name"):
                raise _refused(f"there is no durable consumer {existing} on stream {stream}, which keeps {topic}")
            if not any(is_part(topic, subject) for subject in filters(old)):
                read = ", ".join(filters(old))
                raise _refused(f"consumer {existing} on stream {stream} does not read all of {topic}, but {read}")
            await self._refuse_members(stream, old)
            sequence, after = await self._probe(stream, [topic], Position(stream=stream, sequence=floor(old) + 1))
            # What it acknowledged out of order is unread from the floor on, and not unread to it.
            _, all_after = await self._probe(stream, filters(old), Position(stream=stream, sequence=floor(old) + 1))
            kept = await self._streams.look_at(stream)
            move = attrs.evolve(
                _with(move, _Step(stream, sequence, self._ack_wait), None, after),
                again=move.again + max(0, min(after, all_after - unread(old))),
                remarks=(*move.remarks, *_remarks(kept, old, topic)),
            )
        return move

    async def apply(self, move: Move) -> None:
        """See `BrokerGroups.apply`. An adoption is made on all streams or on none."""
        made: list[str] = []
        try:
            for step in move.steps:
                await self._apply(move, step)
                made += [step.stream] if step.replaces is None else []
        except BaseException:
            for stream in made:
                with suppress(ApiError):
                    await self._api.ask(f"CONSUMER.DELETE.{stream}.{move.name}")
            raise

    async def _apply(self, move: Move, step: _Step) -> None:
        info = await self._durables.info(step.stream, move.name)
        if info is not None and is_active(info):
            raise _has_members(step.stream, info)
        if info is not None and _progress(info) != step.replaces:
            raise _refused(f"consumer {move.name} on stream {step.stream} has gone on meanwhile: somebody is a member")
        if info is not None:
            await self._api.ask(f"CONSUMER.DELETE.{step.stream}.{move.name}")
        await self._make(move, step)

    async def _make(self, move: Move, step: _Step) -> None:
        start = Position(stream=step.stream, sequence=step.sequence)
        spec = ConsumerSpec(
            topic=move.topic, group=move.group, name=move.name, start=start, prefetch=1, prefetch_bytes=1
        )
        await DurablePlace(step.stream, spec, self._api, self._streams, step.ack_wait, start).secure()
        info = await self._durables.info(step.stream, move.name)
        if info is None or info["config"].get("opt_start_seq") != step.sequence:
            raise _refused(f"{move.name} on stream {step.stream} was made by a member meanwhile, at its own start")

    async def _covering(self, topic: str) -> list[str]:
        """The streams of a topic, all of which must keep what nobody reads."""
        names = await self._streams.find(topic)
        if not names:
            text = f"no stream keeps {topic} yet: a subscription's own start says where its group begins"
            raise SubscribeFailed(text, code="no_topic", backend="nats")
        for name in names:
            retention = (await self._api.ask(f"STREAM.INFO.{name}"))["config"]["retention"]
            if retention != "limits":
                raise _refused(
                    f"stream {name} keeps messages by {retention}, so making or deleting a consumer changes what it "
                    f"keeps: only places on streams that keep by limits can be moved"
                )
        return names

    async def _probe(self, stream: str, subjects: Sequence[str], start: Start) -> tuple[int, int]:
        """The sequence that a start stands for, and how many messages there are from it on."""
        name = f"incident-messaging-look-{os.urandom(6).hex()}"
        info = await self._api.ask(
            f"CONSUMER.CREATE.{stream}.{name}",
            stream_name=stream,
            action="create",
            config={
                "name": name,
                "filter_subjects": [subject for subject in subjects if subject != ">"],
                "ack_policy": "none",
                "replay_policy": "instant",
                "inactive_threshold": nanos(_PROBE_SECS),
                "mem_storage": True,
                "num_replicas": 1,
                **deliver_policy(start, stream),
            },
        )
        await self._api.ask(f"CONSUMER.DELETE.{stream}.{name}")
        return info["delivered"]["stream_seq"] + 1, info["num_pending"]

    async def _refuse_members(self, stream: str, info: Info) -> None:
        """Raise where somebody asks for messages, or tells that it is at work on one."""
        ours = len(filters(info)) == 1 and group_of(info["name"], filters(info)[0]) is not None
        if is_active(info) or (ours and info["num_ack_pending"] and await self._is_heard_of(stream, info)):
            raise _has_members(stream, info)

    async def _is_heard_of(self, stream: str, info: Info) -> bool:
        """Whether a member has its hands full: it asks for nothing, but tells thrice in ``ack_wait`` that it works."""
        heard = asyncio.Event()
        sid = self._connection.listen(f"$JS.ACK.{stream}.{info['name']}.>", lambda *_: heard.set())
        try:
            await asyncio.wait_for(heard.wait(), _watch_secs(info["config"]["ack_wait"] / 1e9))
        except TimeoutError:
            return False
        finally:
            self._connection.forget(sid)
        return True


def _progress(info: Info) -> tuple[int, int]:
    return info["delivered"]["consumer_seq"], info["ack_floor"]["consumer_seq"]


def _watch_secs(ack_wait: float) -> float:
    return min(ack_wait, _MOST_WAIT_SECS) / 3 + _LATE_SECS


def _with(move: Move, step: _Step, before: int | None, after: int) -> Move:
    known = before is not None or move.before is not None
    return attrs.evolve(
        move,
        begins=(*move.begins, f"{step.stream}-{step.sequence}"),
        before=(move.before or 0) + (before or 0) if known else None,
        after=move.after + after,
        steps=(*move.steps, step),
    )


def _passed_over(info: Info | None, sequence: int) -> list[str]:
    """What the difference of two lags does not show: some before the new start skipped, some behind it again."""
    if info is None or not info["num_ack_pending"] or not floor(info) + 1 < sequence <= info["delivered"]["stream_seq"]:
        return []
    return [f"of {info['num_ack_pending']} handed out and not acknowledged, those before {sequence} never come again"]


def _remarks(stream: Stream, old: Info, topic: str) -> list[str]:
    said = []
    if old["num_ack_pending"]:
        said.append(f"{old['num_ack_pending']} were handed out and not acknowledged: they come to the new group")
    missing = stream.first - 1 - floor(old)
    if missing > 0:
        said.append(f"stream {stream.name} begins at {stream.first}: up to {missing} messages were deleted unread")
    read = stream.subjects if filters(old) == [">"] else filters(old)
    if others := [subject for subject in read if not is_part(subject, topic)]:
        said.append(f"{old['name']} reads {', '.join(others)}: what of it is not {topic} is not taken over")
    return said


def _has_members(stream: str, info: Info) -> SubscribeFailed:
    words = "it tells of messages that it works on"
    if info["num_waiting"]:
        words = f"{info['num_waiting']} requests wait for messages"
    elif info.get("push_bound"):
        words = "somebody takes what it sends"
    return has_members(f"consumer {info['name']} on stream {stream}", words, "nats")


def _refused(text: str) -> SubscribeFailed:
    return SubscribeFailed(text, code="overlap", backend="nats")
