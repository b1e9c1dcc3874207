"""Consuming from Apache Kafka: members of a group, and broadcasts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from incident_messaging import topics as names
from incident_messaging.backends.base import ConsumerSpec, Sink, Start
from incident_messaging.backends.kafka import errors, places, settings
from incident_messaging.backends.kafka.link import log
from incident_messaging.backends.kafka.offsets import Partition, Place
from incident_messaging.backends.kafka.polling import ANSWER, PollingConsumer, Stopped
from incident_messaging.backends.kafka.records import Arrival
from incident_messaging.backends.kafka.topics import Topics
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline, now
from incident_messaging.errors import MessagingError, Timeout
from incident_messaging.record import Received

#: Settled messages after which a commit does not wait for its interval.
_SETTLED = 1000
#: Up to where a commit allows to deliver, beyond three times the prefetch.
_WINDOW = 100
#: How long a failed commit waits before it is tried again.
_RETRY = 0.1
#: How long after a confirming acknowledgement the next one is looked out for in short polls.
_CONFIRMS = 10.0
#: The time that the last commit has at least, even when `close` has none.
_LAST_COMMIT = 0.2
#: How long a leave waits for a change of members that is under way: they learn of it by their next heartbeat.
_GOOD_BYE = 4.0
_QUICK = 0.005
#: How often a broker that computes assignments by itself (KIP-848) is reminded of a changed subscription.
#: It answers a change with the old assignment, and tells the new one only when the member asks again: 5 s later.
_REMIND = 0.3
_REMIND_FOR = 6.0
#: Between looks for added partitions of a broadcast's topic, which librdkafka does not report.
_PARTITIONS = 5.0


def consumer_for(
    config: MessagingConfig,
    topics: Topics,
    first_connection: Callable[[Deadline], None],
    spec: ConsumerSpec,
    sink: Sink,
) -> PollingConsumer:
    """The kind of consumer that a subscription asks for."""
    kind = BroadcastConsumer if spec.group is None else GroupConsumer
    return kind(config, topics, first_connection, spec, sink)


class GroupConsumer(PollingConsumer):
    """A member of a group: its place is the group's committed offsets.

    Guarantees: only what is settled without a gap is committed, always asynchronously; the place of a
    partition is stored before `open` returns, and nothing is delivered before the broker has it in writing
    up to where (`offsets`); what is settled after its partition was taken away commits nothing.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._places = places.Places(self._spec.start)
        self._incremental = settings.is_incremental(self._config.kafka)
        self._interval = self._config.kafka.auto_commit_interval_ms / 1000
        self._owner = os.urandom(4).hex()
        self._window = 3 * self._spec.prefetch + _WINDOW
        self._subscribed: frozenset[str] = frozenset()
        self._assigned_once = False
        self._committing: dict[Place, Partition] = {}  # sent, and no answer yet; guarded by `_changed`
        self._open_commits = 0
        self._next_commit = self._retry_at = self._confirms_until = 0.0
        self._remind_until = self._next_reminder = 0.0
        self._leaving = False

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        """See `MessageConsumer.ack`."""
        super().ack(batch, deadline)
        if deadline is None:
            return
        with self._changed:
            self._credit.settle()
            arrivals = cast(Sequence[Arrival], batch)
            awaited = [message for message in arrivals if message.offset < message.partition.committable]
            self._until(lambda: all(self._is_confirmed(each.partition, each.offset) for each in awaited), deadline)

    def mark(self, message: Received, starts: int, deadline: Deadline) -> None:
        """See `MessageConsumer.mark`."""
        arrival = cast(Arrival, message)
        partition, offset = arrival.partition, arrival.offset
        with self._changed:
            mark = partition.mark(offset, starts)
            self._until(lambda: partition.gone or partition.is_marked(mark), deadline)

    def _until(self, confirmed: Callable[[], bool], deadline: Deadline) -> None:
        """Have commits sent without delay until one has brought what is waited for. `_changed` is held."""
        self._confirming += 1
        self._changed.notify_all()
        try:
            while not confirmed():
                if deadline.over or self._finished.is_set():
                    raise Timeout(f"Kafka did not confirm the commit of {self._spec.name} in time", backend="kafka")
                self._changed.wait(deadline.wait(0.1))
        finally:
            self._confirming -= 1

    def _is_confirmed(self, partition: Partition, offset: int) -> bool:
        passed_over = partition.gone and self._committing.get(partition.place) is not partition
        return partition.confirmed > offset or passed_over

    # What `PollingConsumer` asks for.

    def _settings(self) -> dict[str, Any]:
        return settings.consumer(self._config, self._spec) | {"on_commit": self._committed}

    def _begin(self, client: Consumer, topics: dict[str, int]) -> None:
        known = [(topic, number) for topic, count in topics.items() for number in range(count)]
        # Asked even for nothing: it finds the group's coordinator, without which joining takes three seconds.
        self.persist(
            "the group's place",
            lambda: self._places.look(client, known, ANSWER),
            lambda: self._fetch(client, 0.0, 1),
        )
        self._follow(client, topics)
        self._waiting_for = "the group's assignment"

    def _follow(self, client: Consumer, topics: dict[str, int]) -> None:
        if topics.keys() != self._subscribed and topics:
            self._subscribed = frozenset(topics)
            self._subscribe(client)
            self._remind_until = now() + _REMIND_FOR

    def _made_anew(self, client: Consumer, topic: str) -> None:
        for partition in self._ledger.partitions():
            if partition.place[0] == topic:
                raise places.vanished(partition.place)

    def _subscribe(self, client: Consumer) -> None:
        client.subscribe(
            sorted(self._subscribed), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._were_lost
        )
        self._next_reminder = now() + _REMIND

    def _look_due(self) -> float | None:
        if names.is_pattern(self._spec.topic) or not self._subscribed:
            return self._config.kafka.topic_discovery_ms / 1000
        return None

    def _is_ready(self) -> bool:
        if not self._subscribed:
            return True
        self._waiting_for = "the group's place to be stored" if self._assigned_once else "the group's assignment"
        with self._changed:
            return self._assigned_once and self._ledger.stored

    def _work(self, client: Consumer) -> bool:
        if self._next_reminder <= now() < self._remind_until and self._config.kafka.group_protocol == "consumer":
            self._subscribe(client)
        with self._changed:
            self._credit.settle()
            if self._confirming:
                self._confirms_until = now() + _CONFIRMS
            due = self._take_due(hurry=self._confirming > 0 or self._ledger.urgent)
            awaited = self._credit.held or self._confirming > 0 or not self._ledger.stored
            quick = awaited or (self._ledger.count > 0 and now() < self._confirms_until)
        if due:
            self._commit(client, due)
        return quick

    def _leave_behind(self, client: Consumer) -> None:
        """Give up the partitions, as after a loss: what was not committed comes again."""
        self._take_away(client, [TopicPartition(*partition.place) for partition in self._ledger.partitions()])
        while self._open_commits:  # a client must not be closed with a commit unanswered
            client.poll(ANSWER)
        self._subscribed = frozenset()

    def _before_close(self, client: Consumer) -> None:
        """Commit what was settled. A client must not be closed with a commit unanswered: it may hang for good."""
        deadline = Deadline.after(None if self._stop_by.at is None else max(_LAST_COMMIT, self._stop_by.left() or 0))
        with self._changed:
            self._ledger.leave()
        while not deadline.over:
            with self._changed:
                due = self._take_due(hurry=True)
                if not due and not self._open_commits and not self._ledger.has_due:
                    break
            if due:
                self._commit(client, due)
            client.poll(_QUICK)
        if self._open_commits:
            log.warning("%s: Kafka did not answer the last commit; waiting for it in the background", self._spec.name)
        while self._open_commits:
            client.poll(ANSWER)
        self._leaving = True
        self._leave_group(client)

    def _leave_group(self, client: Consumer) -> None:
        """Say good-bye. A close alone says none where nothing is assigned, and the others then wait for us.

        librdkafka puts off a leave until it knows what came of the last change of members.
        """
        if self._config.kafka.group_protocol != "classic":
            return
        client.unsubscribe()
        deadline = Deadline.after(max(_LAST_COMMIT, self._stop_by.wait(_GOOD_BYE)))
        while not deadline.over and client.memberid():
            client.poll(_QUICK)

    # Commits.

    def _take_due(self, *, hurry: bool) -> list[Partition]:
        """What is to be committed now, noted as sent. One commit at a time. `_changed` is held."""
        time = now()
        self._credit.settle()
        if self._open_commits or time < self._retry_at:
            return []
        if not hurry and self._ledger.settled < _SETTLED and time < self._next_commit:
            return []
        self._next_commit = time + self._interval
        return self._ledger.take_due()

    def _commit(self, client: Consumer, due: Sequence[Partition]) -> None:
        with self._changed:
            offsets = [TopicPartition(*partition.place, *partition.commit()) for partition in due]
            self._open_commits += 1
            self._committing |= {partition.place: partition for partition in due}
        try:
            client.commit(offsets=offsets, asynchronous=True)
        except KafkaException as exc:
            self._committed(errors.of(exc), offsets)

    def _committed(self, error: KafkaError | None, offsets: Sequence[TopicPartition]) -> None:
        """librdkafka's ``on_commit``: the broker has answered, or nobody will."""
        with self._changed:
            self._open_commits = max(0, self._open_commits - 1)
            for offset in offsets:
                partition = self._committing.pop((offset.topic, offset.partition), None)
                failed = error or offset.error
                if partition is None:
                    continue
                if failed is None:
                    partition.committed(offset.offset)
                    self._places.met(partition.place)
                elif not errors.passes(failed):
                    self._broken = errors.subscribe(failed, f"the commit for {self._spec.name}", self._spec.name)
                elif not partition.gone:
                    partition.not_committed()
                    self._retry_at = now() + _RETRY
            self._changed.notify_all()
        if error is not None:
            self._trouble(error)

    # Rebalances: librdkafka calls these in polls, and they must not raise.

    def _assigned(self, client: Consumer, partitions: Sequence[TopicPartition]) -> None:
        try:
            given = [(partition.topic, partition.partition) for partition in partitions]
            placed = self.persist("the group's place", lambda: self._places.resolve(client, given, ANSWER))
            offsets = [TopicPartition(*entry.place, entry.offset) for entry in placed]
            (client.incremental_assign if self._incremental else client.assign)(offsets)
        except Stopped:
            return
        except MessagingError as exc:
            self._broken = exc
            return
        except Exception as exc:
            self._broken = errors.consume(errors.of(exc), self._spec.name)
            return
        with self._changed:
            for place, offset, note in placed:
                self._ledger.assign(place, offset, window=self._window, note=note, owner=self._owner)
        self._reassigned.update(given)
        self._assigned_once = True

    def _revoked(self, client: Consumer, partitions: Sequence[TopicPartition]) -> None:
        due = [partition for partition in self._take_away(client, partitions) if partition.due]
        if due and not self._leaving:
            self._commit(client, due)

    def _were_lost(self, client: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._take_away(client, partitions)

    def _take_away(self, client: Consumer, partitions: Sequence[TopicPartition]) -> list[Partition]:
        places = [(partition.topic, partition.partition) for partition in partitions]
        self._resume(client, places)
        with self._changed:
            self._credit.settle()
            taken = [self._ledger.revoke(place) for place in places]
            for partition in filter(None, taken):
                partition.leave()
                if partition.confirmed < 0:  # not ready, if it is for this that `open` waits
                    self._assigned_once = False
            self._changed.notify_all()
        self._drop_gone()
        return [partition for partition in taken if partition is not None]


class BroadcastConsumer(PollingConsumer):
    """Sees every message of its topics, keeps its place in memory and none on the broker.

    It joins no group: all partitions are its own, and partitions that appear later are added.
    """

    def mark(self, message: Received, starts: int, deadline: Deadline) -> None:
        """See `MessageConsumer.mark`: nothing comes again, so there are no suspects."""

    def _settings(self) -> dict[str, Any]:
        return settings.consumer(self._config, self._spec)

    def _begin(self, client: Consumer, topics: dict[str, int]) -> None:
        places.check(self._spec.start, [(topic, number) for topic, count in topics.items() for number in range(count)])
        known = [TopicPartition(*partition.place, partition.position) for partition in self._ledger.partitions()]
        if known:  # another client had them: go on where it was
            client.incremental_assign(known)
        start: Start = "earliest" if known else self._spec.start
        self.persist("the topics' offsets", lambda: self._add(client, topics, start))

    def _follow(self, client: Consumer, topics: dict[str, int]) -> None:
        for topic in {partition.place[0] for partition in self._ledger.partitions()} - topics.keys():
            self._remove(client, topic)
        self._add(client, topics, "earliest")

    def _made_anew(self, client: Consumer, topic: str) -> None:
        self._remove(client, topic)
        self._next_look = 0.0

    def _remove(self, client: Consumer, topic: str) -> None:
        gone = [partition.place for partition in self._ledger.partitions() if partition.place[0] == topic]
        self._resume(client, gone)
        client.incremental_unassign([TopicPartition(*place) for place in gone])
        with self._changed:
            for place in gone:
                self._ledger.revoke(place)
        self._drop_gone()

    def _add(self, client: Consumer, topics: dict[str, int], start: Start) -> None:
        every = [(topic, number) for topic, count in topics.items() for number in range(count)]
        new = [place for place in every if self._ledger.get(place) is None]
        begins = places.begins(client, new, start, ANSWER)
        if begins:
            client.incremental_assign([TopicPartition(*place, offset) for place, offset in begins.items()])
            with self._changed:
                for place, offset in begins.items():
                    self._ledger.assign(place, offset)

    def _look_due(self) -> float | None:
        discovery = self._config.kafka.topic_discovery_ms / 1000
        waiting = names.is_pattern(self._spec.topic) or not any(self._ledger.partitions())
        return discovery if waiting else max(discovery, _PARTITIONS)

    def _is_ready(self) -> bool:
        return True

    def _work(self, client: Consumer) -> bool:
        return False

    def _leave_behind(self, client: Consumer) -> None:
        """Keep the partitions, whose places only we know."""

    def _before_close(self, client: Consumer) -> None:
        pass
