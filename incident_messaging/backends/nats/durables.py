"""What the server says about durables: whose they are, what they read, how far they are. On the loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import attrs

from incident_messaging import topics
from incident_messaging.backends.groups import GroupPlace, is_under
from incident_messaging.backends.nats.streams import CONSUMER_NOT_FOUND, DENIED, Api, ApiError, Streams
from incident_messaging.backends.nats.wire import unix
from incident_messaging.config import MessagingConfig

_NO_MESSAGE = (10037, 10057)
#: A name that the server lets a consumer have; others must not go into a request's subject.
_CONSUMER_NAME = re.compile(r"[^\s.*>/\\]+")

#: A consumer, in the server's words.
Info = dict[str, Any]


class Durables:
    """The durables of the streams that keep topics of the prefix."""

    def __init__(self, config: MessagingConfig, api: Api, streams: Streams) -> None:
        self._prefix = config.topic_prefix
        self._api = api
        self._streams = streams

    async def places(self, *, foreign: bool, ages: bool) -> list[GroupPlace]:
        """The durables that read topics of the prefix; one of ours on several streams is one place."""
        scope = f"{self._prefix}.>" if self._prefix else ">"
        found: dict[tuple[str, str], GroupPlace] = {}
        for stream in await self._streams.find(scope):
            for info in await self._consumers(stream):
                place = self._place(stream, info)
                if place.group is None and not (foreign and any(_overlap(scope, each) for each in place.topics)):
                    continue
                if ages and place.lag:
                    place = attrs.evolve(place, oldest=await self._oldest(stream, floor(info) + 1, filters(info)))
                key = (place.name, "" if place.group is not None else stream)
                found[key] = place if key not in found else _together(found[key], place)
        return [await self._whole(found[key], ages=ages) for key in sorted(found)]

    async def info(self, stream: str, name: str) -> Info | None:
        """A consumer, if it is there."""
        if not _CONSUMER_NAME.fullmatch(name):
            return None
        try:
            return await self._api.ask(f"CONSUMER.INFO.{stream}.{name}")
        except ApiError as exc:
            if exc.code == CONSUMER_NOT_FOUND:
                return None
            raise

    async def count(self, stream: str, topic: str) -> int:
        """How many messages of a topic or pattern a stream keeps."""
        total = seen = 0
        while True:
            answer = await self._api.ask(f"STREAM.INFO.{stream}", subjects_filter=topic, offset=seen)
            subjects: dict[str, int] = answer["state"].get("subjects") or {}
            total, seen = total + sum(subjects.values()), seen + len(subjects)
            if not subjects or seen >= answer.get("total", 0):
                return total

    async def _consumers(self, stream: str) -> list[Info]:
        found: list[Info | None] = []
        offset, total = 0, 1
        while offset < total:
            page = await self._api.ask(f"CONSUMER.LIST.{stream}", offset=offset)
            found += page.get("consumers") or ()
            # In a cluster, those that nobody leads just now; asked by name, they are waited for.
            found += [await self.info(stream, name) for name in page.get("missing") or ()]
            offset, total = offset + page["limit"], page["total"]
        return [info for info in found if info is not None and info["config"].get("durable_name")]

    def _place(self, stream: str, info: Info) -> GroupPlace:
        subjects, name = filters(info), info["name"]
        topic = subjects[0] if len(subjects) == 1 else ""
        return GroupPlace(
            backend="nats",
            name=name,
            group=group_of(name, topic) if topic and is_under(self._prefix, topic) else None,
            topics=subjects,
            streams=(stream,),
            active=is_active(info),
            lag=unread(info),
            unsettled=info["num_ack_pending"],
        )

    async def _whole(self, place: GroupPlace, *, ages: bool) -> GroupPlace:
        """With what has come to streams on which the group is not yet: it begins there at the beginning."""
        if place.group is None or not topics.is_pattern(place.topics[0]):
            return place
        for stream in set(await self._streams.find(place.topics[0])) - set(place.streams):
            if count := await self.count(stream, place.topics[0]):
                oldest = await self._oldest(stream, 1, place.topics) if ages else None
                place = _together(place, attrs.evolve(place, streams=(), lag=count, unsettled=0, oldest=oldest))
        return place

    async def _oldest(self, stream: str, sequence: int, subjects: Sequence[str]) -> float | None:
        times = []
        for subject in subjects:
            try:
                answer = await self._api.ask(f"STREAM.MSG.GET.{stream}", seq=sequence, next_by_subj=subject)
            except ApiError as exc:
                if exc.code not in (*_NO_MESSAGE, DENIED):
                    raise
            else:
                times.append(unix(answer["message"]["time"]))
        return min(times, default=None)


def filters(info: Info) -> list[str]:
    """The subjects that a consumer reads."""
    config = info["config"]
    return list(config.get("filter_subjects") or [config.get("filter_subject") or ">"])


def floor(info: Info) -> int:
    """The sequence up to which all is settled."""
    reached = "delivered" if info["config"].get("ack_policy") == "none" else "ack_floor"
    return int(info[reached]["stream_seq"])


def unread(info: Info) -> int:
    """Messages that a consumer has not settled."""
    return int(info["num_pending"] + info["num_ack_pending"])


def is_active(info: Info) -> bool | None:
    """Whether somebody asks for messages; who has its hands full does not."""
    if info["num_waiting"] or info.get("push_bound"):
        return True
    return None if info["num_ack_pending"] else False


def group_of(name: str, topic: str) -> str | None:
    """The group of a durable of this SDK, as far as its name tells; ``None`` for another program's."""
    tail = topics.durable_name("", topic)
    group = name[: -len(tail)]
    if not group or not re.fullmatch(re.escape(tail[:-8]) + "[0-9a-f]{8}", name[len(group) :]):
        return None
    return group


def _together(one: GroupPlace, other: GroupPlace) -> GroupPlace:
    """A group's place on two streams as one."""
    ages = [oldest for oldest in (one.oldest, other.oldest) if oldest is not None]
    active = {one.active, other.active}
    return attrs.evolve(
        one,
        streams=(*one.streams, *other.streams),
        active=True if True in active else None if None in active else False,
        lag=one.lag + other.lag,
        unsettled=(one.unsettled or 0) + (other.unsettled or 0),
        oldest=min(ages, default=None),
    )


def _overlap(one: str, other: str) -> bool:
    """Whether some subject is of both patterns."""
    for mine, yours in zip_longest(one.split("."), other.split(".")):
        if mine is None or yours is None:
            return False
        if ">" in (mine, yours):
            return True
        if mine != yours and "*" not in (mine, yours):
            return False
    return True
