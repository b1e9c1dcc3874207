"""Groups on Kafka: their committed offsets, looked at and put elsewhere by the broker's administration.

The broker itself refuses to change the offsets of a group that has members.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import attrs
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
)
from confluent_kafka import TopicPartition as Partition
from confluent_kafka.admin import AdminClient

from incident_messaging import topics as names
from incident_messaging.backends.groups import BrokerGroups, GroupPlace, Move, Target, has_members, is_under
from incident_messaging.backends.kafka import errors, notes, places, settings
from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.backends.kafka.link import DebugLog
from incident_messaging.backends.kafka.offsets import Place
from incident_messaging.backends.kafka.places import Placed
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import ConfigurationError, MessagingError, SubscribeFailed, Timeout

_T = TypeVar("_T")

#: The longest wait in C for an answer, and for a record: only between two of them Ctrl-C is heard.
_ANSWER = 1.0
_SLICE = 0.1
#: How long the oldest records of one group are waited for.
_AGES = 5.0
_NOBODY = (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD)

#: Offsets by partition.
Offsets = Mapping[Place, int]


@attrs.frozen
class _Steps:
    """The offsets to commit, and where the group had been when they were chosen."""

    offsets: Sequence[Partition]
    seen: Offsets


class KafkaGroups(BrokerGroups):
    """See `BrokerGroups`."""

    def __init__(self, config: MessagingConfig) -> None:
        self._config = config
        self._exact = config.kafka.exact_group_id
        self._patience = config.subscribe_timeout_ms / 1000
        self._broker = KafkaBroker(config)
        self._admin: AdminClient | None = None
        self._client: Consumer | None = None

    def connect(self, deadline: Deadline) -> None:
        """See `BrokerGroups.connect`."""
        self._broker.connect(deadline)

    def close(self) -> None:
        """See `BrokerGroups.close`."""
        client, self._client, self._admin = self._client, None, None
        if client is not None:
            client.close()
        self._broker.close(Deadline.after(1.0))

    # What is there.

    def places(self, *, foreign: bool, ages: bool) -> list[GroupPlace]:
        """See `BrokerGroups.places`."""
        listed = self._answer(lambda admin: admin.list_consumer_groups(request_timeout=self._patience), "the groups")
        ours = {one.group_id: self._split(one.group_id) for one in listed.valid}
        wanted = sorted(name for name, split in ours.items() if split is not None or foreign or self._exact)
        asked = self._committed_by(wanted)
        described = self._described(wanted)
        there = self._topics()
        found = []
        for name in wanted:
            split = ours[name]
            for topic in self._read_by(split, asked[name], described[name]):
                parts = {place: asked[name].get(place) for place in _partitions(there, self._matching(there, topic))}
                group = split[0] if split is not None else name if self._exact else None
                found.append((GroupPlace(backend="kafka", name=name, group=group, topics=(topic,)), parts))
        return self._measured(found, described, ages=ages)

    def _split(self, name: str) -> tuple[str, str] | None:
        """Group and topic of a name of this SDK on topics of the prefix."""
        group, _, topic = name.rpartition(":")
        try:
            names.full_pattern("", topic)
        except ConfigurationError:
            return None
        ours = group and not self._exact and is_under(self._config.topic_prefix, topic)
        return (group, topic) if ours else None

    def _read_by(self, split: tuple[str, str] | None, committed: Mapping[Place, Placed], group: Any) -> list[str]:
        """The topic or pattern of a group of ours; of others, the topics under the prefix that they have to do with."""
        if split is not None:
            return [split[1]]
        given = [each.topic for member in group.members for each in member.assignment.topic_partitions]
        read = {topic for topic, _ in committed} | set(given)
        return sorted(topic for topic in read if is_under(self._config.topic_prefix, topic) and topic[:1] != "_")

    def _measured(
        self, found: list[tuple[GroupPlace, dict[Place, Placed | None]]], described: Mapping[str, Any], *, ages: bool
    ) -> list[GroupPlace]:
        parts = {place for _, each in found for place in each}
        low, high = self._bounds(parts)
        told = []
        for place, committed in found:
            left = {each: _left(placed, low[each], high[each]) for each, placed in committed.items()}
            group = described[place.name]
            oldest = self._oldest({each: high[each] - count for each, count in left.items() if count}) if ages else None
            told.append(
                attrs.evolve(
                    place,
                    members=len(group.members),
                    active=group.state not in _NOBODY,
                    lag=sum(left.values()),
                    oldest=oldest,
                )
            )
        return told

    def _oldest(self, begins: Offsets) -> float | None:
        """When the first of these records was stored that is the oldest, in Unix seconds."""
        client, times = self._connected(), []
        client.assign([Partition(topic, number, offset) for (topic, number), offset in begins.items()])
        waited = set(begins)
        patience = Deadline.after(_AGES)
        while waited and not patience.over:
            message = client.poll(patience.wait(_SLICE))
            if message is None:
                continue
            error, place = message.error(), (message.topic() or "", message.partition() or 0)
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if not errors.passes(error):
                    break  # it may not be read, which is nobody's trouble but that of who asks for an age
                continue
            if place in waited:
                waited.remove(place)
                client.incremental_unassign([Partition(*place)])
                kind, stamp = message.timestamp()
                if error is None and kind:
                    times.append(stamp / 1000)
        client.unassign()
        return min(times, default=None)

    # What is done about it.

    def plan_reset(self, group: str, topic: str, target: Target) -> Move:
        """See `BrokerGroups.plan_reset`."""
        name = names.place_name(group, topic, exact=self._exact)
        self._refuse_members(name)
        parts = self._parts(topic)
        stored = {place: at for place, at in self._committed_by([name])[name].items() if place in parts}
        low, high = self._bounds(parts)
        begins = self._patiently(lambda client: places.begins(client, parts, target, _ANSWER), topic)
        # A partition without a place begins at its beginning, where the group has one in another.
        now = {place: stored[place].offset if place in stored else low[place] for place in parts} if stored else {}
        return Move(
            backend="kafka", name=name, group=group, topic=topic,
            begins=_words(begins),
            before=sum(_left(stored.get(place), low[place], high[place]) for place in parts) if stored else None,
            after=sum(high[place] - begins[place] for place in parts),
            skipped=sum(max(0, begins[place] - max(at, low[place])) for place, at in now.items()),
            again=sum(max(0, min(at, high[place]) - begins[place]) for place, at in now.items()),
            steps=_Steps(
                [Partition(*place, begins[place]) for place in sorted(begins)],
                {place: at.offset for place, at in stored.items()},
            ),
        )  # fmt: skip

    def plan_adopt(self, existing: str, group: str, topic: str) -> Move:
        """See `BrokerGroups.plan_adopt`. Nothing is handled again but what the other group had not committed."""
        name = names.place_name(group, topic, exact=self._exact)
        if name == existing:
            raise _refused(f"{existing} is the group's own name on the broker: there is nothing to take over")
        for each in (name, existing):
            self._refuse_members(each)
        parts = self._parts(topic)
        committed = self._committed_by([name, existing])
        if any(place in parts for place in committed[name]):
            raise _refused(f"group {group} has a place on {topic} already (Kafka group {name})")
        taken = {place: at for place, at in committed[existing].items() if place in parts}
        if not taken:
            read = ", ".join(sorted({topic for topic, _ in committed[existing]})) or "no topic"
            raise _refused(f"Kafka group {existing} has no place on {topic}; it has on {read}")
        low, high = self._bounds(parts)
        return Move(
            backend="kafka", name=name, group=group, topic=topic,
            begins=_words({place: at.offset for place, at in taken.items()}),
            before=None,
            after=sum(_left(taken.get(place), low[place], high[place]) for place in parts),
            remarks=_remarks(existing, topic, parts, committed[existing], low, high),
            # What another group of this SDK knows of messages that killed is true of the same offsets.
            steps=_Steps([Partition(*at.place, at.offset, at.note.text()) for at in taken.values()], {}),
        )  # fmt: skip

    def apply(self, move: Move) -> None:
        """See `BrokerGroups.apply`."""
        steps: _Steps = move.steps
        moved = {(each.topic, each.partition) for each in steps.offsets}
        committed = self._committed_by([move.name])[move.name]
        if {place: at.offset for place, at in committed.items() if place in moved} != steps.seen:
            raise _refused(f"Kafka group {move.name} has gone on meanwhile: somebody was a member")
        wanted = [ConsumerGroupTopicPartitions(move.name, list(steps.offsets))]
        done = self._answer(
            lambda admin: admin.alter_consumer_group_offsets(wanted, request_timeout=self._patience)[move.name],
            f"the offsets of {move.name}",
            move.name,
        )
        for partition in done.topic_partitions or ():
            if partition.error is not None:
                raise self._failed(partition.error, f"the offset of {partition.topic}-{partition.partition}", move.name)

    def _refuse_members(self, name: str) -> None:
        group = self._described([name])[name]
        if group.state not in _NOBODY:
            clients = sorted({f"{member.client_id} at {member.host}" for member in group.members})
            words = (
                f"{len(group.members)} ({', '.join(clients)}; one that was killed counts until its session times out)"
            )
            raise has_members(f"Kafka group {name}", words, "kafka")

    # Questions.

    def _topics(self) -> Mapping[str, Any]:
        listed = self._patiently(lambda client: client.list_topics(timeout=_ANSWER), "the list of topics")
        return {name: data.partitions for name, data in listed.topics.items() if data.error is None}

    def _matching(self, there: Iterable[str], topic: str) -> list[str]:
        """The topics that a subscription reads, as `polling` chooses them."""
        if not names.is_pattern(topic):
            if topic not in there:
                self._must_be_shown(topic)
            return [topic] if topic in there else []
        dead = names.full_name(self._config.topic_prefix, self._config.dlq_topic) if self._config.enable_dlq else None
        matches = names.regex(topic).fullmatch
        return [name for name in there if matches(name) and name != dead and not name.startswith("_")]

    def _must_be_shown(self, topic: str) -> None:
        """Tell a topic that is not there from one without a right to it, which a list of topics leaves out."""
        asked = self._administration().describe_topics(TopicCollection([topic]), request_timeout=self._patience)
        try:
            self._waited(asked[topic], f"topic {topic}")
        except KafkaException as exc:
            if errors.of(exc).code() not in errors.UNKNOWN_TOPIC:
                raise self._failed(errors.of(exc), f"topic {topic}") from exc

    def _parts(self, topic: str) -> set[Place]:
        there = self._topics()
        found = _partitions(there, self._matching(there, topic))
        if not found:
            text = f"Kafka has no topic {topic} yet: a subscription's own start says where its group begins"
            raise SubscribeFailed(text, code="no_topic", backend="kafka")
        return found

    def _bounds(self, parts: Iterable[Place]) -> tuple[Offsets, Offsets]:
        low = self._patiently(lambda client: places.begins(client, parts, "earliest", _ANSWER), "the topics' offsets")
        high = self._patiently(lambda client: places.begins(client, parts, "latest", _ANSWER), "the topics' offsets")
        return low, high

    def _described(self, groups: list[str]) -> dict[str, Any]:
        if not groups:
            return {}
        asked = self._administration().describe_consumer_groups(groups, request_timeout=self._patience)
        return {name: self._result(future, f"group {name}", name) for name, future in asked.items()}

    def _committed_by(self, groups: list[str]) -> dict[str, dict[Place, Placed]]:
        asked: dict[str, Future[ConsumerGroupTopicPartitions]] = {}
        for name in groups:  # librdkafka takes one at a time
            wanted = [ConsumerGroupTopicPartitions(name)]
            asked |= self._administration().list_consumer_group_offsets(wanted, request_timeout=self._patience)
        found: dict[str, dict[Place, Placed]] = {}
        for name, future in asked.items():
            stored = self._result(future, f"the offsets of {name}", name).topic_partitions or ()
            placed = (Placed((at.topic, at.partition), at.offset, notes.read(at.metadata)) for at in stored)
            found[name] = {at.place: at for at in placed if at.offset >= 0}
        return found

    def _answer(self, ask: Callable[[AdminClient], Future[_T]], what: str, group: str = "") -> _T:
        return self._result(ask(self._administration()), what, group)

    def _result(self, future: Future[_T], what: str, group: str) -> _T:
        try:
            return self._waited(future, what)
        except KafkaException as exc:
            raise self._failed(errors.of(exc), what, group) from exc

    def _waited(self, future: Future[_T], what: str) -> _T:
        try:
            return future.result(self._patience + _ANSWER)
        except FutureTimeout as exc:
            raise Timeout(f"{what}: Kafka has stopped answering ({self._patience:g} s)", backend="kafka") from exc

    def _patiently(self, ask: Callable[[Consumer], _T], what: str) -> _T:
        """Ask in slices, so that Ctrl-C is heard, as long as the broker only does not answer."""
        patience = Deadline.after(self._patience)
        while True:
            try:
                return ask(self._connected())
            except KafkaException as exc:
                if patience.over or not errors.passes(errors.of(exc)):
                    raise self._failed(errors.of(exc), what) from exc

    def _connected(self) -> Consumer:
        if self._client is None:
            name = f"incident-messaging-groups-{uuid.uuid4().hex[:12]}"
            self._client = self._new(lambda: Consumer(settings.looker(self._config, name), logger=DebugLog()))
        return self._client

    def _administration(self) -> AdminClient:
        if self._admin is None:
            self._admin = self._new(lambda: AdminClient(settings.admin(self._config.kafka), logger=DebugLog()))
        return self._admin

    def _new(self, client: Callable[[], _T]) -> _T:
        try:  # ``client`` has no name for the properties: a traceback may show a frame's names
            return client()
        except KafkaException as exc:
            raise errors.not_created(self._config.kafka.bootstrap_servers, exc) from exc

    def _failed(self, error: KafkaError, what: str, group: str = "") -> MessagingError:
        if error.code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP):
            return has_members(f"Kafka group {group}", "one came meanwhile", "kafka")
        if errors.passes(error):
            text = f"{what}: Kafka does not answer as it should: {error.str()}"
            return errors.caused(Timeout(text, backend="kafka"), error)
        return errors.subscribe(error, what, group)


def _partitions(there: Mapping[str, Any], topics: Iterable[str]) -> set[Place]:
    return {(topic, number) for topic in topics for number in there[topic]}


def _left(placed: Placed | None, low: int, high: int) -> int:
    """Messages from a place to the end; from the beginning where there is no place, or none that still exists."""
    return high - placed.offset if placed is not None and low <= placed.offset <= high else high - low


def _words(offsets: Offsets) -> list[str]:
    return [f"{topic}-{number}-{offset}" for (topic, number), offset in sorted(offsets.items())]


def _remarks(
    existing: str, topic: str, parts: Iterable[Place], committed: Mapping[Place, Placed], low: Offsets, high: Offsets
) -> list[str]:
    said = []
    for place in sorted(parts):
        where, at = "-".join(map(str, place)), committed.get(place)
        if at is None and high[place] > low[place]:
            count = high[place] - low[place]
            said.append(f"{existing} has no place in {where}: its {count} messages are read from the first on")
        elif at is not None and not low[place] <= at.offset <= high[place]:
            said.append(
                f"{where} no longer has offset {at.offset} ({low[place]} to {high[place]} are there): the first "
                f"subscription ends with lost_place, which says what is missing"
            )
    others = sorted({name for name, _ in committed} - {name for name, _ in parts})
    if others:
        said.append(f"{existing} has places on {', '.join(others)} too, which are not of {topic} and not taken over")
    return said


def _refused(text: str) -> SubscribeFailed:
    return SubscribeFailed(text, code="overlap", backend="kafka")
