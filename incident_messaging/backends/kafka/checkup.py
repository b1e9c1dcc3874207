"""What the doctor asks a Kafka: connects as configured, and reads. What the answers mean is in `findings`.

Rights are asked for (``authorized_operations`` of DescribeTopics, DescribeGroups), that to make a topic by CreateTopics
with ``validate_only``. One thing only is written, and only where it was asked for: `Checkup.look_at_clock`.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.cimpl import NewTopic

from incident_messaging import doctor, topics
from incident_messaging.backends.kafka import errors, findings, sampling, settings
from incident_messaging.backends.kafka.broker import KafkaBroker
from incident_messaging.backends.kafka.findings import Topic
from incident_messaging.backends.kafka.topics import names
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.doctor import Finding, Scope, broken, not_done, ok, warning
from incident_messaging.errors import BackendUnavailable, MessagingError
from incident_messaging.topics import full_name, is_pattern, place_name

_T = TypeVar("_T")

#: Seconds for one answer, and for an address to take a connection.
_ANSWER: Final = 10.0
_CONNECTION: Final = 2.0
#: Seconds that a cluster may take until it knows who looks after a group, and between two questions.
_FIRST_GROUP: Final = 10.0
_PAUSE: Final = 0.2
#: Names of topics that the doctor makes begin so; no wildcard of the SDK takes them.
_OWN: Final = "_incident-messaging-doctor-"


class Checkup(doctor.Checkup):
    """See `doctor.Checkup`.

    Attributes:
        topics: The topics that are asked about and exist.
        brokers: Addresses of the cluster's brokers, as they are told to clients.
        settings: The settings of a broker; empty where the user may not read them.
    """

    def __init__(self, config: MessagingConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.topics: dict[str, Topic] = {}
        self.brokers: dict[int, tuple[str, int]] = {}
        self.settings: Mapping[str, str] = {}
        self._missing: list[str] = []
        self._made: AdminClient | None = None
        self._sampler = sampling.Sampler(config)

    @property
    def acls(self) -> findings.Acls:
        """The commands that grant rights."""
        return findings.Acls(self.config.kafka)

    def explain(self, error: MessagingError) -> Finding:
        """See `doctor.Checkup.explain`."""
        return findings.of_error(error, self.config.kafka)

    def close(self) -> None:
        """See `doctor.Checkup.close`."""
        self._sampler.close()
        self._made = None  # it ends with its last reference

    # Questions.

    @property
    def admin(self) -> AdminClient:
        """The client that asks."""
        if self._made is None:
            try:  # no name for the properties: a traceback may show a frame's names, and they hold secrets
                self._made = AdminClient(settings.admin(self.config.kafka))
            except KafkaException as exc:
                raise errors.not_created(self.config.kafka.bootstrap_servers, exc) from exc
        return self._made

    def asked(self, what: str, answer: Future[_T]) -> _T:
        """An answer.

        Raises:
            BackendUnavailable: Kafka gave none.
            KafkaException: The user may not ask that, or what it is about is not there.
        """
        error = self.refusal(what, answer)
        if error is None:
            return answer.result()
        if error.code() in errors.DENIED or error.code() in errors.UNKNOWN_TOPIC:
            raise KafkaException(error)
        raise BackendUnavailable(f"Kafka: {what}: {error.str() or error.name()}", backend="kafka")

    def refusal(self, what: str, answer: Future[Any]) -> KafkaError | None:
        """Why something was refused; ``None`` where it was not.

        Raises:
            BackendUnavailable: Kafka gave no answer.
        """
        try:  # not result(): the error would hold this frame, and that the error, and both the client
            error = answer.exception(_ANSWER)
        except TimeoutError as exc:
            raise BackendUnavailable(f"Kafka: {what}: no answer within {_ANSWER:g} s", backend="kafka") from exc
        return None if error is None else errors.of(error)

    def described(self, topic: str) -> Any:
        """What Kafka says of a topic, the user's rights to it among that."""
        answer = self.admin.describe_topics(
            TopicCollection([topic]), include_authorized_operations=True, request_timeout=_ANSWER
        )
        return self.asked(f"describing {topic}", answer[topic])

    def configured(self, kind: Any, name: str) -> dict[str, str]:
        """The settings of a topic or broker.

        Raises:
            KafkaException: The user may not read them.
        """
        resource = ConfigResource(kind, name)
        answer = self.admin.describe_configs([resource], request_timeout=_ANSWER)[resource]
        found = self.asked(f"settings of {name}", answer)
        return {key: entry.value for key, entry in found.items()}

    # Checks, in their order.

    def look_at_servers(self) -> Iterator[Finding]:
        """The connection as configured, then each address by itself."""
        kafka = self.config.kafka
        broker = KafkaBroker(self.config)
        try:
            broker.connect(Deadline.after(self.config.connect_timeout_ms / 1000))
        finally:
            broker.close(Deadline.after(1.0))
        yield ok(f"connected, by {kafka.bootstrap_servers}")
        addresses = [findings.host_and_port(server) for server in kafka.bootstrap_servers.split(",")]
        for host, port in addresses if len(addresses) > 1 else ():
            if (why := _refusal(host, port)) is not None:
                remedy = f"nc -vz {host} {port}; start the broker, or correct kafka.bootstrap_servers"
                yield warning(f"one of the servers is of no use: {why} ({host}:{port})", remedy)

    def look_at_version(self) -> Iterator[Finding]:
        """The broker's; one that is too old was refused at the connection."""
        yield ok("Kafka 3.5 or later, as is needed")

    def look_at_listeners(self) -> Iterator[Finding]:
        """The addresses by which the brokers tell clients to come."""
        told = self._listed().brokers.values()
        self.brokers = {broker.id: (str(broker.host), broker.port) for broker in told}
        for number, (host, port) in self.brokers.items():
            if (why := _refusal(host, port)) is not None:
                yield findings.listener(number, host, port, why)
            else:
                yield ok(f"broker {number} tells clients to come by {host}:{port}")

    def look_at_topics(self) -> Iterator[Finding]:
        """Whether the topics exist, and what Kafka says of each."""
        there = {name for name in names(self._listed()) if not name.startswith("_")}
        wanted = [*self.used, *filter(None, [self.dead_letters])]
        for topic in dict.fromkeys(wanted):
            found = sorted(filter(topics.regex(topic).fullmatch, there)) if is_pattern(topic) else [topic]
            if not found:
                yield ok(f"there is no topic {topic} yet")
            for name in found:
                if name not in self.topics:
                    yield self._met(name)

    def _listed(self) -> ClusterMetadata:
        try:
            return self.admin.list_topics(timeout=_ANSWER)
        except KafkaException as exc:
            raise BackendUnavailable(f"Kafka: listing topics: {errors.of(exc).str()}", backend="kafka") from exc

    def _met(self, name: str) -> Finding:
        try:
            said = self.described(name)
        except KafkaException as exc:
            if errors.of(exc).code() in errors.DENIED:
                right = "Write" if self.scope.publishes or name == self.dead_letters else "Read"
                return broken(f"Kafka shows the user no topic {name}", self.acls.topic(right, name))
            self._missing.append(name)
            if self.config.kafka.create_topics:
                return ok(f"there is no topic {name} yet; the first use makes it")
            return broken(f"there is no topic {name}, and create_topics is off", findings.create(self.config, name))
        partitions = said.partitions
        self.topics[name] = Topic(
            name=name,
            partitions=len(partitions),
            copies=min(len(each.replicas) for each in partitions),
            in_sync=min(len(each.isr) for each in partitions),
            leaderless=sum(each.leader is None or each.leader.id < 0 for each in partitions),
            rights=frozenset(each.name.lower() for each in said.authorized_operations or ()),
        )
        return ok(f"{name} exists, {len(partitions)} partitions")

    def look_at_publishing(self) -> Iterator[Finding]:
        """Whether the user may write."""
        if not self.scope.publishes:
            return
        yield from self._with_right("write", [name for name in self.topics if name != self.dead_letters])

    def look_at_subscribing(self) -> Iterator[Finding]:
        """Whether the user may read topics, keep places, and write dead letters."""
        if not self.scope.subscribes:
            return
        yield from self._with_right("read", [name for name in self.topics if name != self.dead_letters])
        if self.dead_letters is not None and self.dead_letters in self.topics:
            yield from self._with_right("write", [self.dead_letters])
        kafka = self.config.kafka
        for topic in self.used:
            group = place_name(kafka.group_id, topic, exact=kafka.exact_group_id)
            if "read" in self._rights_to(group):
                yield ok(f"the user may keep a place as group {group}")
            else:
                yield broken(f"the user may not keep a place as group {group}", self.acls.group("Read", group))

    def _rights_to(self, group: str) -> set[str]:
        """A cluster that never had a group first makes the topic of their places: so it is asked again for a while."""
        patience = Deadline.after(_FIRST_GROUP)
        while True:
            answer = self.admin.describe_consumer_groups(
                [group], include_authorized_operations=True, request_timeout=_ANSWER
            )
            try:
                said = self.asked(f"describing the group {group}", answer[group])
            except KafkaException:
                return set()
            except BackendUnavailable:
                if patience.over:
                    raise
                time.sleep(_PAUSE)
            else:
                return {each.name.lower() for each in said.authorized_operations or ()}

    def _with_right(self, right: str, wanted: Sequence[str]) -> Iterator[Finding]:
        without = [name for name in wanted if right not in self.topics[name].rights]
        for name in without:
            yield broken(f"the user may not {right} {name}", self.acls.topic(right.capitalize(), name))
        if not wanted:
            yield not_done(f"there is no topic to {right} yet, and a right to one that is missing cannot be asked for")
        elif not without:
            yield ok(f"the user may {right} {', '.join(wanted)}")

    def look_at_creating(self) -> Iterator[Finding]:
        """Whether what is missing may be made, and would be."""
        kafka, prefix = self.config.kafka, self.config.topic_prefix
        if not kafka.create_topics:
            yield ok("create_topics is off")
            return
        some = full_name(prefix, f"doctor-{uuid.uuid4().hex[:8]}")
        for name in self._missing or [some]:
            topic = NewTopic(
                name, num_partitions=kafka.partitions or -1, replication_factor=kafka.replication_factor or -1
            )
            answer = self.admin.create_topics([topic], validate_only=True, request_timeout=_ANSWER)[name]
            if (error := self.refusal(f"asking whether {name} may be made", answer)) is not None:
                there = len(self.brokers)
                yield findings.not_made(self.config, error, name, there, needed=name != some)
            else:
                yield ok(f"{name} would be made" if name != some else "a topic that is missing would be made")

    def look_at_settings(self) -> Iterator[Finding]:
        """What the next checks ask about."""
        for name, topic in self.topics.items():
            try:
                topic.settings.update(self.configured(ConfigResource.Type.TOPIC, name))
            except KafkaException as exc:
                why = errors.of(exc).str()
                yield warning(f"settings of {name} are not looked at: {why}", self.acls.topic("DescribeConfigs", name))
        try:
            self.settings = self.configured(ConfigResource.Type.BROKER, str(min(self.brokers)))
        except KafkaException as exc:
            why = errors.of(exc).str()
            yield warning(f"brokers' settings are not looked at: {why}", self.acls.cluster("DescribeConfigs"))
        else:
            yield ok("settings of brokers and topics are read")

    def look_at_each_topic(self, judge: Callable[..., Iterator[Finding]]) -> Iterator[Finding]:
        """What the answers about each topic mean."""
        known = [topic for topic in self.topics.values() if topic.settings or judge is findings.replicas]
        if not known:
            yield not_done("there is no topic to look at")
        for topic in known:
            yield from judge(self.config, topic, self)

    def look_at_sessions(self) -> Iterator[Finding]:
        """What the broker says to the session time-out."""
        yield from findings.sessions(self.config.kafka, self.settings)

    def look_at_places(self) -> Iterator[Finding]:
        """How long the broker keeps the place of a group that nobody is in."""
        yield from findings.places(self.settings, list(self.topics.values()))

    def look_at_lag(self) -> Iterator[Finding]:
        """How much of a topic's time the oldest unread record of a group has behind it."""
        answer = self.admin.list_consumer_groups(request_timeout=_ANSWER)
        try:
            listed = self.asked("listing groups", answer).valid
        except KafkaException as exc:
            why = errors.of(exc).str()
            yield warning(f"groups are not looked at: {why}", self.acls.cluster("Describe"))
            return
        groups = [each.group_id for each in listed if self._is_ours(each.group_id)]
        for group in groups:
            yield from self._lag_of(group)
        if not groups:
            yield ok("no group has a place yet")

    def _is_ours(self, group: str) -> bool:
        if self.config.kafka.exact_group_id:
            return group == self.config.kafka.group_id
        _, colon, topic = group.rpartition(":")
        return bool(colon) and any(_may_meet(topic, used) for used in self.used)

    def _lag_of(self, group: str) -> Iterator[Finding]:
        answer = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=_ANSWER)
        try:
            places = self.asked(f"places of {group}", answer[group]).topic_partitions or []
        except KafkaException as exc:
            why = errors.of(exc).str()
            yield warning(f"places of {group} are not looked at: {why}", self.acls.group("Describe", group))
            return
        places = [each for each in places if each.topic in self.topics and each.offset >= 0]
        behind: dict[str, float] = {}
        unread: Counter[str] = Counter()
        for place in places:
            low, high = self._sampler.bounds(place.topic, place.partition)
            if place.offset < low:
                yield findings.passed_over(self.config.kafka, group, place, low - place.offset)
            elif place.offset < high:
                unread[place.topic] += high - place.offset
                stored = self._sampler.stored(place.topic, place.partition, place.offset)
                if stored is not None:
                    behind[place.topic] = min(stored, behind.get(place.topic, stored))
        yield from findings.lag(self.config.kafka, group, unread, behind, self.topics)

    def look_at_clock(self) -> Iterator[Finding]:
        """The broker's time at a record, which it puts on those of a topic with LogAppendTime."""
        if not self.scope.probe:
            yield not_done("not asked for: Kafka tells its time at a record alone", "incident-messaging doctor --probe")
            return
        name = f"{_OWN}{uuid.uuid4().hex[:8]}"
        try:
            found = self._probed(name)
        finally:  # also where Ctrl-C came while it was made
            gone = self.admin.delete_topics([name], request_timeout=_ANSWER)[name]
            left = self.refusal(f"deleting {name}", gone)
        yield found
        if left is not None and name in names(self._listed()):
            yield warning(f"{name} is not deleted: {left.str()}", findings.delete(self.config.kafka, name))

    def _probed(self, name: str) -> Finding:
        topic = NewTopic(
            name, num_partitions=1, config={"message.timestamp.type": "LogAppendTime", "retention.ms": "60000"}
        )
        made = self.admin.create_topics([topic], request_timeout=_ANSWER)[name]
        if (error := self.refusal(f"making {name}", made)) is not None:
            rights = ("Create --operation Write --operation Delete", f"{_OWN} --resource-pattern-type prefixed")
            return warning(f"not looked at: {name} is not made: {error.str()}", self.acls.topic(*rights))
        try:
            return doctor.clock("the Kafka broker", *sampling.time_of(self.config, name))
        except MessagingError as exc:
            return self.explain(exc)


def _may_meet(topic: str, used: str) -> bool:
    """Whether a group's topic or pattern may be among those that are asked about."""
    if topic == used:
        return True
    return bool(topics.regex(used).fullmatch(topic) or (is_pattern(topic) and topics.regex(topic).fullmatch(used)))


def _refusal(host: str, port: int) -> str | None:
    """Why an address takes no connection; nothing is sent."""
    try:
        socket.create_connection((host, port), timeout=_CONNECTION).close()
    except TimeoutError:
        return "no answer"
    except OSError as exc:
        return (exc.strerror or str(exc)).lower()
    return None
